"""The canvas: areas, edges, letters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl_lib.envs.draw import Canvas

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def ink(canvas: Canvas) -> np.ndarray:
    """Return how much of each pixel of a white canvas is black, (H, W) from 0 to 1."""
    return 1 - canvas.image()[:, :, 0] / 255


def test_rectangle_shares_the_pixels_on_its_edge():
    canvas = Canvas(4, 6, WHITE)
    canvas.rectangle((1.5, 1.0), 2.0, 2.25, BLACK)
    expected = np.outer([0, 1, 1, 0.25], [0, 0.5, 1, 0.5, 0, 0])
    np.testing.assert_allclose(ink(canvas), expected, atol=1 / 255)


def test_polygon_equals_the_rectangle_with_its_corners():
    canvas = Canvas(4, 6, WHITE)
    canvas.polygon([(1.5, 1), (3.5, 1), (3.5, 3.25), (1.5, 3.25)], BLACK)
    expected = np.outer([0, 1, 1, 0.25], [0, 0.5, 1, 0.5, 0, 0])
    np.testing.assert_allclose(ink(canvas), expected, atol=1 / 255)


@given(st.lists(st.floats(0, 40), min_size=6, max_size=6))
def test_triangle_has_its_area_either_way_round(numbers):
    corners = np.array(numbers).reshape(3, 2)
    a, b = corners[1] - corners[0], corners[2] - corners[0]
    for points in (corners, corners[::-1]):
        canvas = Canvas(40, 40, WHITE)
        canvas.polygon(points, BLACK)
        # a line of samples every eighth of a pixel, and 8 bits a pixel
        assert ink(canvas).sum() == pytest.approx(abs(a[0] * b[1] - a[1] * b[0]) / 2, abs=3.0)


def test_disc_and_line_have_their_areas():
    canvas = Canvas(60, 60, WHITE)
    canvas.disc((30.3, 29.7), 20, BLACK)
    assert ink(canvas).sum() == pytest.approx(np.pi * 20**2, rel=0.005)
    canvas = Canvas(60, 60, WHITE)
    canvas.line((10, 12), (40, 52), 6, BLACK)
    assert ink(canvas).sum() == pytest.approx(50 * 6 + np.pi * 3**2, rel=0.005)
    assert ink(canvas)[32, 25] == 1


def test_what_lies_outside_is_left_out():
    canvas = Canvas(20, 30, WHITE)
    canvas.disc((-50, 10), 9, BLACK)
    canvas.rectangle((31, 2), 5, 5, BLACK)
    canvas.polygon([(0, 25), (30, 25), (15, 40)], BLACK)
    canvas.text((15, -30), "7", 14, BLACK)
    assert ink(canvas).sum() == 0
    canvas.disc((0, 0), 10, BLACK)
    assert ink(canvas).sum() == pytest.approx(np.pi * 10**2 / 4, rel=0.01)
    canvas.rectangle((-5, -5), 100, 100, BLACK)
    assert (ink(canvas) == 1).all()


def test_later_shapes_cover_earlier_ones():
    canvas = Canvas(10, 10, WHITE)
    canvas.rectangle((0, 0), 10, 10, (10, 20, 30))
    canvas.rectangle((2, 2), 4, 4, (200, 100, 0))
    image = canvas.image()
    assert image.dtype == np.uint8
    assert image[3, 3].tolist() == [200, 100, 0] and image[8, 8].tolist() == [10, 20, 30]
    image[:] = 0
    assert canvas.image()[3, 3].tolist() == [200, 100, 0]


def test_characters():
    def draw(character, height=7):
        canvas = Canvas(height, height, WHITE)
        canvas.text((height / 2, height / 2), character, height, BLACK)
        return ink(canvas)

    rows = ["".join(".#"[int(p)] for p in row[1:6]) for row in draw("4")]
    assert rows == ["...#.", "..##.", ".#.#.", "#..#.", "#####", "...#.", "...#."]
    np.testing.assert_array_equal(draw("r"), draw("R"))
    pictures = {draw(c).tobytes() for c in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    assert len(pictures) == 36
    # enlarged, a glyph is the same pattern without seams between its dots
    large = np.kron(draw("8")[:, 1:6], np.ones((3, 3)))
    np.testing.assert_allclose(draw("8", 21)[:, 3:18], large, atol=1 / 255)


@pytest.mark.parametrize("character", ["", "10", "é", "-"])
def test_other_characters_are_refused(character):
    with pytest.raises(ValueError, match="one digit or one letter"):
        Canvas(10, 10, WHITE).text((5, 5), character, 7, BLACK)
