"""Datasets in Pascal VOC layout.

VOC files count pixels from 1 and include the last one, so a box written (xmin, ymin, xmax, ymax) has the edges
(xmin - 1, ymin - 1, xmax, ymax). Files of other tools are read in the same way; where those count from 0, as LabelImg
does, boxes reach one pixel further to the left and to the top than drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ssd.data.augmentation import PictureTransform
from ssd.data.reading import SUFFIXES, PictureFile


class Dropped(NamedTuple):
    """An annotated object that no detector can learn from and the reader left out."""

    path: Path  # the XML file
    index: int  # position among the <object> elements of the file, from 0
    name: str
    box: tuple[float, float, float, float]  # as written in the file
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: object {self.index} ({self.name}, {self.box}) left out: {self.reason}"


class _Sample(NamedTuple):
    picture: PictureFile
    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,)
    difficult: Tensor  # (n,)


def _read_annotation(path: Path) -> tuple[str, list[tuple[str, tuple[float, ...], bool]]]:
    """The picture's file name and the objects (name, box as written, difficult) of one XML file."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: broken XML ({error})") from error
    objects = []
    for index, node in enumerate(root.findall("object")):
        try:
            name = node.find("name").text.strip()
            box = tuple(float(node.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"{path}: object {index} lacks a <name> or a <bndbox> of four numbers") from None
        objects.append((name, box, node.findtext("difficult", "0").strip() == "1"))
    return (root.findtext("filename") or "").strip(), objects


def _box_fault(box: Sequence[float], height: int, width: int) -> str | None:
    """Why a box as written in a file is unusable, or None."""
    xmin, ymin, xmax, ymax = box
    if not all(map(math.isfinite, box)):
        return "not finite"
    if xmax <= xmin or ymax <= ymin:
        return "no width or height"
    if xmin > width or ymin > height or xmax < 1 or ymax < 1:  # counted from 1
        return f"outside the picture of {width} x {height}"
    return None


def _edges(box: Sequence[float], height: int, width: int) -> tuple[float, ...]:
    """The edges of a box as written in a file, clipped to the picture."""
    xmin, ymin, xmax, ymax = box
    return max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, width), min(ymax, height)


class _Folder:
    """One folder in VOC layout: which annotations it holds and which picture belongs to each."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("Annotations", "JPEGImages"):
            if not (root / name).is_dir():
                raise FileNotFoundError(f"{root / name}: no such folder, as Pascal VOC has it")
        names = [path.name for path in (root / "JPEGImages").iterdir()]
        # found whatever the case of letters, but an exact name wins
        self.pictures = {name.lower(): name for name in names} | {name: name for name in names}

    def annotations(self, split: str | None) -> list[Path]:
        if split is None:
            return sorted((self.root / "Annotations").glob("*.xml"))
        listed = self.root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            splits = VOCDataset.splits(self.root) or "none (None takes all annotations)"
            raise FileNotFoundError(f"{listed}: no such split; there are: {splits}")
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
        paths = [self.root / "Annotations" / f"{line.split()[0]}.xml" for line in lines if line.strip()]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, yet {listed} lists it")
        return paths

    def picture(self, annotation: Path, filename: str) -> Path:
        filename = filename.replace("\\", "/").rpartition("/")[2]  # some tools write a path
        for name in (filename, *(annotation.stem + suffix for suffix in SUFFIXES)):
            found = self.pictures.get(name) or self.pictures.get(name.lower())
            if found:
                return self.root / "JPEGImages" / found
        missing = self.root / "JPEGImages" / (filename or f"{annotation.stem}.jpg")
        raise FileNotFoundError(f"{missing}: no such picture, yet {annotation} describes it")


class VOCDataset(Dataset):
    """Pictures with boxes from folders in Pascal VOC layout (Annotations, JPEGImages, ImageSets/Main).

    All annotations are read and checked at construction, and the size of a picture is taken from the picture.
    Boxes are clipped to it; objects whose box has no width or height, is not finite or lies outside of it are
    left out and listed in `dropped`. Pictures without objects are kept.

    Args:
        roots: a folder or several, whose pictures are joined in this order.
        split: name of a list in ImageSets/Main, such as "trainval"; None takes all annotations.
        classes: names of the classes; label i is classes[i - 1] and 0 is the background. None takes the names
            found in these annotations, sorted; give a test set the classes of the training set.
        transform: called as transform(image, target); a `PictureTransform` gets the picture file for an image, and
            decodes what it wants of it.
        keep_difficult: whether targets include objects marked as difficult.

    Attributes:
        classes: tuple of names, without the background.
        pictures: list with the path of each picture.
        counts: dict with the number of objects of each class.
        dropped: list of `Dropped`.

    Raises:
        FileNotFoundError: a folder, a split, a listed annotation or a picture is missing.
        ImageReadError: the header of a picture is unreadable.
        ValueError: an annotation is broken or has a class that is not in `classes`, or there are none.
    """

    def __init__(
        self,
        roots: str | PathLike | Iterable[str | PathLike],
        split: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[..., Any] | None = None,
        keep_difficult: bool = True,
    ):
        folders = [_Folder(Path(root)) for root in ([roots] if isinstance(roots, (str, PathLike)) else roots)]
        entries = [(path, folder, *_read_annotation(path)) for folder in folders for path in folder.annotations(split)]
        if not entries:
            raise ValueError(f"no annotations in {[str(folder.root) for folder in folders]}, split {split!r}")
        if classes is None:
            classes = sorted({name for *_, objects in entries for name, _, _ in objects})
        self.classes = tuple(classes)
        self.transform = transform
        self.dropped: list[Dropped] = []
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        if len(labels) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        self._samples = []
        for path, folder, filename, objects in entries:
            picture = PictureFile(folder.picture(path, filename))
            height, width = picture.height, picture.width
            kept = []
            for index, (name, box, difficult) in enumerate(objects):
                if name not in labels:
                    raise ValueError(f"{path}: unknown class {name!r}; the classes are {self.classes}")
                if fault := _box_fault(box, height, width):
                    self.dropped.append(Dropped(path, index, name, box, fault))
                elif keep_difficult or not difficult:
                    kept.append((_edges(box, height, width), labels[name], difficult))
            self._samples.append(
                _Sample(
                    picture=picture,
                    boxes=torch.tensor([box for box, _, _ in kept], dtype=torch.float32).reshape(-1, 4),
                    labels=torch.tensor([label for _, label, _ in kept], dtype=torch.int64),
                    difficult=torch.tensor([difficult for _, _, difficult in kept], dtype=torch.bool),
                )
            )

    @staticmethod
    def holds(folder: Path) -> bool:
        """Whether a folder looks like this format."""
        return (folder / "Annotations").is_dir()

    @staticmethod
    def splits(folder: Path) -> list[str]:
        """Sorted names of the lists in ImageSets/Main; empty if there is no such folder."""
        return sorted(path.stem for path in (folder / "ImageSets" / "Main").glob("*.txt"))

    @property
    def pictures(self) -> list[Path]:
        return [sample.picture.path for sample in self._samples]

    @property
    def counts(self) -> dict[str, int]:
        """The number of objects of each class."""
        labels = torch.cat([sample.labels for sample in self._samples])
        return dict(zip(self.classes, labels.bincount(minlength=len(self.classes) + 1)[1:].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        """One picture and its objects, through `transform` if there is one.

        Returns:
            image: tv_tensors.Image (3, H, W) uint8.
            target: "boxes" tv_tensors.BoundingBoxes (n, 4) float32 xyxy in pixels, "labels" (n,) int64 in
                1..len(classes), "difficult" (n,) bool.

        Raises:
            ImageReadError: the picture is damaged or cut short; the message names it.
        """
        picture, *columns = self._samples[index]
        target = dict(zip(("boxes", "labels", "difficult"), (c.clone() for c in columns), strict=True))
        if isinstance(self.transform, PictureTransform):
            return self.transform(picture, target)
        size = picture.height, picture.width
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        image = tv_tensors.Image(picture.pixels())
        return self.transform(image, target) if self.transform else (image, target)
