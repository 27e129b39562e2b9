"""A player for rollouts that needs no kernel and no network.

:func:`player` turns frames into a piece of HTML with pictures, buttons and script inside. It runs
on the built site, in Jupyter and in Colab, and prints as a still.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

# Colours are the page's own text colour throughout, so the controls have its contrast in every
# theme. The !important rules undo what the site's theme does to pictures and outputs in the dark:
# it dims them and puts them on a light sheet.
_STYLE = """
.text_html:has(> .marl-player) {
  background: none !important; color: inherit !important; padding: 0 !important;
}
.marl-player { margin: 0 0 1rem; line-height: 1.4; }
.marl-player [hidden], .marl-player[data-ready] .marl-still { display: none !important; }
.marl-player img {
  display: block; width: 100%; height: auto; margin: 0; padding: 0 !important;
  background: none !important; color: inherit !important; filter: none !important;
  border: 1px solid color-mix(in srgb, currentColor 20%, transparent) !important;
  border-radius: .4rem !important; box-sizing: border-box;
}
.marl-player.marl-pixels img { image-rendering: pixelated; }
.marl-bar { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem; margin: .5rem 0 0; }
.marl-player button {
  flex: none; width: 2.25rem; height: 2.25rem; padding: .5rem; margin: 0; cursor: pointer;
  border: 1.5px solid transparent; border-radius: 50%; background: none; color: inherit;
}
.marl-player button.marl-play { border-color: currentColor; }
.marl-player button:hover { background: color-mix(in srgb, currentColor 15%, transparent); }
.marl-player :is(button, input):focus-visible {
  outline: 3px solid currentColor; outline-offset: -3px; box-shadow: none;
}
.marl-player input:focus-visible { outline-offset: 2px; }
.marl-player svg { display: block; width: 100%; height: 100%; fill: currentColor; }
.marl-player .marl-count {
  flex: none; min-width: 3.6em; text-align: right; font-size: .9em;
  font-variant-numeric: tabular-nums; white-space: nowrap;
}
.marl-player input {
  flex: 1 1 5rem; min-width: 0; height: 2.25rem; margin: 0 .35rem; padding: 0; cursor: pointer;
  appearance: none; -webkit-appearance: none; background: none; border-radius: .4rem;
  color: inherit;
}
.marl-player input::-webkit-slider-runnable-track {
  height: 4px; border-radius: 2px;
  background: linear-gradient(currentColor 0 0) 0 / var(--marl-done, 0%) 100% no-repeat,
    color-mix(in srgb, currentColor 45%, transparent);
}
.marl-player input::-moz-range-track {
  height: 4px; border-radius: 2px; background: color-mix(in srgb, currentColor 45%, transparent);
}
.marl-player input::-moz-range-progress { height: 4px; background: currentColor; }
.marl-player input::-webkit-slider-thumb {
  -webkit-appearance: none; width: 16px; height: 16px; margin-top: -6px;
  border: 2px solid currentColor; border-radius: 50%; background: currentColor;
}
.marl-player input::-moz-range-thumb {
  width: 12px; height: 12px; border: 2px solid currentColor; border-radius: 50%;
  background: currentColor;
}
.marl-captions { display: grid; margin: .35rem 0 0; }
.marl-player .marl-captions p { grid-area: 1 / 1; margin: 0; }
.marl-player .marl-longest { visibility: hidden; }
@media (pointer: coarse) { .marl-player button { width: 2.75rem; height: 2.75rem; } }
@media print {
  .marl-bar, .marl-live, .marl-longest { display: none !important; }
  .marl-player[data-ready] .marl-still { display: block !important; }
}
"""

# May run more than once on a page, and after the element was moved: it sets up those players of its
# own content that no earlier run has. Until then, the page shows the still.
_SCRIPT = """
(() => {
  const {key, prefix, images, captions, delay, autoplay} = $DATA;
  const last = images.length - 1;
  for (const root of document.querySelectorAll(`[data-marl-player="${key}"]:not([data-ready])`)) {
    const part = (name) => root.querySelector(".marl-" + name);
    const twin = (element) => {
      if (!element) return null;
      const copy = element.cloneNode(true);
      copy.classList.replace("marl-still", "marl-live");
      element.after(copy);
      return copy;
    };
    const [picture, caption] = [...root.querySelectorAll(".marl-still")].map(twin);
    const [slider, count, button] = ["slider", "count", "play"].map(part);
    let frame = 0, timer = null;

    const show = (index) => {
      frame = Math.min(Math.max(index, 0), last);
      picture.src = prefix + images[frame];
      slider.value = frame;
      root.style.setProperty("--marl-done", `${100 * frame / Math.max(last, 1)}%`);
      count.textContent = `${frame + 1} / ${last + 1}`;
      if (caption) caption.textContent = captions[frame];
      slider.setAttribute("aria-valuetext",
        `frame ${frame + 1} of ${last + 1}` + (caption ? `: ${captions[frame]}` : ""));
    };
    const pause = () => {
      clearInterval(timer);
      timer = null;
      root.removeAttribute("data-playing");
      button.setAttribute("aria-label", "Play");
      part("on").removeAttribute("hidden");
      part("off").setAttribute("hidden", "");
      caption?.setAttribute("aria-live", "polite");
    };
    const advance = () => {
      if (!root.isConnected) return pause();
      if (frame < last) show(frame + 1);
      else if (autoplay) show(0);
      if (frame === last && !autoplay) pause();
    };
    const play = () => {
      clearInterval(timer);
      if (frame === last) show(0);
      timer = setInterval(advance, delay);
      root.setAttribute("data-playing", "");
      button.setAttribute("aria-label", "Pause");
      part("on").setAttribute("hidden", "");
      part("off").removeAttribute("hidden");
      caption?.setAttribute("aria-live", "off");
    };
    const toggle = () => timer === null ? play() : pause();
    const go = (index) => { pause(); show(index); };

    button.addEventListener("click", toggle);
    part("previous").addEventListener("click", () => go(frame - 1));
    part("following").addEventListener("click", () => go(frame + 1));
    slider.addEventListener("input", () => go(Number(slider.value)));
    root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        ArrowLeft: () => go(frame - 1), ArrowRight: () => go(frame + 1),
        Home: () => go(0), End: () => go(last), " ": toggle,
      }[event.key];
      if (!act || (event.key === " " && event.target.closest("button"))) return;
      act();
      event.preventDefault();
      event.stopPropagation();
    });

    show(0);
    part("bar").hidden = false;
    root.setAttribute("data-ready", "");
    if (autoplay && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
    else pause();
  }
})();
"""

_ICONS = {
    "back": "M4 4h3v16H4zM20 4v16L8 12z",
    "on": "M7 3.5v17L21 12z",
    "off": "M6 4h4.5v16H6zM13.5 4H18v16h-4.5z",
    "next": "M17 4h3v16h-3zM4 4v16l12-8z",
}


@dataclass(frozen=True, repr=False)
class Player:
    """An animation that shows itself in a notebook; made by :func:`player`.

    Attributes
    ----------
    images : tuple of bytes
        The frames, each encoded as ``mime``.
    mime : str
        ``image/png`` (exact) or ``image/webp`` (where a frame has more than 256 colours).
    captions : tuple of str
        One a frame, or none at all.
    size : (int, int)
        Width and height of a frame in pixels.
    """

    images: tuple[bytes, ...]
    mime: str
    captions: tuple[str, ...]
    size: tuple[int, int]
    fps: float
    width: int
    title: str
    alt: str
    still_index: int
    autoplay: bool

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Player({self.title!r}, {len(self)} frames)"

    def still(self, index: int | None = None) -> Image.Image:
        """Return one frame as a picture: the given one, or the one that is printed."""
        return Image.open(BytesIO(self.images[self.still_index if index is None else index]))

    def save(self, path: str | Path) -> Path:
        """Write a page with nothing but this player, and return its path."""
        path = Path(path)
        path.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{html.escape(self.title)}</title>\n"
            "<style>body { margin: 1rem; font: 1rem/1.4 system-ui, sans-serif }\n"
            "main { display: grid; justify-content: center }</style>\n"
            f"</head><body><main>{self._repr_html_()}</main></body></html>\n",
            encoding="utf-8",
        )
        return path

    def _repr_png_(self) -> bytes:
        if self.mime == "image/png":
            return self.images[self.still_index]
        return _encode(self.still(), "PNG", optimize=True)

    def _repr_html_(self) -> str:
        prefix = f"data:{self.mime};base64,"
        images = [base64.b64encode(image).decode() for image in self.images]
        data = {
            "prefix": prefix,
            "images": images,
            "captions": self.captions,
            "delay": 1000 / self.fps,
            "autoplay": self.autoplay,
        }
        shown = [self.alt, self.title, self.width, self.still_index, data]
        data["key"] = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]
        # "<" is escaped: a caption must not be able to end the script
        script = _packed(_SCRIPT).replace("$DATA", json.dumps(data).replace("<", "\\u003c"))
        pixels = " marl-pixels" if self.width >= 2 * self.size[0] else ""
        return (
            f'<div class="marl-player tex2jax_ignore mathjax_ignore{pixels}" role="group"'
            f' aria-label="{html.escape(self.title)}" data-marl-player="{data["key"]}"'
            f' data-lm-suppress-shortcuts="true" style="max-width:{self.width}px">'
            f"<style>{_packed(_STYLE)}</style>"
            f'<img class="marl-still" alt="{html.escape(self.alt)}" width="{self.size[0]}"'
            f' height="{self.size[1]}" src="{prefix}{images[self.still_index]}">'
            f"{self._controls()}{self._captions()}<script>{script}</script></div>"
        )

    def _controls(self) -> str:
        icons = {
            name: f'<svg class="marl-{name}" viewBox="0 0 24 24" aria-hidden="true">'
            f'<path d="{path}"/></svg>'
            for name, path in _ICONS.items()
        }

        def button(name: str, label: str, *inside: str) -> str:
            drawn = "".join(icons[icon] for icon in inside)
            return (
                f'<button type="button" class="marl-{name}" aria-label="{label}">{drawn}</button>'
            )

        return (
            '<div class="marl-bar" hidden>'
            + button("play", "Play", "on", "off")
            + button("previous", "Step back", "back")
            + button("following", "Step forward", "next")
            + '<input class="marl-slider" type="range" aria-label="Frame" min="0"'
            f' max="{len(self) - 1}" step="1" value="0"><span class="marl-count"></span></div>'
        )

    def _captions(self) -> str:
        if not self.captions:
            return ""
        # the longest caption stands invisibly behind the one shown, so that the page never jumps
        longest = max(self.captions, key=len)
        return (
            f'<div class="marl-captions"><p class="marl-longest" aria-hidden="true">'
            f'{html.escape(longest)}</p><p class="marl-still">'
            f"{html.escape(self.captions[self.still_index])}</p></div>"
        )


def player(
    frames: Sequence[np.ndarray] | np.ndarray,
    captions: Sequence[str] | None = None,
    *,
    title: str,
    alt: str | None = None,
    fps: float = 4,
    width: int | None = None,
    still: int = 0,
    autoplay: bool = False,
) -> Player:
    """Make an animation with play and step buttons, a slider and a caption for each frame.

    In the notebook the last line of a cell shows it. Space plays and pauses, the arrow keys step,
    Home and End go to the ends.

    Parameters
    ----------
    frames : sequence of ``(H, W, 3)`` uint8 arrays, all of one shape
    captions : sequence of str or None
        A line of text for each frame.
    title : str
        Names the animation for a screen reader.
    alt : str or None
        What the animation shows, in words; by default made from the title and captions.
    fps : float
        Frames per second.
    width : int or None
        Width on the page in CSS pixels; by default the frame's own, but between 320 and 640. Frames
        enlarged twice or more keep hard edges.
    still : int
        The frame that is printed, and shown where no script runs.
    autoplay : bool
        Start at once and repeat, unless the reader's system asks for reduced motion.

    Returns
    -------
    Player

    Raises
    ------
    ValueError
        If a frame has another type or shape, or an argument is out of range.
    """
    pictures = _checked(frames)
    texts = tuple(str(text) for text in captions) if captions is not None else ()
    if captions is not None and len(texts) != len(pictures):
        raise ValueError(f"there are {len(pictures)} frames but {len(texts)} captions")
    if not title.strip():
        raise ValueError("title is empty: say what the animation shows")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if not 0 <= still < len(pictures):
        raise ValueError(f"still must be a frame from 0 to {len(pictures) - 1}, got {still}")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if alt is None:
        alt = f"{title}: animation of {len(pictures)} frames"
        alt += f", from “{texts[0]}” to “{texts[-1]}”" if texts else ""
    high, wide = pictures[0].shape[:2]
    mime, images = _encoded(pictures)
    width = width or min(max(wide, 320), 640)
    return Player(images, mime, texts, (wide, high), fps, width, title, alt, still, autoplay)


def _packed(code: str) -> str:
    """Return code without indents and blank lines (which would end raw HTML within Markdown)."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def _checked(frames: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    pictures = [np.asarray(frame) for frame in frames]
    if not pictures:
        raise ValueError("there are no frames")
    for i, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"frame {i} must be a uint8 array of shape (H, W, 3), "
                f"got {picture.dtype} of shape {picture.shape}"
            )
        if picture.shape != pictures[0].shape or picture.size == 0:
            raise ValueError(f"frame {i} has shape {picture.shape}, frame 0 {pictures[0].shape}")
    return pictures


def _encoded(pictures: list[np.ndarray]) -> tuple[str, tuple[bytes, ...]]:
    """Return the MIME type and the encoded frames: exact and small where few colours allow it."""
    exact = [_palette_png(picture) for picture in pictures]
    images = tuple(image for image in exact if image is not None)
    if len(images) == len(pictures):
        return "image/png", images
    photos = (Image.fromarray(picture) for picture in pictures)
    return "image/webp", tuple(_encode(photo, "WEBP", quality=85) for photo in photos)


def _palette_png(frame: np.ndarray) -> bytes | None:
    """Return the frame as an exact PNG with a palette, or None if 256 colours are not enough."""
    used = Image.fromarray(frame).getcolors(256)
    if used is None:
        return None
    palette = np.array([colour for _, colour in sorted(used, key=lambda pair: pair[1])], np.uint8)
    weights = np.array([65536, 256, 1])  # a colour as one number, in the palette's order
    indices = np.searchsorted(palette @ weights, frame @ weights)
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return _encode(image, "PNG", optimize=True)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
