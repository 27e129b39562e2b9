"""A small canvas: anti-aliased shapes on an RGB picture, with NumPy alone.

The worlds draw themselves with it, so a picture needs no window and no drawing package. Points are
``(x, y)`` in pixels, x to the right and y downwards from the top left corner; fractions of a pixel
count. Colours are ``(red, green, blue)`` from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import numpy as np

Point = tuple[float, float] | np.ndarray
Colour = tuple[int, int, int]

# Told apart under every common kind of colour blindness. Source: M. Okabe, K. Ito, "Color universal
# design", 2008.
PALETTE: dict[str, Colour] = {
    "blue": (0, 114, 178),
    "orange": (230, 159, 0),
    "green": (0, 158, 115),
    "vermilion": (213, 94, 0),
    "purple": (204, 121, 167),
    "sky": (86, 180, 233),
    "yellow": (240, 228, 66),
    "black": (34, 34, 34),
}

_SUBROWS = 8  # lines of samples in one row of pixels; along a line, coverage is exact

# Seven rows of five pixels a glyph, one hexadecimal byte a row.
_GLYPHS = {
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010204081f",
    "3": "1f02040201110e",
    "4": "02060a121f0202",
    "5": "1f101e0101110e",
    "6": "0608101e11110e",
    "7": "1f010204080808",
    "8": "0e11110e11110e",
    "9": "0e11110f01020c",
    "A": "0e11111f111111",
    "B": "1e11111e11111e",
    "C": "0e11101010110e",
    "D": "1c12111111121c",
    "E": "1f10101e10101f",
    "F": "1f10101e101010",
    "G": "0e11101711110f",
    "H": "1111111f111111",
    "I": "0e04040404040e",
    "J": "0702020202120c",
    "K": "11121418141211",
    "L": "1010101010101f",
    "M": "111b1515111111",
    "N": "11111915131111",
    "O": "0e11111111110e",
    "P": "1e11111e101010",
    "Q": "0e11111115120d",
    "R": "1e11111e141211",
    "S": "0f10100e01011e",
    "T": "1f040404040404",
    "U": "1111111111110e",
    "V": "11111111110a04",
    "W": "1111111515150a",
    "X": "11110a040a1111",
    "Y": "1111110a040404",
    "Z": "1f01020408101f",
}


class Canvas:
    """A picture to draw on; later shapes cover earlier ones.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    background : (int, int, int)

    Examples
    --------
    >>> canvas = Canvas(64, 64, (255, 255, 255))
    >>> canvas.disc((32, 32), 20, PALETTE["blue"])
    >>> canvas.text((32, 32), "3", 21, (255, 255, 255))
    >>> canvas.image().shape
    (64, 64, 3)
    """

    def __init__(self, height: int, width: int, background: Colour):
        self.height, self.width = height, width
        self._pixels = np.empty((height, width, 3), np.float32)
        self._pixels[:] = background

    def polygon(self, points: Sequence[Point] | np.ndarray, colour: Colour) -> None:
        """Fill the closed polygon through ``points``.

        Along each line of samples every crossing of the outline adds +1 or -1 to all that lies to
        its right, shared exactly within its own pixel; the running sum is then 1 inside.
        """
        x, y = np.asarray(points, float).T
        top, bottom = max(floor(y.min()), 0), min(ceil(y.max()), self.height)
        left, right = max(floor(x.min()), 0), min(ceil(x.max()), self.width)
        if top >= bottom or left >= right:
            return
        height, width = bottom - top, right - left
        lines = top + (np.arange(height * _SUBROWS) + 0.5) / _SUBROWS
        x_next, y_next = np.roll(x, -1), np.roll(y, -1)
        down = (y_next[:, None] > lines).astype(np.int8) - (y[:, None] > lines)
        edge, line = np.nonzero(down)
        slope = (x_next[edge] - x[edge]) / (y_next[edge] - y[edge])
        crossing = np.clip(x[edge] + (lines[line] - y[edge]) * slope - left, 0, width)
        pixel = crossing.astype(int)
        share = (crossing - pixel) * down[edge, line]
        where = line // _SUBROWS * (width + 2) + pixel
        change = np.bincount(
            np.concatenate([where, where + 1]),
            np.concatenate([down[edge, line] - share, share]),
            height * (width + 2),
        )
        winding = change.reshape(height, -1).cumsum(axis=1)[:, :width] / _SUBROWS
        self._blend(top, left, np.minimum(np.abs(winding), 1), colour)

    def rectangle(self, corner: Point, width: float, height: float, colour: Colour) -> None:
        """Fill an upright rectangle whose top left corner is ``corner``."""
        top, rows = _overlap(corner[1], height, 1, self.height)
        left, columns = _overlap(corner[0], width, 1, self.width)
        self._blend(top, left, rows.T @ columns, colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """Fill a disc."""
        self.line(centre, centre, 2 * radius, colour)

    def line(self, a: Point, b: Point, width: float, colour: Colour) -> None:
        """Draw a straight line of ``width`` pixels with round ends."""
        along = np.arctan2(b[1] - a[1], b[0] - a[0])
        half_turn = along + np.linspace(np.pi / 2, 3 * np.pi / 2, 25)
        cap = width / 2 * np.stack([np.cos(half_turn), np.sin(half_turn)], axis=1)
        self.polygon(np.concatenate([np.asarray(a) + cap, np.asarray(b) - cap]), colour)

    def text(self, centre: Point, character: str, height: float, colour: Colour) -> None:
        """Write one digit or letter (A to Z) of ``height`` pixels; multiples of 7 are sharpest.

        Raises
        ------
        ValueError
            If ``character`` is not one digit or letter.
        """
        if character.upper() not in _GLYPHS:
            raise ValueError(f"{character!r} is not one digit or one letter from A to Z")
        code = np.frombuffer(bytes.fromhex(_GLYPHS[character.upper()]), np.uint8)
        dots = np.unpackbits(code[:, None], axis=1)[:, 3:]
        dot = height / 7
        top, rows = _overlap(centre[1] - 3.5 * dot, dot, 7, self.height)
        left, columns = _overlap(centre[0] - 2.5 * dot, dot, 5, self.width)
        self._blend(top, left, rows.T @ dots @ columns, colour)

    def image(self) -> np.ndarray:
        """Return the picture as a new array, (height, width, 3) uint8."""
        return np.rint(self._pixels).astype(np.uint8)

    def _blend(self, top: int, left: int, covered: np.ndarray, colour: Colour) -> None:
        height, width = covered.shape
        patch = self._pixels[top : top + height, left : left + width]
        patch += covered[:, :, None] * (np.asarray(colour, np.float32) - patch)


def _overlap(start: float, length: float, count: int, size: int) -> tuple[int, np.ndarray]:
    """Return how much of each pixel of a row is covered by intervals that lie end to end.

    Returns
    -------
    first : int, the first pixel of ``size`` that any interval reaches
    share : (count, pixels) from 0 to 1, for each interval of ``length`` pixels from ``start``
    """
    first, last = max(floor(start), 0), min(ceil(start + count * length), size)
    low = start + length * np.arange(count)[:, None] - np.arange(first, last)
    return first, np.clip(np.minimum(low + length, 1) - np.maximum(low, 0), 0, 1)
