"""The site in a real browser: errors, requests, accessibility, players, search, dark mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

pytest_plugins = ["browser"]

MODES = ("light", "dark")
WIDE, PHONE = 1280, 390
GRAVE = ("serious", "critical")

CONTRAST = """element => {
    const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = colour => rgb(colour).slice(0, 3).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    let behind = element;
    while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
        .map(luminance);
    return {ratio: (Math.max(a, b) + .05) / (Math.min(a, b) + .05), background: b};
}"""


@dataclass
class Visit:
    """What was seen when a page was opened."""

    errors: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # requests that would have left the machine
    violations: list[tuple[str, str, str]] = field(default_factory=list)
    too_wide: int = 0


@pytest.fixture(scope="module")
def open_page(browser, address):
    """Return a function that opens a page in a mode and a width, and the notes taken meanwhile."""
    contexts: dict[tuple[str, int], Any] = {}

    def context(mode, width):
        if (mode, width) not in contexts:
            made = browser.new_context(
                viewport={"width": width, "height": 900},
                color_scheme=mode,
                reduced_motion="reduce",
            )
            made.add_init_script(
                "for (const key of ['mode', 'theme'])"
                f" if (!localStorage.getItem(key)) localStorage.setItem(key, '{mode}')"
            )
            contexts[mode, width] = made
        return contexts[mode, width]

    def open_page(name, mode="light", width=WIDE):
        visit, page = Visit(), context(mode, width).new_page()

        def keep_here(route):
            if route.request.url.startswith(address):
                route.continue_()
            else:
                visit.left.append(route.request.url)
                route.abort()

        page.route("**/*", keep_here)
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("console", lambda m: visit.errors.append(m.text) if m.type == "error" else None)
        page.goto(address + name, wait_until="load")
        page.evaluate("window.MathJax?.startup?.promise.then(() => null)")
        return page, visit

    yield open_page
    for made in contexts.values():
        made.close()


def violations(page):
    """Return what axe finds on a page: impact, rule and the first place."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [(v["impact"], v["id"], v["nodes"][0]["html"][:300]) for v in found]


@pytest.fixture(scope="module")
def visit(open_page):
    """Return a function that opens a page once in each mode and width, and what was seen there."""
    seen: dict[tuple[str, str, int], Visit] = {}

    def visit(name, mode="light", width=WIDE):
        if (name, mode, width) not in seen:
            page, notes = open_page(name, mode, width)
            wide = page.evaluate("document.documentElement.scrollWidth")
            notes.too_wide = max(0, wide - width)
            if width == WIDE:
                before = list(notes.errors)
                notes.violations = violations(page)
                notes.errors = before  # axe itself asks for style sheets that are not there
            page.close()
            seen[name, mode, width] = notes
        return seen[name, mode, width]

    return visit


@pytest.mark.parametrize("mode", MODES)
def test_opens_without_console_errors(visit, name, mode):
    assert visit(name, mode).errors == []


@pytest.mark.parametrize("mode", MODES)
def test_no_request_leaves_for_a_third_party(visit, name, mode):
    assert visit(name, mode).left == []


@pytest.mark.parametrize("mode", MODES)
def test_axe_finds_nothing_grave(visit, name, mode):
    assert [v for v in visit(name, mode).violations if v[0] in GRAVE] == []


def test_fits_a_phone(visit, name):
    assert visit(name, width=PHONE).too_wide == 0


def test_axe_and_the_notes_can_fail(open_page):
    page, notes = open_page("book/index.html")
    page.evaluate(
        "document.querySelector('article').insertAdjacentHTML('beforeend',"
        " '<button></button><p style=\"color: #ccc; background: #fff\">pale</p>')"
    )
    rules = {rule for impact, rule, _ in violations(page) if impact in GRAVE}
    assert rules == {"button-name", "color-contrast"}
    page.evaluate("fetch('https://example.org/').catch(() => null)")
    page.evaluate("console.error('seen')")
    page.wait_for_timeout(200)
    page.close()
    assert notes.left == ["https://example.org/"]
    assert "seen" in notes.errors


def test_players_play_and_step(open_page, name_with_player):
    page, notes = open_page(name_with_player)
    assert page.locator(".marl-player").count() > 0
    for player in page.locator(".marl-player").all():
        count, picture = player.locator(".marl-count"), player.locator("img.marl-live")
        total = int(count.inner_text().split("/")[1])
        assert total > 1
        assert count.inner_text() == f"1 / {total}"
        first = picture.get_attribute("src")
        player.locator(".marl-following").click()
        assert count.inner_text() == f"2 / {total}"
        assert picture.is_visible()
        player.locator(".marl-previous").click()
        assert picture.get_attribute("src") == first
        player.locator(".marl-play").click()
        assert player.get_attribute("data-playing") is not None
        page.wait_for_function(
            "([e, text]) => e.textContent !== text", arg=[count.element_handle(), f"1 / {total}"]
        )
        player.locator(".marl-play").click()
        assert player.get_attribute("data-playing") is None
    page.close()
    assert notes.errors == []


def test_the_landing_page_shows_agents(open_page):
    page, _ = open_page("book/index.html")
    assert page.locator(".marl-player img.marl-live").count() == 1
    pictures = set()
    for _ in range(8):
        pictures.add(page.locator(".marl-player img.marl-live").get_attribute("src"))
        page.locator(".marl-following").click()
    assert len(pictures) > 4, "the agents do not move"
    page.close()


def test_search_finds_a_word(open_page):
    page, _ = open_page("book/how-to-use.html")
    page.keyboard.press("Control+k")
    page.locator("dialog input[type=search]").fill("truncation")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert "q=truncation" in page.url
    found = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any("book/glossary.html" in link for link in found)
    page.close()


def test_search_says_when_it_finds_nothing(open_page):
    page, _ = open_page("search.html?q=xylophone")
    page.wait_for_function("document.querySelector('.search-summary')?.textContent.trim()")
    page.wait_for_timeout(300)
    assert page.locator("#search-results li").count() == 0
    page.close()


def test_dark_mode_toggles_and_is_legible(open_page):
    page, _ = open_page("book/how-to-use.html")
    text = page.locator("article p").first
    light = text.evaluate(CONTRAST)
    assert light["background"] > 0.8
    for _ in range(3):  # the button goes round light, dark and the system's choice
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
        page.locator(".theme-switch-button").first.click()
    dark = text.evaluate(CONTRAST)
    assert dark["background"] < 0.05
    assert min(light["ratio"], dark["ratio"]) > 7
    for selector in ("article p a", ".bd-links a", "article code", "article h2"):
        assert page.locator(selector).first.evaluate(CONTRAST)["ratio"] > 4.5, selector
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("localStorage.clear()")
    page.close()


def test_mathematics_is_set(open_page):
    page, _ = open_page("book/notation.html")
    assert page.locator("mjx-container").count() > 20
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("document.fonts.check('16px MJXTEX-I')")
    page.close()


def test_root_leads_to_the_landing_page(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_url(address + "book/index.html")
    page.close()


def test_a_wrong_address_gets_a_page_of_the_book(open_page):
    page, notes = open_page("book/no/such/page.html")
    title = page.locator("article h1")
    assert title.inner_text() == "Page not found"
    assert page.locator(".bd-links a").count() > 5
    fonts = title.evaluate("e => getComputedStyle(e).fontFamily")
    assert "Source Serif" in fonts, "the style sheet was not found from there"
    assert len(notes.errors) == 1  # the 404 itself
    page.close()
