"""What the data sets of all formats have in common: checks, what is left out, samples."""

from __future__ import annotations

import math
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ssd.data.augmentation import PictureTransform
from ssd.data.reading import PictureFile
from ssd.data.text import printable


class Object(NamedTuple):
    """An object as a file describes it."""

    index: int  # position in its file, from 0
    name: str  # of its class
    box: tuple[float, ...]  # four numbers, as the format has them
    difficult: bool = False  # counts neither way in evaluation
    crowd: bool = False  # many objects in one box: to learn from it as one would be wrong
    area: float | None = None  # in square pixels, where the file has it


class Entry(NamedTuple):
    """A picture and what a file says of it."""

    annotation: Path
    picture: Path
    objects: list[Object]
    image_id: Any = None  # where the format numbers its pictures


class Dropped(NamedTuple):
    """An annotated object that no detector can learn from and the reader left out."""

    path: Path  # the file of the annotation
    index: int  # position among the objects of the file, from 0
    name: str
    box: tuple[float, ...]  # as written in the file
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path}: object {self.index} ({self.name}, {self.box}) left out: {self.reason}")


class UnknownClassError(ValueError):
    """An annotation has a class that is not among those given."""


class _Sample(NamedTuple):
    annotation: Path
    image_id: Any
    picture: PictureFile
    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,)
    difficult: Tensor  # (n,)
    areas: Tensor  # (n,)


class BoxDataset(ABC, Dataset):
    """Pictures with boxes, from folders of one format.

    All annotations are read and checked at construction, and the size of a picture is taken from the picture.
    Boxes are clipped to it; objects whose box has no width or height, is not finite or lies outside of it are
    left out and listed in `dropped`. Pictures without objects are kept.

    Args:
        roots: a folder or several, whose pictures are joined in this order.
        split: one of `splits`, such as "trainval"; None takes all that is not in splits, or all of them.
        classes: names of the classes; label i is classes[i - 1] and 0 is the background. None takes the names
            that the annotations have; give a test set the classes of the training set.
        transform: called as transform(image, target); a `PictureTransform` gets the picture file for an image, and
            decodes what it wants of it.
        keep_difficult: whether targets include objects marked as difficult.
        keep_crowds: whether they include, as difficult ones, boxes around many objects: for evaluation, which ignores
            what is found there.

    Attributes:
        classes: tuple of names, without the background.
        pictures: list with the path of each picture.
        counts: dict with the number of objects of each class.
        dropped: list of `Dropped`.

    Raises:
        FileNotFoundError: a folder, a split, an annotation or a picture is missing.
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
        keep_crowds: bool = False,
    ):
        roots = [Path(root) for root in ([roots] if isinstance(roots, (str, PathLike)) else roots)]
        entries = [entry for root in roots for entry in self._entries(root, split)]
        if not entries:
            raise ValueError(f"no annotations in {[str(root) for root in roots]}, split {split!r}")
        self.classes = tuple(self._names(roots, split, entries) if classes is None else classes)
        self.transform = transform
        self.dropped: list[Dropped] = []
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        if len(labels) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        for name in self.classes:  # which tables, lists and terminals could not show
            if any(unicodedata.category(character) == "Cc" for character in name):
                raise ValueError(f"{roots[0]}: the name of a class has a control character: {name!r}")
        self._samples = []
        for annotation, path, objects, image_id in entries:
            picture = PictureFile(path)
            height, width = picture.height, picture.width
            kept = []
            for index, name, box, difficult, crowd, area in objects:
                if name not in labels:
                    raise UnknownClassError(f"{annotation}: unknown class {name!r}; the classes are {self.classes}")
                fault = self._fault(box, height, width) if all(map(math.isfinite, box)) else "not finite"
                if fault:
                    self.dropped.append(Dropped(annotation, index, name, box, fault))
                elif keep_crowds if crowd else keep_difficult or not difficult:
                    x0, y0, x1, y1 = self._edges(box, height, width)
                    edges = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
                    if area is None:
                        area = (edges[2] - edges[0]) * (edges[3] - edges[1])
                    kept.append((edges, labels[name], difficult or crowd, area))
            edges, its_labels, difficult, areas = zip(*kept, strict=True) if kept else ((),) * 4
            self._samples.append(
                _Sample(
                    annotation=annotation,
                    image_id=image_id,
                    picture=picture,
                    boxes=torch.tensor(edges, dtype=torch.float32).reshape(-1, 4),
                    labels=torch.tensor(its_labels, dtype=torch.int64),
                    difficult=torch.tensor(difficult, dtype=torch.bool),
                    areas=torch.tensor(areas, dtype=torch.float64),
                )
            )

    @staticmethod
    @abstractmethod
    def holds(folder: Path) -> bool:
        """Whether a folder looks like this format."""

    @staticmethod
    @abstractmethod
    def splits(folder: Path) -> list[str]:
        """Sorted names of its parts, such as "train" and "val"; empty if it has none."""

    @staticmethod
    @abstractmethod
    def _entries(root: Path, split: str | None) -> list[Entry]:
        """All pictures of a folder, or of one of its splits."""

    @staticmethod
    @abstractmethod
    def _edges(box: Sequence[float], height: int, width: int) -> tuple[float, ...]:
        """Left, top, right and bottom edge of a box as written, in pixels; may lie outside of the picture."""

    @classmethod
    def _fault(cls, box: Sequence[float], height: int, width: int) -> str | None:
        """Why a box of finite numbers as written in a file is unusable, or None."""
        x0, y0, x1, y1 = cls._edges(box, height, width)
        if x1 <= x0 or y1 <= y0:
            return "no width or height"
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            return f"outside the picture of {width} x {height}"
        return None

    @classmethod
    def _names(cls, roots: Sequence[Path], split: str | None, entries: Sequence[Entry]) -> Sequence[str]:
        """The names of the classes where none are given: those found, sorted."""
        return sorted({obj.name for entry in entries for obj in entry.objects})

    @property
    def pictures(self) -> list[Path]:
        return [sample.picture.path for sample in self._samples]

    @property
    def counts(self) -> dict[str, int]:
        """The number of objects of each class."""
        labels = torch.cat(self.labels)
        return dict(zip(self.classes, labels.bincount(minlength=len(self.classes) + 1)[1:].tolist(), strict=True))

    @property
    def boxes(self) -> list[Tensor]:
        """The boxes (n, 4) xyxy of each picture, in fractions of it."""
        return [s.boxes / torch.tensor([s.picture.width, s.picture.height] * 2) for s in self._samples]

    @property
    def labels(self) -> list[Tensor]:
        """The labels (n,) of the objects of each picture."""
        return [sample.labels for sample in self._samples]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each picture in pixels."""
        return [(sample.picture.width, sample.picture.height) for sample in self._samples]

    @property
    def truths(self) -> list[dict[str, Any]]:
        """What evaluation needs to know of each picture, which is not read for it.

        "boxes" (n, 4) float32 xyxy in pixels, "labels" (n,) int64, "difficult" (n,) bool, "areas" (n,) float64 in
        square pixels, as the file has them, or else those of the boxes; and "image_id", if the file has whole numbers.
        """
        truths = []
        for sample in self._samples:
            truth = {name: getattr(sample, name) for name in ("boxes", "labels", "difficult", "areas")}
            truths.append(truth | ({"image_id": sample.image_id} if isinstance(sample.image_id, int) else {}))
        return truths

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
        sample = self._samples[index]
        picture = sample.picture
        target = {name: getattr(sample, name).clone() for name in ("boxes", "labels", "difficult")}
        if isinstance(self.transform, PictureTransform):
            return self.transform(picture, target)
        size = picture.height, picture.width
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        image = tv_tensors.Image(picture.pixels())
        return self.transform(image, target) if self.transform else (image, target)
