"""The boxes around shapes that are not upright rectangles; (left, top, right, bottom), y points down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ssd.data.annotations import NO_BOX

Box = tuple[float, ...]  # four edges


def around(points: Iterable[Sequence[float]]) -> Box:
    """The box around points (x, y), in any order; `NO_BOX` if there are none, or one is not finite."""
    listed = list(points)
    if not listed or not all(math.isfinite(value) for point in listed for value in point):
        return NO_BOX
    xs, ys = zip(*listed, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def around_rectangle(box: Box, degrees: float, about: tuple[float, float]) -> Box:
    """The box around a rectangle that is turned clockwise about a point."""
    x0, y0, x1, y1 = box
    if not degrees:
        return around([(x0, y0), (x1, y1)])
    if not math.isfinite(degrees):
        return NO_BOX
    (x, y), cos, sin = about, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(u - x, v - y) for u in (x0, x1) for v in (y0, y1)]
    return around((x + u * cos - v * sin, y + u * sin + v * cos) for u, v in corners)


def around_ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Box:
    """The box around an ellipse that is turned about its centre."""
    if not math.isfinite(degrees):
        return NO_BOX
    (x, y), (a, b) = centre, radii
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)
    return around([(x - u, y - v), (x + u, y + v)])
