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
