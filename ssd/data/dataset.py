"""What the data sets of all formats have in common: checks, what is left out, samples.

Nothing is kept as a Python object for each picture: hundreds of thousands of them would take gigabytes, and a loader's
workers, which look at them, would each get a copy of their own.
"""

from __future__ import annotations

import copy
import json
import math
import os
import unicodedata
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from tqdm import tqdm

from ssd.data.augmentation import PictureTransform
from ssd.data.cache import cached
from ssd.data.reading import TURNED, Header, PictureFile, read_header
from ssd.runtime.packed import Packed, Texts
from ssd.runtime.text import printable
from ssd.runtime.threads import in_threads_if_slow

PATIENCE = 3  # seconds until a bar shows how far the opening is


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


class Annotations(NamedTuple):
    """What the files of a data set say of N pictures and their R objects."""

    files: Texts[Path]  # N, of the annotation of each picture
    pictures: Texts[Path]  # N
    image_ids: Sequence[Any]  # N
    headers: np.ndarray  # (N, 4) int32, `Header`s
    row_splits: np.ndarray  # (N + 1,) int64, objects of each picture
    names: tuple[str, ...]  # of the classes, as they come
    # The R objects, see `Object`:
    indices: np.ndarray  # int64
    labels: np.ndarray  # int32, which of the names
    boxes: np.ndarray  # (R, 4) float64
    difficult: np.ndarray  # bool
    crowd: np.ndarray  # bool
    areas: np.ndarray  # float64, NaN where the file has none

    def to_arrays(self, declared: Any) -> dict[str, np.ndarray]:
        """All of it, and plain values of the format's own, in arrays without objects."""
        fields = self._asdict()
        arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        for name in ("files", "pictures"):
            arrays[f"{name}_bytes"], arrays[f"{name}_ends"] = fields[name].arrays
        plain = {"image_ids": list(self.image_ids), "names": self.names, "declared": declared}
        return arrays | {"plain": np.frombuffer(json.dumps(plain).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> tuple[Annotations, Any]:
        """What `to_arrays` was given."""
        plain = json.loads(arrays["plain"].tobytes())
        fields = {name: arrays[name] for name in cls._fields if name in arrays}
        for name in ("files", "pictures"):
            fields[name] = Texts.of(arrays[f"{name}_bytes"], arrays[f"{name}_ends"], Path)
        image_ids, names = _packed(plain["image_ids"]), tuple(plain["names"])
        return cls(**fields, image_ids=image_ids, names=names), plain["declared"]


def read_annotations(readers: Iterable[Callable[[], Entry]]) -> Annotations:
    """Reads annotations and the headers of their pictures; of each the function that reads it, in any thread."""

    def read(reader: Callable[[], Entry]) -> tuple[Entry, Header]:
        entry = reader()
        return entry, read_header(entry.picture)

    files, pictures, image_ids, names = [], [], [], {}
    headers, indices, labels, row_splits = array("i"), array("q"), array("i"), array("q", [0])
    boxes, areas, difficult, crowd = array("d"), array("d"), bytearray(), bytearray()
    bar = tqdm(desc="opening", unit="picture", delay=PATIENCE, leave=False, disable=None)
    with bar:
        for entry, header in in_threads_if_slow(read, readers):
            files.append(str(entry.annotation))
            pictures.append(str(entry.picture))
            image_ids.append(entry.image_id)
            headers.extend(header)
            for index, name, box, is_difficult, is_crowd, area in entry.objects:
                indices.append(index)
                labels.append(names.setdefault(name, len(names)))
                boxes.extend(box)
                difficult.append(is_difficult)
                crowd.append(is_crowd)
                areas.append(math.nan if area is None else area)
            row_splits.append(len(indices))
            bar.update()
    return Annotations(
        files=Texts(files, Path),
        pictures=Texts(pictures, Path),
        image_ids=_packed(image_ids),
        headers=np.array(headers, np.int32).reshape(-1, 4),
        row_splits=np.array(row_splits),
        names=tuple(names),
        indices=np.array(indices),
        labels=np.array(labels),
        boxes=np.array(boxes).reshape(-1, 4),
        difficult=np.array(difficult, bool),
        crowd=np.array(crowd, bool),
        areas=np.array(areas),
    )


def _packed(image_ids: list[Any]) -> Sequence[Any]:
    """Whole numbers as an array, and others as they are."""
    try:
        return array("q", image_ids)
    except (TypeError, OverflowError):
        return image_ids


def _upright(headers: np.ndarray) -> np.ndarray:
    """Height and width (N, 2) of pictures as they are shown, of `Header`s (N, 4)."""
    turned = np.isin(headers[:, 2], TURNED)
    return np.where(turned[:, None], headers[:, 1::-1], headers[:, :2])


class BoxDataset(ABC, Dataset):
    """Pictures with boxes, from folders of one format.

    All annotations are read and checked at construction, and the size of a picture is taken from the picture. What took
    long to read is kept for the next time (`ssd.data.cache`).
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
        pictures: sequence with the path of each picture.
        counts: dict with the number of objects of each class.
        dropped: list of `Dropped`.

    Raises:
        FileNotFoundError: a folder, a split, an annotation or a picture is missing.
        ImageReadError: the header of a picture is unreadable.
        ValueError: an annotation is broken or has a class that is not in `classes`, or there are none.
    """

    _declared: Any = None  # what a format reads besides, of values that JSON knows

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
        read = self._read(roots, split)
        if not len(read.pictures):
            raise ValueError(f"no annotations in {[str(root) for root in roots]}, split {split!r}")
        self.classes = tuple(self._names(read.names) if classes is None else classes)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        for name in self.classes:  # which tables, lists and terminals could not show
            if any(unicodedata.category(character) == "Cc" for character in name):
                raise ValueError(f"{roots[0]}: the name of a class has a control character: {name!r}")
        self.transform = transform
        self.dropped: list[Dropped] = []
        self.pictures, self._headers, self._image_ids = read.pictures, read.headers, read.image_ids
        self._all = self._usable(read)
        self._keep_difficult = keep_difficult
        self._objects = self._wanted(keep_crowds)

    def _read(self, roots: Sequence[Path], split: str | None) -> Annotations:
        """What the files say, or said when they were read before and were what they are."""
        tops = [Path(os.path.abspath(root)) for root in roots]

        def read() -> dict[str, np.ndarray]:
            annotations = read_annotations(reader for root in roots for reader in self._readers(root, split))
            return annotations.to_arrays(self._declared)

        def sources(arrays: dict[str, np.ndarray]) -> Iterator[str]:
            annotations, _ = Annotations.from_arrays(arrays)
            folders: set[Path] = set()
            for path in (*annotations.files, *annotations.pictures):
                yield str(path)
                if path.parent not in folders:
                    inside = (f for f in path.parents if any(f.is_relative_to(root) for root in roots))
                    folders |= {path.parent, *inside}
            yield from map(str, folders)
            for root in roots:
                yield from map(str, self._lists(root, split))

        key = type(self).__name__, *map(str, roots), *map(str, tops), split
        annotations, self._declared = Annotations.from_arrays(cached(key, read, sources))
        return annotations

    def _usable(self, read: Annotations) -> Packed[dict[str, Tensor]]:
        """All objects but those that are dropped, clipped to their pictures; with the columns of a target, and more."""
        label_of = {name: label for label, name in enumerate(self.classes, start=1)}
        labels = np.array([label_of.get(name, 0) for name in read.names], np.int64)[read.labels]
        picture_of = np.arange(len(read.pictures)).repeat(np.diff(read.row_splits))
        for row in np.flatnonzero(labels == 0)[:1]:
            name = read.names[read.labels[row]]
            raise UnknownClassError(
                f"{read.files[picture_of[row]]}: unknown class {name!r}; the classes are {self.classes}"
            )
        height, width = _upright(self._headers).T[:, picture_of].astype(np.float64)
        finite = np.isfinite(read.boxes).all(1)
        written = np.where(finite[:, None], read.boxes, 0.0).T
        edges = np.stack(self._edges(written, height, width))  # (4, R)
        extended, inside = self._sound(written, edges, height, width)
        for row in np.flatnonzero(~(finite & extended & inside)):
            reason = f"outside the picture of {width[row]:.0f} x {height[row]:.0f}"
            reason = reason if extended[row] else "no width or height"
            self.dropped.append(
                Dropped(
                    path=read.files[picture_of[row]],
                    index=int(read.indices[row]),
                    name=read.names[read.labels[row]],
                    box=tuple(read.boxes[row].tolist()),
                    reason=reason if finite[row] else "not finite",
                )
            )
        x0, y0, x1, y1 = np.clip(edges, 0, np.stack([width, height] * 2))
        columns = {
            "boxes": np.stack([x0, y0, x1, y1], 1).astype(np.float32),
            "labels": labels,
            "difficult": read.difficult | read.crowd,
            "areas": np.where(np.isnan(read.areas), (x1 - x0) * (y1 - y0), read.areas),
            "crowd": read.crowd,
        }
        packed = Packed({name: torch.from_numpy(c) for name, c in columns.items()}, torch.from_numpy(read.row_splits))
        return packed.where(torch.from_numpy(finite & extended & inside))

    def _wanted(self, keep_crowds: bool) -> Packed[dict[str, Tensor]]:
        """The objects that targets include."""
        columns = self._all.columns
        kept = torch.where(columns["crowd"], keep_crowds, ~columns["difficult"] | self._keep_difficult)
        wanted = self._all.where(kept)
        return Packed({name: c for name, c in wanted.columns.items() if name != "crowd"}, wanted.row_splits)

    def view(self, transform: Callable[..., Any] | None, keep_crowds: bool | None = None) -> BoxDataset:
        """The same pictures and annotations, of which nothing is copied, with another transform.

        Args:
            transform, keep_crowds: see the class; None keeps the crowds of this one.
        """
        view = copy.copy(self)
        view.transform = transform
        if keep_crowds is not None:
            view._objects = self._wanted(keep_crowds)
        return view

    @staticmethod
    @abstractmethod
    def holds(folder: Path) -> bool:
        """Whether a folder looks like this format."""

    @staticmethod
    @abstractmethod
    def splits(folder: Path) -> list[str]:
        """Sorted names of its parts, such as "train" and "val"; empty if it has none."""

    @abstractmethod
    def _readers(self, root: Path, split: str | None) -> Iterator[Callable[[], Entry]]:
        """For each picture of a folder, or of one of its splits, what reads its annotation; called in any thread."""

    def _lists(self, root: Path, split: str | None) -> Iterable[Path]:
        """The files beside annotations and pictures that decide what is read."""
        return ()

    @staticmethod
    @abstractmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        """Left, top, right and bottom edges (R,) of boxes as written (4, R), in pixels; may lie outside of the picture.

        Args:
            height, width: (R,) of their pictures.
        """

    @staticmethod
    def _sound(
        written: np.ndarray, edges: np.ndarray, height: np.ndarray, width: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which boxes, as written (4, R) and with these edges (4, R), have a width and a height, and which reach into
        their pictures: (R,) bool each."""
        x0, y0, x1, y1 = edges
        return (x1 > x0) & (y1 > y0), (x0 < width) & (y0 < height) & (x1 > 0) & (y1 > 0)

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        """The names of the classes where none are given: those found, sorted."""
        return sorted(found)

    @property
    def counts(self) -> dict[str, int]:
        """The number of objects of each class."""
        counts = self._objects.columns["labels"].bincount(minlength=len(self.classes) + 1)[1:]
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @property
    def objects(self) -> Packed[dict[str, Tensor]]:
        """Of each picture "boxes" (n, 4) float32 xyxy in fractions of it, and "labels" (n,) int64."""
        columns, sizes = self._objects.columns, self.sizes.float().repeat(1, 2)
        boxes = columns["boxes"] / sizes.repeat_interleave(self._objects.counts, 0)
        return Packed({"boxes": boxes, "labels": columns["labels"]}, self._objects.row_splits)

    @property
    def sizes(self) -> Tensor:
        """Width and height of each picture in pixels, (N, 2) int64."""
        return torch.from_numpy(_upright(self._headers)[:, ::-1].astype(np.int64))

    @property
    def truths(self) -> Packed[dict[str, Any]]:
        """What evaluation needs to know of each picture, which is not read for it.

        "boxes" (n, 4) float32 xyxy in pixels, "labels" (n,) int64, "difficult" (n,) bool, "areas" (n,) float64 in
        square pixels, as the file has them, or else those of the boxes; and "image_id", if all are whole numbers.
        """
        of_images = {"image_id": self._image_ids} if isinstance(self._image_ids, array) else {}
        return Packed(self._objects.columns, self._objects.row_splits, of_images)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        """One picture and its objects, through `transform` if there is one.

        Returns:
            image: tv_tensors.Image (3, H, W) uint8.
            target: "boxes" tv_tensors.BoundingBoxes (n, 4) float32 xyxy in pixels, "labels" (n,) int64 in
                1..len(classes), "difficult" (n,) bool.

        Raises:
            ImageReadError: the picture is damaged or cut short; the message names it.
        """
        index = range(len(self))[index]
        objects = self._objects[index]
        picture = PictureFile(self.pictures[index], Header(*self._headers[index].tolist()))
        target = {name: objects[name].clone() for name in ("boxes", "labels", "difficult")}
        if isinstance(self.transform, PictureTransform):
            return self.transform(picture, target)
        size = picture.height, picture.width
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        image = tv_tensors.Image(picture.pixels())
        return self.transform(image, target) if self.transform else (image, target)
