// What the theme leaves unsaid to a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  // The toggles of the contents are icons without a name: name them after the page they open.
  for (const summary of document.querySelectorAll(".bd-links summary")) {
    const page = summary.closest("li").querySelector("a");
    summary.setAttribute("aria-label", `Pages of ${page.textContent.trim()}`);
  }
  // Logo and title stand in no landmark of their own.
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "Book");
});

// An equation that is wider than the page scrolls, so it must be reachable by the keyboard.
window.addEventListener("load", () => {
  window.MathJax?.startup?.promise?.then(() => {
    for (const equation of document.querySelectorAll('mjx-container[display="true"]')) {
      if (equation.scrollWidth > equation.clientWidth) equation.tabIndex = 0;
    }
  });
});
