"""The player: its bytes without a browser, its behaviour in a real one."""

from __future__ import annotations

import base64
import io
import re
import sys

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from marl_lib.envs.gridworld import BatchedGridWorld
from marl_lib.player import player

pytest_plugins = ["browser"]

# five frames in two colours each, with a square that walks to the right
FRAMES = [np.full((40, 60, 3), 240, np.uint8) for _ in range(5)]
for step, picture in enumerate(FRAMES):
    picture[10:20, 10 * step : 10 * step + 10] = (0, 114, 178)
CAPTIONS = [f"step {step}" for step in range(5)]


def walk(**options):
    return player(FRAMES, CAPTIONS, **{"title": "A walk", **options})


def decode(uri):
    """Return the picture in a data URI."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


# ---------------------------------------------------------------------- without a browser


def test_fifty_grid_pictures_are_small():
    world = BatchedGridWorld(1, grid_size=(8, 8), n_agents=3, n_targets=3, autoreset=False)
    world.reset(seed=0)
    rng, frames = np.random.default_rng(0), []
    for _ in range(50):
        frames.append(world.render_rgb())
        world.step(rng.integers(0, 5, (1, 3)))
    assert frames[0].shape == (256, 256, 3)
    assert len(player(frames, title="grid")._repr_html_()) < 300_000


def test_few_colours_are_kept_exactly():
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    frame = palette[rng.integers(0, 256, (50, 70))]
    shown = player([frame, FRAMES[0].repeat(2, 0)[:50].repeat(2, 1)[:, :70]], title="x")
    assert shown.mime == "image/png"
    np.testing.assert_array_equal(np.array(shown.still(0).convert("RGB")), frame)


def test_many_colours_are_kept_nearly():
    gradient = np.stack(np.broadcast_arrays(*np.ogrid[0:128, 0:128], 7), -1).astype(np.uint8)
    shown = player([gradient], title="x")
    assert shown.mime == "image/webp"
    error = np.array(shown.still().convert("RGB")).astype(int) - gradient
    assert np.abs(error).mean() < 1.6  # 1.2 measured
    assert shown._repr_png_().startswith(b"\x89PNG")


def test_same_content_same_html():
    assert walk()._repr_html_() == walk()._repr_html_()
    keys = [
        re.search('data-marl-player="(.*?)"', shown._repr_html_())[1]
        for shown in (walk(), walk(fps=5), walk(title="B"), player(FRAMES[1:], title="A walk"))
    ]
    assert len(set(keys)) == 4


def test_still_and_png_are_the_printed_frame():
    shown = walk(still=3)
    np.testing.assert_array_equal(np.array(shown.still().convert("RGB")), FRAMES[3])
    np.testing.assert_array_equal(np.array(shown.still(1).convert("RGB")), FRAMES[1])
    np.testing.assert_array_equal(
        np.array(Image.open(io.BytesIO(shown._repr_png_())).convert("RGB")), FRAMES[3]
    )
    assert (repr(shown), len(shown)) == ("Player('A walk', 5 frames)", 5)


def test_alt_text():
    assert walk().alt == "A walk: animation of 5 frames, from “step 0” to “step 4”"
    assert player(FRAMES, title="A walk").alt == "A walk: animation of 5 frames"
    assert 'alt="A square."' in walk(alt="A square.")._repr_html_()


def test_html_survives_markdown():
    assert "\n\n" not in walk()._repr_html_()  # a blank line ends raw HTML in a Markdown page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": []}, "no frames"),
        ({"frames": [np.zeros((4, 4, 3))]}, "frame 0 must be a uint8 array.*float64"),
        ({"frames": np.zeros((2, 4, 4), np.uint8)}, r"shape \(H, W, 3\), got uint8 of.*\(4, 4\)"),
        ({"frames": [FRAMES[0], FRAMES[0][1:]]}, r"frame 1 has shape \(39, 60, 3\), frame 0"),
        ({"captions": ["one"]}, "5 frames but 1 captions"),
        ({"title": " "}, "title is empty"),
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"still": 5}, "from 0 to 4, got 5"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        player(**{"frames": FRAMES, "title": "x", **arguments})


def test_a_missing_browser_is_a_failure_where_one_is_required(monkeypatch):
    no_browser = sys.modules["browser"].no_browser
    monkeypatch.delenv("MARL_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception):
        no_browser()
    monkeypatch.setenv("MARL_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        no_browser()


# ---------------------------------------------------------------------- in a browser


class View:
    """One player on an open page."""

    def __init__(self, page, index=0):
        self.page, self.root = page, page.locator(".marl-player").nth(index)
        self.slider = self.root.get_by_role("slider", name="Frame")
        self.picture = self.root.locator("img.marl-live")

    def button(self, name):
        return self.root.get_by_role("button", name=name)

    @property
    def frame(self):
        """The frame on show, after checking that picture, slider, count and caption agree."""
        index = int(self.slider.input_value())
        np.testing.assert_array_equal(decode(self.picture.get_attribute("src")), FRAMES[index])
        assert self.root.locator(".marl-count").inner_text() == f"{index + 1} / 5"
        assert self.root.locator("p.marl-live").inner_text() == CAPTIONS[index]
        text = self.slider.get_attribute("aria-valuetext")
        assert text == f"frame {index + 1} of 5: {CAPTIONS[index]}"
        return index

    @property
    def playing(self):
        return self.button("Pause").is_visible() and not self.button("Play").is_visible()


@pytest.fixture
def opened(browser, tmp_path):
    """Return a function that opens a page with the HTML given, and checks it when all is done."""
    requests, errors, contexts = [], [], []

    def open_page(content, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.clock.install(time=0)
        page.clock.pause_at(1000)  # from here on time passes only in run_for
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(content, encoding="utf-8")
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert requests
    assert not [url for url in requests if not url.startswith((tmp_path.as_uri(), "data:"))]


@pytest.fixture
def view(opened, tmp_path):
    return View(opened(walk(fps=10).save(tmp_path / "walk.html").read_text("utf-8")))


def test_play_advances_and_pause_stops(view):
    assert (view.frame, view.playing) == (0, False)
    view.button("Play").click()
    assert view.playing
    view.page.clock.run_for(210)
    assert view.frame == 2
    view.button("Pause").click()
    view.page.clock.run_for(1000)
    assert (view.frame, view.playing) == (2, False)


def test_play_stops_at_the_end_and_begins_again(view):
    view.button("Play").click()
    view.page.clock.run_for(1000)
    assert (view.frame, view.playing) == (4, False)
    view.button("Play").click()
    assert (view.frame, view.playing) == (0, True)


def test_steps_pause_and_end_at_the_ends(view):
    view.button("Step back").click()
    assert view.frame == 0
    view.button("Play").click()
    view.button("Step forward").click()
    assert (view.frame, view.playing) == (1, False)
    for _ in range(6):
        view.button("Step forward").click()
    assert view.frame == 4
    view.button("Step back").click()
    assert view.frame == 3


def test_slider_goes_where_it_is_put(view):
    view.button("Play").click()
    view.slider.fill("3")
    assert (view.frame, view.playing) == (3, False)
    box = view.slider.bounding_box()
    view.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert view.frame == 2


def test_every_control_is_reached_and_worked_by_keyboard(view):
    reached = []
    for _ in range(4):
        view.page.keyboard.press("Tab")
        reached.append(view.page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert reached == ["Play", "Step back", "Step forward", "Frame"]
    for target in (view.slider, view.button("Step back"), view.button("Play")):
        target.focus()
        for key, frame in (("Home", 0), ("ArrowRight", 1), ("End", 4), ("ArrowLeft", 3)):
            view.page.keyboard.press(key)
            assert view.frame == frame
    view.page.keyboard.press("Control+ArrowLeft")  # left to the browser
    assert view.frame == 3
    for target in ("slider", "Play"):
        (view.slider if target == "slider" else view.button(target)).focus()
        view.page.keyboard.press("Space")
        assert view.playing
        view.page.keyboard.press("Space")
        assert not view.playing
    view.button("Step back").focus()
    for key, frame in (("Enter", 2), ("Space", 1)):
        view.page.keyboard.press(key)
        assert (view.frame, view.playing) == (frame, False)


def test_keys_stay_inside_the_player(view):
    view.page.evaluate(
        "window.seen = []; document.addEventListener('keydown', e => window.seen.push(e.key))"
    )
    view.slider.focus()
    for key in ("ArrowLeft", "ArrowRight", "a"):
        view.page.keyboard.press(key)
    assert view.page.evaluate("window.seen") == ["a"]


def test_players_on_one_page_are_independent_even_twins(opened):
    twins, other = walk()._repr_html_(), walk(title="Another walk")._repr_html_()
    page = opened(f"<!doctype html><body>{twins}{other}{twins}</body>")
    views = [View(page, i) for i in range(3)]
    views[0].button("Play").click()
    page.clock.run_for(260)
    for _ in range(3):
        views[2].button("Step forward").click()
    assert [(v.frame, v.playing) for v in views] == [(1, True), (0, False), (3, False)]


def test_runs_when_a_notebook_inserts_it(opened):
    # As JupyterLab does: innerHTML in a detached element, scripts re-created, then attached, and
    # all of it a second time when the cell is run again.
    page = opened("<!doctype html><body><main></main></body>")
    for _ in range(2):
        page.evaluate(
            """html => {
                const cell = document.createElement("div");
                cell.innerHTML = html;
                for (const script of cell.querySelectorAll("script")) {
                    const copy = document.createElement("script");
                    copy.textContent = script.textContent;
                    script.replaceWith(copy);
                }
                document.querySelector("main").append(cell);
            }""",
            walk()._repr_html_(),
        )
    for index in range(2):
        view = View(page, index)
        view.button("Step forward").click()
        assert view.frame == 1
    assert page.locator(".marl-live").count() == 4


def test_a_removed_player_stops_its_clock(view):
    view.button("Play").click()
    view.page.evaluate("window.root = document.querySelector('.marl-player'); window.root.remove()")
    view.page.clock.run_for(1000)
    assert view.page.evaluate("window.root.querySelector('input').value") == "0"
    assert not view.page.evaluate("window.root.hasAttribute('data-playing')")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_autoplay_repeats_unless_motion_is_unwanted(opened, motion):
    html = walk(fps=10, autoplay=True)._repr_html_()
    view = View(opened(f"<!doctype html><body>{html}</body>", reduced_motion=motion))
    view.page.clock.run_for(620)
    assert (view.frame, view.playing) == ((1, True) if motion == "no-preference" else (0, False))


@pytest.mark.parametrize("script", [True, False])
def test_prints_the_still_with_its_caption(opened, tmp_path, script):
    html = walk(still=3).save(tmp_path / "x.html").read_text("utf-8")
    page = opened(html, java_script_enabled=script)
    if script:
        page.get_by_role("button", name="Step forward").click()
    page.emulate_media(media="print")
    (picture,) = (i for i in page.locator("img").all() if i.is_visible())
    np.testing.assert_array_equal(decode(picture.get_attribute("src")), FRAMES[3])
    assert picture.get_attribute("alt") == walk().alt
    (caption,) = (p for p in page.locator("p").all() if p.is_visible())
    assert caption.inner_text() == "step 3"
    assert not page.locator(".marl-bar").is_visible()


def test_hostile_text_stays_text(opened):
    captions = ["</script><b>bold</b>", "<!-- <script>", "“q” & 'q' \\ \u2028", "$x$", "\\(y\\)"]
    shown = player(FRAMES, captions, title='"><i>&', alt='"<u>')
    page = opened(f"<!doctype html><body>{shown._repr_html_()}</body>")
    for caption in captions:
        assert page.locator("p.marl-live").text_content() == caption
        page.get_by_role("button", name="Step forward").click()
    assert page.locator("b, i, u").count() == 0
    assert page.get_by_role("group", name='"><i>&').count() == 1
    assert page.locator("img.marl-live").get_attribute("alt") == '"<u>'


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000])
def test_accessible_and_within_the_page(opened, tmp_path, scheme, width):
    shown = player(FRAMES, ["a", "b", "long " * 40, "d", "e"], title="A walk", width=600)
    html = shown.save(tmp_path / "x.html").read_text("utf-8")
    page = opened(html, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.clock.resume()
    violations = Axe().run(page).response["violations"]
    assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = page.locator(".marl-player").bounding_box()
    page.get_by_role("slider").fill("2")
    assert page.locator(".marl-player").bounding_box() == before  # nothing jumps
    assert page.locator("img.marl-live").bounding_box()["width"] == min(600, width - 32)
    colours = page.locator(".marl-player :is(button, input, p.marl-live)").evaluate_all(
        "all => all.map(e => getComputedStyle(e).color)"
    )
    assert set(colours) == {"rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)"}


def test_the_dark_site_neither_dims_nor_frames_it(opened):
    # the rules of pydata-sphinx-theme 0.17 that meet a picture in an output
    theme = """
    html[data-theme=dark] { color: #eee; background: #111 }
    html[data-theme=dark] img:not(.only-dark,.dark-light) { filter: brightness(.8) }
    html[data-theme=dark] .bd-content div.cell_output .text_html:not(:has(table.dataframe)),
    html[data-theme=dark] .bd-content div.cell_output img {
      background-color: #eee; color: #222; padding: .5rem }
    """
    page = opened(
        f'<!doctype html><html data-theme="dark"><style>{theme}</style><body><div class='
        f'"bd-content"><div class="cell_output"><div class="output text_html">'
        f"{walk()._repr_html_()}</div></div></div></body></html>"
    )
    style = "e => (s => [s.backgroundColor, s.padding, s.filter, s.color])(getComputedStyle(e))"
    for selector in (".text_html", "img.marl-live"):
        assert page.locator(selector).evaluate(style) == [
            "rgba(0, 0, 0, 0)", "0px", "none", "rgb(238, 238, 238)"
        ]  # fmt: skip
