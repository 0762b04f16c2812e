"""Plots of lines over steps."""

import math

import pytest

from ssd.reports.lines import POINTS, _round_up, line_plot


def points(line):
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_lines_reach_from_the_first_to_the_last_step():
    plot = line_plot("x", [10, 20, 30], {"a": [0.0, 2.0, 4.0], "b": [1.0, math.nan, 5.0], "none": []})
    assert (plot.first, plot.last, plot.top) == (10, 30, 5)
    assert points(plot.lines["a"]) == [(0, 100), (50, 60), (100, 20)]
    assert points(plot.lines["b"]) == [(0, 80), (100, 0)]
    assert list(plot.lines) == ["a", "b"]


def test_high_values_are_cut_and_long_lines_are_means():
    values = [1e6] + [1.0, 3.0] * 2000
    plot = line_plot("x", range(1, 4002), {"a": values})
    assert plot.top == 3
    line = points(plot.lines["a"])
    assert len(line) == POINTS
    assert line[0] == (0, 0)
    assert (line[-1][0], round(line[-1][1])) == (100, 33)  # a mean of 2


def test_nothing_to_draw():
    assert line_plot("x", [], {"a": []}) is None
    assert line_plot("x", [1, 2], {"a": [math.nan, 1.0]}) is None
    assert line_plot("x", [1, 2], {"a": [0.0, 0.0]}).top == 1


@pytest.mark.parametrize(("value", "top"), [(0.031, 0.05), (0.3, 0.3), (1.0, 1), (8.0, 10), (120, 150)])
def test_the_top_is_a_round_number(value, top):
    assert _round_up(value) == pytest.approx(top)
