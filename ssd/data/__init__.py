"""Pictures with boxes, for training and evaluation.

Pixel coordinates in this package: a picture spans 0..width and 0..height, and a box is given by its edges.
Pictures are upright, as viewers and labelling tools show them: the EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from ssd.data.augmentation import TrainTransform
from ssd.data.coco import COCODataset
from ssd.data.dataset import BoxDataset, Dropped, UnknownClassError
from ssd.data.reading import ImageReadError, PictureFile, read_image
from ssd.data.torchvision_recipe import v2_transform
from ssd.data.voc import VOCDataset
from ssd.data.yolo import YOLODataset

__all__ = [
    "AUGMENTATIONS",
    "BoxDataset",
    "COCODataset",
    "Dropped",
    "ImageReadError",
    "PictureFile",
    "UnknownClassError",
    "VOCDataset",
    "YOLODataset",
    "list_splits",
    "open_dataset",
    "read_image",
]

AUGMENTATIONS: dict[str, Callable[..., Callable[..., Any]]] = {  # the choices of `ssd train --augment`
    "ssd": TrainTransform,
    "mild": partial(TrainTransform, largest_zoom=2.0, least_area=0.3),
    "v2": v2_transform,
}
FORMATS = (VOCDataset, YOLODataset, COCODataset)  # a folder is read by the first one whose `holds` accepts it


def open_dataset(
    roots: str | PathLike[str] | Sequence[str | PathLike[str]],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    transform: Callable[..., Any] | None = None,
    *,
    keep_crowds: bool = False,
) -> BoxDataset:
    """Opens folders in the layout of one of `FORMATS`, which is detected from the first folder.

    Args:
        roots, split, classes, transform, keep_crowds: see `BoxDataset`.

    Returns:
        A dataset of (image, target), see `BoxDataset`.

    Raises:
        FileNotFoundError: a folder, a split, an annotation or a picture is missing, or the folder has no known layout.
        ImageReadError, ValueError: see `BoxDataset`.
    """
    roots = [roots] if isinstance(roots, (str, PathLike)) else list(roots)
    return _format_of(Path(roots[0]))(roots, split, classes, transform, keep_crowds=keep_crowds)


def list_splits(root: str | PathLike[str]) -> list[str]:
    """Lists the names of a folder's splits, sorted; empty if it has none.

    Raises:
        FileNotFoundError: the folder is missing or has no known layout.
    """
    return _format_of(Path(root)).splits(Path(root))


def _format_of(root: Path) -> type[BoxDataset]:
    found = next((format for format in FORMATS if format.holds(root)), None)
    if found is None and not root.exists():
        raise FileNotFoundError(f"{root}: no such folder")
    if found is None:
        layouts = "; ".join(f"{format.FORMAT} ({format.LAYOUT})" for format in FORMATS)
        raise FileNotFoundError(f"{root}: holds no data set in one of the known layouts: {layouts}")
    return found
