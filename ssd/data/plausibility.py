"""Whether the numbers of boxes can be what the format says: in its unit, and edges inside of the pictures."""

from __future__ import annotations

import numpy as np

from ssd.data.annotations import Annotations

BEYOND = 0.02  # share of a side, in addition to 2 pixels, that a box may reach beyond its picture


def check_unit(read: Annotations, in_fractions: bool, format: str) -> None:
    """Raises ValueError if all boxes are in another unit than that of the format.

    Args:
        read: the annotations.
        in_fractions: whether the format has fractions of the picture, and not pixels.
        format: its name.
    """
    rows = np.flatnonzero(np.isfinite(read.boxes).all(1))
    largest = np.abs(read.boxes[rows]).max(1, initial=0)
    if not len(rows):
        return
    if in_fractions and largest.min() > 2:
        units = "pixels or percent", "fractions of the picture"
    elif not in_fractions and 0 < largest.max() <= 1:
        units = "fractions of the picture", "pixels"
    else:
        return
    file, box = _first(read, rows)
    raise ValueError(
        f"{file}: the boxes of all annotations look like {units[0]}, such as {box}, but {format} has {units[1]}: "
        "convert the boxes"
    )


def describe_other_unit(read: Annotations, in_fractions: bool, rows: np.ndarray) -> list[str]:
    """Says how many of the boxes that are left out look as if they were in pixels; nothing if none do.

    Args:
        read, in_fractions: see `check_unit`.
        rows: the rows of boxes that are left out.
    """
    rows = rows[np.abs(read.boxes[rows]).max(1, initial=0) > 2] if in_fractions else rows[:0]
    what = "boxes that look like pixels or percent instead of fractions, and are left out"
    return _describe(read, rows, what, "convert them")


def reaching_beyond(read: Annotations, edges: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Finds boxes that reach beyond their pictures.

    Such numbers are often the two corners in a format that has a corner and the size, or the corner and the size in one
    that has the centre and the size.

    Args:
        read: the annotations.
        edges: (4, R) float64, left, top, right and bottom edges in pixels; those of unusable boxes may be anything.
        height, width: (R,) size of their pictures in pixels.

    Returns:
        The rows of these boxes, (n,) int64.
    """
    size = np.stack([width, height])
    apart = (edges[:2] >= size).any(0) | (edges[2:] <= 0).any(0)  # outside of the picture, and reported as that
    beyond = (np.maximum(-edges[:2], edges[2:] - size) > BEYOND * size + 2).any(0)
    return np.flatnonzero(beyond & ~apart & np.isfinite(read.boxes).all(1))


def describe_beyond(read: Annotations, rows: np.ndarray) -> list[str]:
    """Says how many boxes reach beyond their pictures; nothing if there are none.

    Args:
        read: the annotations.
        rows: the result of `reaching_beyond`.
    """
    advice = "if they are many, check what the four numbers mean"
    return _describe(read, rows, "boxes that reach beyond their picture, and are cut", advice)


def _describe(read: Annotations, rows: np.ndarray, what: str, advice: str) -> list[str]:
    """Says how many of the boxes these are, and which is the first; nothing if there are none."""
    if not len(rows):
        return []
    file, box = _first(read, rows)
    return [f"{what}: {len(rows)} of {len(read.boxes)}, such as {box} in {file}; {advice}"]


def _first(read: Annotations, rows: np.ndarray) -> tuple[str, tuple[float, ...]]:
    """The file and the numbers of the first of these boxes."""
    picture = int(np.searchsorted(read.row_splits, rows[0], "right")) - 1
    return str(read.files[picture]), tuple(read.boxes[rows[0]].tolist())
