"""Boxes around turned and round shapes."""

import math

import pytest

from ssd.data.outlines import around, around_ellipse, around_rectangle


def test_points_in_any_order():
    assert around([(5, 1), (2, 7), (3, 3)]) == (2, 1, 5, 7)


def test_a_rectangle_turns_clockwise_on_the_screen():
    # About its left top corner, by a quarter: the right top corner comes to lie below.
    assert around_rectangle((10, 20, 40, 30), 90, (10, 20)) == pytest.approx((0, 20, 10, 50))
    # About its centre, by an eighth: both half diagonals of a square point along the axes.
    half = math.sqrt(2)
    assert around_rectangle((0, 0, 2, 2), 45, (1, 1)) == pytest.approx((1 - half, 1 - half, 1 + half, 1 + half))


def test_the_box_of_an_ellipse_touches_it():
    degrees, (a, b) = 30, (5, 2)
    box = around_ellipse((10, 20), (a, b), degrees)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    steps = [math.tau * i / 10_000 for i in range(10_000)]
    points = [(a * math.cos(t), b * math.sin(t)) for t in steps]
    rim = around((10 + u * cos - v * sin, 20 + u * sin + v * cos) for u, v in points)
    assert box == pytest.approx(rim, abs=1e-5)


@pytest.mark.parametrize(
    "box",
    [
        around([]),
        around([(1, 2), (math.nan, 3)]),
        around_rectangle((0, 0, 1, 1), math.inf, (0, 0)),
        around_ellipse((0, 0), (1, 1), math.nan),
    ],
)
def test_what_is_not_finite_has_no_box(box):
    assert all(map(math.isnan, box))
