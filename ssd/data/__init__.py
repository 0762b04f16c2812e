"""Pictures with boxes, for training and evaluation.

Pixel convention, everywhere in this package: the picture spans 0..width and 0..height, and a box is given by its edges.
Pictures come upright, as viewers and labelling tools show them: the EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ssd.data.augmentation import TrainTransform
from ssd.data.reading import ImageReadError, PictureFile, read_image
from ssd.data.torchvision_recipe import v2_transform
from ssd.data.voc import Dropped, VOCDataset

__all__ = [
    "AUGMENTATIONS",
    "Dropped",
    "ImageReadError",
    "PictureFile",
    "VOCDataset",
    "list_splits",
    "open_dataset",
    "read_image",
]

AUGMENTATIONS = {"ssd": TrainTransform, "v2": v2_transform}  # by the names of `ssd train --augment`
FORMATS = (VOCDataset,)  # each a class with the constructor, `holds`, `splits`, `pictures` and `dropped` of this one


def open_dataset(
    roots: str | PathLike[str] | Sequence[str | PathLike[str]],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    transform: Callable[..., Any] | None = None,
) -> VOCDataset:
    """Opens folders of one of `FORMATS`, which the first folder decides.

    Args:
        roots, split, classes, transform: see `VOCDataset`.

    Returns:
        dataset of (image, target), see `VOCDataset`.

    Raises:
        FileNotFoundError, ImageReadError, ValueError: see `VOCDataset`.
    """
    roots = [roots] if isinstance(roots, (str, PathLike)) else list(roots)
    return _format_of(roots[0])(roots, split, classes, transform)


def list_splits(root: str | PathLike[str]) -> list[str]:
    """The names of a folder's splits, sorted; empty if it has none."""
    return _format_of(root).splits(Path(root))


def _format_of(root: str | PathLike[str]) -> type[VOCDataset]:
    return next((f for f in FORMATS if f.holds(Path(root))), FORMATS[0])  # which says what it misses there
