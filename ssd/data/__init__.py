"""Pictures with boxes, for training and evaluation.

Pixel coordinates in this package: a picture spans 0..width and 0..height, and a box is given by its edges.
Pictures are upright, as viewers and labelling tools show them: the EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ssd.data.annotations import Dropped, UnknownClassError
from ssd.data.archives import folders_of
from ssd.data.augmentation import TrainTransform
from ssd.data.coco import COCODataset
from ssd.data.createml import CreateMLDataset
from ssd.data.csv_datasets import CSVDataset, OpenImagesDataset, XMLToCSVDataset
from ssd.data.cvat import CVATDataset
from ssd.data.dataset import BoxDataset
from ssd.data.depth import Levels
from ssd.data.folder import Folder, Root
from ssd.data.foreign import describe_foreign
from ssd.data.label_studio import LabelStudioDataset
from ssd.data.labelme import LabelMeDataset
from ssd.data.reading import ImageReadError, PictureFile, read_image
from ssd.data.torchvision_recipe import v2_transform
from ssd.data.via import VIADataset
from ssd.data.video import Video, VideoReadError
from ssd.data.voc import VOCDataset
from ssd.data.webdataset import WebDataset
from ssd.data.yolo import YOLODataset
from ssd.options import ReadOptions

__all__ = [
    "AUGMENTATIONS",
    "BoxDataset",
    "COCODataset",
    "CSVDataset",
    "CVATDataset",
    "CreateMLDataset",
    "Dropped",
    "ImageReadError",
    "LabelMeDataset",
    "LabelStudioDataset",
    "OpenImagesDataset",
    "PictureFile",
    "ReadOptions",
    "UnknownClassError",
    "VIADataset",
    "VOCDataset",
    "Video",
    "VideoReadError",
    "WebDataset",
    "XMLToCSVDataset",
    "YOLODataset",
    "list_splits",
    "open_dataset",
    "read_image",
    "v2_transform",
]

#: The choices of `ssd train --augment` by name: functions of the size of the network's input in pixels, and of `flips`,
#: that make a transform for `BoxDataset`.
AUGMENTATIONS: dict[str, Callable[..., Callable[..., Any]]] = {
    "ssd": TrainTransform,
    "mild": partial(TrainTransform, largest_zoom=2.0, least_area=0.3),
    "v2": v2_transform,
}
TABLES = (CSVDataset, XMLToCSVDataset, OpenImagesDataset)  # are often made from files of the other formats
FORMATS = (
    *(
        VOCDataset,
        YOLODataset,
        COCODataset,
        LabelMeDataset,
        VIADataset,
        LabelStudioDataset,
        CVATDataset,
        CreateMLDataset,
        WebDataset,
    ),
    *TABLES,
)


def open_dataset(
    roots: Root | Sequence[Root],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    transform: Callable[..., Any] | None = None,
    *,
    keep_crowds: bool = False,
    options: ReadOptions = ReadOptions(),
    levels: Levels | None = None,
) -> BoxDataset:
    """Opens folders in the layout of one of `FORMATS`, which is detected from the first folder.

    Args:
        roots, split, classes, transform, keep_crowds, options, levels: see `BoxDataset`.

    Returns:
        A dataset of (image, target), see `BoxDataset`.

    Raises:
        FileNotFoundError: a folder, a split, an annotation or a picture is missing, or the folder has no known layout.
        ImageReadError, ValueError: see `BoxDataset`.

    Examples:
        >>> from ssd.data import open_dataset
        >>> from ssd.data.shapes import write_shapes
        >>> folder = write_shapes("shapes", n_train=2, n_test=1, size=(96, 64))
        >>> train = open_dataset(folder, "train")
        >>> train.FORMAT, len(train), train.classes
        ('Pascal VOC', 2, ('circle', 'square', 'triangle'))
        >>> test = open_dataset(folder, "test", classes=train.classes)  # labels mean the same in both
    """
    folders = folders_of(roots)
    kind = _format_of(folders[0])
    for folder in folders[1:]:
        if (other := _format_of(folder)) is not kind:
            raise ValueError(
                f"{folders[0].path} is in the format of {kind.FORMAT} and {folder.path} in that of {other.FORMAT}; "
                "write one of them in the format of the other with ssd convert-data"
            )
    return kind(folders, split, classes, transform, keep_crowds=keep_crowds, options=options, levels=levels)


def list_splits(root: Root) -> list[str]:
    """Lists the splits of a folder.

    Args:
        root: the folder or tar archive, see `BoxDataset`.

    Returns:
        Their names, sorted; empty if there are none.

    Raises:
        FileNotFoundError: the folder is missing or has no known layout.
        ValueError: the folder has two layouts.

    Examples:
        >>> from ssd.data import list_splits
        >>> from ssd.data.shapes import write_shapes
        >>> list_splits(write_shapes("shapes", n_train=2, n_test=1, size=(96, 64)))
        ['test', 'train']
    """
    (folder,) = folders_of(root)
    return _format_of(folder).splits(folder)


def _format_of(folder: Folder) -> type[BoxDataset]:
    """Finds the format of a folder.

    Raises:
        FileNotFoundError: the folder has no known layout.
        ValueError: it has two.
    """
    claims = {format: claim for format in FORMATS if (claim := format.claim(folder))}
    claims = {format: claim for format, claim in claims.items() if format not in TABLES} or claims
    if not claims:
        raise FileNotFoundError(_without_annotations(folder))
    if len(claims) > 1:
        raise ValueError(
            f"{folder.root}: holds two data sets, {' and '.join(claims.values())}: name the file or the folder of one, "
            "or move the other away"
        )
    return next(iter(claims))


def _without_annotations(folder: Folder) -> str:
    """Says that no annotations were found in a folder, and what to do."""
    if folder.pictures:
        first = f"{len(folder.pictures)} pictures, but no annotations were found ({folder.contents()})."
        remedy = "Label the objects first (docs/ten_minutes.md), or find objects without training (ssd detect). "
    else:
        first, remedy = f"no annotated pictures were found; the folder has {folder.contents()}.", ""
    layouts = "".join(f"\n  {format.FORMAT}: {format.LAYOUT}" for format in FORMATS)
    last = describe_foreign(folder) or f"{remedy}The layouts that are read:{layouts}"
    return f"{folder.path}: {first} {last}"
