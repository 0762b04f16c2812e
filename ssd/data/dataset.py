"""The base class of datasets of all formats: checks annotations, drops unusable objects, gives samples."""

from __future__ import annotations

import copy
import os
import unicodedata
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ssd.data.annotations import Annotations, Dropped, Entry, UnknownClassError, read_annotations
from ssd.data.augmentation import PictureTransform
from ssd.data.cache import cached
from ssd.data.folder import Folder, Root
from ssd.data.reading import TURNED, Header, PictureFile
from ssd.runtime.packed import Packed


def _upright(headers: np.ndarray) -> np.ndarray:
    """Height and width (N, 2) of upright pictures, from their `Header`s (N, 4)."""
    turned = np.isin(headers[:, 2], TURNED)
    return np.where(turned[:, None], headers[:, 1::-1], headers[:, :2])


class BoxDataset(ABC, Dataset[tuple[Any, dict[str, Tensor]]]):
    """Pictures with boxes, from folders of one format.

    The constructor reads and checks all annotations, and reads the size of each picture from its file. If that takes
    long, the result is cached for the next time (`ssd.data.cache`). Boxes are clipped to the picture. Objects whose box
    has no width or height, is not finite or lies outside of the picture are left out and listed in `dropped`. Pictures
    without objects are kept.

    Args:
        roots: a folder, or several folders whose pictures are concatenated in this order.
        split: one of `splits`, such as "trainval". None: all pictures, whatever their split.
        classes: names of the classes; label i is classes[i - 1], and 0 is the background. None: the names
            that the files declare, or else those of the annotations. A test set needs the classes of its training set.
        transform: called as transform(image, target). A `PictureTransform` gets a `PictureFile` instead of an image,
            and decodes only the part that it needs.
        keep_difficult: whether targets include objects marked as difficult.
        keep_crowds: whether targets include boxes around many objects, marked as difficult. Evaluation needs these
            boxes, because it ignores detections that match them.

    Attributes:
        classes: tuple of names, without the background.
        pictures: sequence with the path of each picture.
        counts: dict with the number of objects of each class.
        dropped: list of `Dropped`, the objects left out.

    Raises:
        FileNotFoundError: a folder, a split, an annotation or a picture is missing.
        ImageReadError: the header of a picture is unreadable.
        ValueError: an annotation is broken or has a class that is not in `classes`, or there are no annotations.
    """

    FORMAT: ClassVar[str]  # the name of the format
    LAYOUT: ClassVar[str]  # the files that it consists of
    _declared: Any = None  # additional values that a subclass reads, such as class names; of types that JSON can hold

    def __init__(
        self,
        roots: Root | Iterable[Root],
        split: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[..., Any] | None = None,
        keep_difficult: bool = True,
        keep_crowds: bool = False,
    ) -> None:
        folders = list(map(Folder.of, [roots] if isinstance(roots, (str, PathLike, Folder)) else roots))
        names = ", ".join(str(folder.path) for folder in folders)
        if split is not None and not any(split in self.splits(folder) for folder in folders):
            known = sorted({name for folder in folders for name in self.splits(folder)})
            raise FileNotFoundError(f"{names}: no such split {split!r}; there are: {', '.join(known) or 'none'}")
        read = self._read(folders, split)
        if not len(read.pictures):
            raise ValueError(f"{names}: no annotated pictures" + f" in split {split!r}" * (split is not None))
        self.classes = tuple(self._names(read.names) if classes is None else classes)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        for name in self.classes:
            # A name with a control character could not be shown in tables, lists and terminals.
            if any(unicodedata.category(character) == "Cc" for character in name):
                raise ValueError(f"{names}: the name of a class has a control character: {name!r}")
        self.transform = transform
        self.dropped: list[Dropped] = []
        self.pictures, self._headers, self._image_ids = read.pictures, read.headers, read.image_ids
        self._all = self._usable(read)
        self._keep_difficult = keep_difficult
        self._objects = self._wanted(keep_crowds)

    def _read(self, folders: Sequence[Folder], split: str | None) -> Annotations:
        """Reads the annotations from the files, or from the cache if the files have not changed."""
        roots = [folder.path for folder in folders]

        def read() -> dict[str, np.ndarray]:
            annotations = read_annotations(reader for folder in folders for reader in self._readers(folder, split))
            return annotations.to_arrays(self._declared)

        def sources(arrays: dict[str, np.ndarray]) -> Iterator[str]:
            annotations, _ = Annotations.from_arrays(arrays)
            yield from map(str, (*annotations.files, *annotations.pictures))
            yield from map(str, {path.parent for path in annotations.pictures})
            for folder in folders:
                yield from map(str, (*folder.folders, *self._others(folder, split)))

        key = type(self).__name__, *map(str, roots), *map(os.path.abspath, roots), split
        annotations, self._declared = Annotations.from_arrays(cached(key, read, sources))
        return annotations

    def _usable(self, read: Annotations) -> Packed[dict[str, Tensor]]:
        """Clips all objects to their pictures and drops unusable ones.

        The columns are the entries of a target and a few more.
        """
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
        """Selects the objects that targets include."""
        columns = self._all.columns
        kept = torch.where(columns["crowd"], keep_crowds, ~columns["difficult"] | self._keep_difficult)
        wanted = self._all.where(kept)
        return Packed({name: c for name, c in wanted.columns.items() if name != "crowd"}, wanted.row_splits)

    def view(self, transform: Callable[..., Any] | None, keep_crowds: bool | None = None) -> BoxDataset:
        """Makes a dataset with another transform that shares the pictures and annotations of this one.

        Args:
            transform: see `BoxDataset`.
            keep_crowds: see `BoxDataset`. None: as in this dataset.
        """
        view = copy.copy(self)
        view.transform = transform
        if keep_crowds is not None:
            view._objects = self._wanted(keep_crowds)
        return view

    @classmethod
    @abstractmethod
    def claim(cls, folder: Folder) -> str | None:
        """Says what a folder has of this format, such as "951 XML files, such as a.xml"; None if it has nothing."""

    @classmethod
    @abstractmethod
    def splits(cls, folder: Folder) -> list[str]:
        """Lists the sorted names of a folder's splits, such as "train" and "val"; empty if it has none."""

    @abstractmethod
    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        """Yields, for each picture of a folder or of one split, a function that reads the annotation of the picture.

        The function may be called in any thread.
        """

    def _others(self, folder: Folder, split: str | None) -> Iterable[Path]:
        """Files other than annotations and pictures that affect the result, for the cache to check."""
        return ()

    @staticmethod
    @abstractmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        """Converts the four numbers of each box in the file to its left, top, right and bottom edge in pixels.

        Args:
            written: (4, R) float64, the numbers in the file.
            height, width: (R,) size of their pictures in pixels.

        Returns:
            Four arrays (R,), not clipped to the picture.
        """

    @staticmethod
    def _sound(
        written: np.ndarray, edges: np.ndarray, height: np.ndarray, width: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tells which boxes have a width and a height, and which overlap their pictures.

        Args:
            written, edges: (4, R) float64, see `_edges`.
            height, width: (R,) size of their pictures in pixels.

        Returns:
            Two arrays (R,) bool.
        """
        x0, y0, x1, y1 = edges
        return (x1 > x0) & (y1 > y0), (x0 < width) & (y0 < height) & (x1 > 0) & (y1 > 0)

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        """The class names if none are given: those in the annotations, sorted."""
        return sorted(found)

    @property
    def counts(self) -> dict[str, int]:
        """Dict from the name of each class to its number of objects."""
        counts = self._objects.columns["labels"].bincount(minlength=len(self.classes) + 1)[1:]
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @property
    def objects(self) -> Packed[dict[str, Tensor]]:
        """For each picture, "boxes" (n, 4) float32 xyxy in fractions of the picture, and "labels" (n,) int64."""
        columns, sizes = self._objects.columns, self.sizes.float().repeat(1, 2)
        boxes = columns["boxes"] / sizes.repeat_interleave(self._objects.counts, 0)
        return Packed({"boxes": boxes, "labels": columns["labels"]}, self._objects.row_splits)

    @property
    def sizes(self) -> Tensor:
        """Width and height of each picture in pixels, (N, 2) int64."""
        return torch.from_numpy(_upright(self._headers)[:, ::-1].astype(np.int64))

    @property
    def truths(self) -> Packed[dict[str, Any]]:
        """The true objects of each picture, for evaluation. No picture is decoded for them.

        For each picture: "boxes" (n, 4) float32 xyxy in pixels, "labels" (n,) int64, "difficult" (n,) bool, "areas"
        (n,) float64 in square pixels (those of the boxes if the file has none), and "image_id" if all ids are integers.
        """
        of_images = {"image_id": self._image_ids} if isinstance(self._image_ids, array) else {}
        return Packed(self._objects.columns, self._objects.row_splits, of_images)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        """Reads one picture and its objects, and applies `transform` if there is one.

        Returns:
            image: tv_tensors.Image (3, H, W) uint8 RGB.
            target: dict with "boxes" tv_tensors.BoundingBoxes (n, 4) float32 xyxy in pixels, "labels" (n,) int64 in
                1..len(classes), and "difficult" (n,) bool.

        Raises:
            FileNotFoundError: the picture has been removed.
            ImageReadError: the picture is damaged or truncated; the message names it.
            IndexError: there is no such picture.
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
