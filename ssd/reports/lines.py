"""Plots of lines over steps, for the SVG of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssd.drawing import running_mean

POINTS = 300  # of a line


class LinePlot(NamedTuple):
    """Lines in a square of 100 x 100 whose y axis points down, from the smallest to the largest step."""

    name: str
    lines: dict[str, str]  # for each name, the points of a polyline
    top: float  # the value at the top; the bottom is 0
    first: int  # the steps at the left and at the right edge
    last: int


def line_plot(name: str, steps: Sequence[float], lines: Mapping[str, Sequence[float]]) -> LinePlot | None:
    """Lays out lines over steps.

    Lines of many points are shown as running means. The top is a round number that is not far above the 99th
    percentile, since single high values, such as the first losses, would flatten the lines.

    Args:
        name: the title of the plot.
        steps: sorted, n numbers.
        lines: for each name n values of at least 0, or none; those that are not finite are left out.

    Returns:
        The plot, or None if there are less than two finite values.
    """
    xs = np.asarray(steps, float)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    finite = []
    for each, values in lines.items():
        ys = np.asarray(values, float)
        if len(ys) == len(xs):
            ys = running_mean(ys) if len(ys) > POINTS else ys
            places = np.flatnonzero(np.isfinite(ys))
            places = places[np.unique(np.linspace(0, len(places) - 1, min(POINTS, len(places))).astype(int))]
            if len(places) > 1:
                finite.append(np.asarray(values, float)[np.isfinite(values)])
                found[each] = xs[places], ys[places]
    if not found:
        return None
    top = _round_up(float(np.percentile(np.concatenate(finite), 99)))
    width = max(1.0, float(xs[-1] - xs[0]))

    def points(xs_of: np.ndarray, ys: np.ndarray) -> str:
        pairs = zip(100 * (xs_of - xs[0]) / width, 100 - 100 * (ys / top).clip(0, 1), strict=True)
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in pairs)

    drawn = {each: points(*line) for each, line in found.items()}
    return LinePlot(name, drawn, top, int(xs[0]), int(xs[-1]))


def _round_up(value: float) -> float:
    """The smallest number of the form 1, 1.5, 2, 3, 5 or 7 times a power of ten that is at least a value; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(round(power * digit, 12) for digit in (1, 1.5, 2, 3, 5, 7, 10) if power * digit >= value * (1 - 1e-9))
