"""Sizes of pictures: as stored, upright, and according to their annotations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssd.data.reading import TURNED

# EXIF orientations (EXIF 2.3, section 4.6.4) of pictures that are mirrored, after width and height have been swapped.
MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)


def stored(headers: np.ndarray) -> np.ndarray:
    """Width and height (N, 2) of pictures as they are stored, from their `Header`s (N, 4)."""
    return headers[:, 1::-1]


def upright(headers: np.ndarray) -> np.ndarray:
    """Width and height (N, 2) of upright pictures, from their `Header`s (N, 4)."""
    return np.where(np.isin(headers[:, 2:3], TURNED), headers[:, :2], stored(headers))


def turn_upright(edges: np.ndarray, headers: np.ndarray) -> np.ndarray:
    """Turns boxes in stored pictures as EXIF turns the pictures.

    Args:
        edges: (4, R) left, top, right and bottom edges in pixels of the stored pictures.
        headers: (R, 4) `Header` of the picture of each box.

    Returns:
        (4, R) edges in pixels of the upright pictures.
    """
    orientation, (width, height) = headers[:, 2], upright(headers).T
    x0, y0, x1, y1 = np.where(np.isin(orientation, TURNED), edges[[1, 0, 3, 2]], edges)
    x0, x1 = np.where(np.isin(orientation, MIRRORED), (width - x1, width - x0), (x0, x1))
    y0, y1 = np.where(np.isin(orientation, UPSIDE_DOWN), (height - y1, height - y0), (y0, y1))
    return np.stack([x0, y0, x1, y1])


class Comparison(NamedTuple):
    """Sizes of N pictures compared with those that their annotations give."""

    resized: np.ndarray  # (N,) bool, whether the picture was resized after it was annotated
    other: np.ndarray  # (N,) bool, whether the sizes differ in another way


def compare(given: np.ndarray, actual: np.ndarray) -> Comparison:
    """Compares sizes of annotations and pictures.

    A picture counts as resized if both sides have the same ratio, up to the rounding of each side to whole pixels.

    Args:
        given: (N, 2) width and height according to the annotation; zeros if it gives none.
        actual: (N, 2) width and height of the picture.
    """
    differs = (given > 0).all(1) & (given != actual).any(1)
    given = np.where(differs[:, None], given, actual)
    across, down = (actual / given).T
    alike = np.abs(across - down) <= (1 / given).sum(1)
    return Comparison(resized=differs & alike, other=differs & ~alike)
