"""Cuts large pictures into tiles, for detection and for training; docs/semantics.md, "Tiles", has the rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssd.options import OVERLAP, an_overlap
from ssd.runtime.packed import Packed
from ssd_ext._checks import check_value

View = tuple[int, int, int, int]  # edges x0, y0, x1, y1 of a part of a picture, in pixels


def check_tiles(tiles: int | None, overlap: float) -> None:
    """Raises ValueError unless these can be `tiles` and `overlap` of `ssd.Detector`."""
    if tiles is not None and tiles < 0:
        raise ValueError(f"tiles must be a side in pixels, or 0 for the input size of the network, got {tiles}")
    check_value("overlap", overlap, an_overlap)


def views(width: int, height: int, size: int, overlap: float = OVERLAP) -> list[View]:
    """Returns the parts of a picture that the network sees: the tiles, row by row, and at last the whole picture.

    Args:
        width, height: size of the picture in pixels.
        size: side of a tile in pixels, at least 1.
        overlap: least overlap of neighbouring tiles, as a fraction of their side, in [0, 1).

    Returns:
        The tiles are `size` pixels wide and high, or as wide or high as the picture if that is less. If one tile covers
        the picture, only the whole picture is returned.
    """
    across, down = (_starts(length, size, overlap) for length in (width, height))
    tiles = [(x, y, min(x + size, width), min(y + size, height)) for y in down for x in across]
    return [*(tiles if len(tiles) > 1 else ()), (0, 0, width, height)]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """The first pixels of tiles that cover a side of a picture, at equal distances."""
    gaps = -(-max(0, length - size) // max(1, int(size * (1 - overlap))))  # rounded up
    return [i * (length - size) // gaps for i in range(gaps + 1)] if gaps else [0]


def in_views(objects: Packed[dict[str, Any]], parts: Tensor) -> Packed[dict[str, Any]]:
    """Converts the objects of pictures to those of parts of them.

    Args:
        objects: for each of N pictures "boxes" (n, 4) float32 xyxy in pixels, "areas" (n,), "crowd" (n,) bool, and
            other columns.
        parts: (N, 4) int64 xyxy, the part of each picture.

    Returns:
        The objects whose centre is in the part, and the crowds that overlap it, with boxes cut at its edges, in pixels
        of the part, and with the areas of what is left of them.
    """
    boxes = objects.columns["boxes"]
    low, high = parts.to(boxes.dtype).repeat_interleave(objects.counts, 0).split(2, dim=1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cut = torch.cat([torch.maximum(boxes[:, :2], low), torch.minimum(boxes[:, 2:], high)], 1)
    left = (cut[:, 2:] - cut[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    columns = {**objects.columns, "boxes": cut - torch.cat([low, low], 1), "areas": objects.columns["areas"] * left}
    inside = ((low <= centres) & (centres < high)).all(1)
    inside |= objects.columns["crowd"] & (cut[:, 2:] > cut[:, :2]).all(1)
    return Packed(columns, objects.row_splits, objects.of_images).where(inside)
