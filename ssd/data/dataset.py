"""The base class of datasets of all formats: checks annotations, drops unusable objects, gives samples."""

from __future__ import annotations

import copy
import os
import unicodedata
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ssd.data.annotations import Annotations, Entry, pack_ids, read_annotations
from ssd.data.archives import folders_of
from ssd.data.augmentation import PictureTransform
from ssd.data.cache import cached
from ssd.data.depth import Levels
from ssd.data.folder import Folder, Root, split_of
from ssd.data.members import AnyFile, Member, source_of, text_of
from ssd.data.notes import notes_of
from ssd.data.picture_formats import describe_unreadable
from ssd.data.picture_sizes import upright
from ssd.data.pixels import find_levels
from ssd.data.reading import Header, Picture, PictureFile, PicturePart
from ssd.data.tiles import in_views, views
from ssd.data.usable import usable_objects
from ssd.options import OVERLAP, ReadOptions, check_known
from ssd.runtime.packed import Packed
from ssd.runtime.remote import read_ahead
from ssd.runtime.text import composed
from ssd_ext._checks import check_fields


def _unlabelled(folders: Sequence[Folder], split: str | None, used: Set[str]) -> list[AnyFile]:
    """Finds the pictures without annotation: in the folders of pictures that have one, and in the split."""
    places, known = set(map(os.path.dirname, used)), set(map(composed, used))
    return [
        folder.root / path
        for folder in folders
        for path in folder.pictures
        if (split is None or split_of(path) == split)
        and composed(whole := folder.text(path)) not in known
        and os.path.dirname(whole) in places
    ]


def _marks(n: int) -> Tensor:
    """A mark for each of n pictures, (n,) uint8 zeros, in memory that workers of a loader share."""
    marks = torch.zeros(n, dtype=torch.uint8)
    with suppress(RuntimeError):  # without shared memory, marks of other processes are not seen
        marks.share_memory_()
    return marks


class BoxDataset(ABC, Dataset[tuple[Any, dict[str, Tensor]]]):
    """Pictures with boxes, from folders of one format.

    The constructor reads and checks all annotations, and reads the size of each picture from its file. If that takes
    long, the result is cached for the next time (`ssd.data.cache`). Boxes are clipped to the picture. Objects whose box
    has no width or height, is not finite or lies outside of the picture are left out and listed in `dropped`. Pictures
    without objects are kept.

    Args:
        roots: a folder, or several folders whose pictures are concatenated in this order; or tar archives, see
            `ssd.data.archives.folders_of`.
        split: one of `splits`, such as "trainval". None: all pictures, whatever their split.
        classes: names of the classes; label i is classes[i - 1], and 0 is the background. None: the names
            that the files declare, or else those of the annotations. A test set needs the classes of its training set.
        transform: called as transform(image, target). A `PictureTransform` gets a `PictureFile` instead of an image,
            and decodes only the part that it needs. With `tiled`, it gets a `PicturePart`.
        keep_difficult: whether targets include objects marked as difficult.
        keep_crowds: whether targets include boxes around many objects, marked as difficult. Evaluation needs these
            boxes, because it ignores detections that match them.
        options: how annotations and pictures are read.
        levels: the values that become black and white in pictures with more than 8 bits per sample, such as `levels` of
            the training set. None: those of `options.bits`, or else the smallest and the largest value of all pictures.

    Attributes:
        classes: tuple of names, without the background.
        pictures: sequence with the path of each picture; a `Member` for one in a tar archive.
        counts: dict with the number of objects of each class.
        dropped: list of `Dropped`, the objects left out.
        files: sequence with the path of the annotation of each picture, or the place where it would be.
        n_unlabelled: number of pictures without annotation, whether they are used or not.
        notes: list of lines for the user, on what was read in another way than may be expected.
        doubts: list of lines for the user, on numbers of boxes that may be mistakes.
        unreadable: list with the path and the error of each picture that was left out because it cannot be read.
        levels: the levels that are used; None if no picture has more than 8 bits per sample and none are given.
        roots: tuple with the paths of the folders.
        options: the `ReadOptions`.

    Raises:
        FileNotFoundError: a folder, a split, an annotation or a picture is missing.
        ImageReadError: the header of a picture is unreadable; or the pictures that cannot be read are more than
            `options.skip_unreadable` allows.
        ValueError: an annotation is broken or has a class that is not in `classes`, or there are no annotations.

    Examples:
        >>> from ssd.data import open_dataset
        >>> from ssd.data.shapes import write_shapes
        >>> dataset = open_dataset(write_shapes("shapes", n_train=2, n_test=1, size=(96, 64)), "train")
        >>> image, target = dataset[0]
        >>> image.shape, list(target)
        (torch.Size([3, 64, 96]), ['boxes', 'labels', 'difficult'])
        >>> len(dataset.part([1])), dataset.sizes.tolist()
        (1, [[96, 64], [96, 64]])
    """

    FORMAT: ClassVar[str]  # the name of the format
    LAYOUT: ClassVar[str]  # the files that it consists of
    IN_FRACTIONS: ClassVar[bool] = False  # whether its boxes are in fractions of the picture, and not in pixels
    _views: Tensor | None = None  # (N, 4) int64 xyxy, the parts of `pictures` that are used; None: the whole pictures
    cut_from: Sequence[AnyFile] | None = None  # all pictures from which tiles were cut; None if this has no tiles
    _declared: Any = None  # additional values that a subclass reads, such as class names; of types that JSON can hold

    def __init__(
        self,
        roots: Root | Iterable[Root],
        split: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[..., Any] | None = None,
        keep_difficult: bool = True,
        keep_crowds: bool = False,
        options: ReadOptions = ReadOptions(),
        levels: Levels | None = None,
    ) -> None:
        check_fields(options)
        folders = folders_of(roots)
        names = ", ".join(str(folder.path) for folder in folders)
        if split is not None and not any(split in self.splits(folder) for folder in folders):
            known = sorted({name for folder in folders for name in self.splits(folder)})
            raise FileNotFoundError(f"{names}: no such split {split!r}; there are: {', '.join(known) or 'none'}")
        self.options, self.roots = options, tuple(os.fspath(folder.root) for folder in folders)
        read = self._read(folders, split)
        if not len(read.pictures):
            there = "; ".join(folder.contents() for folder in folders)
            of_split = "" if split is None else f" in split {split!r}"
            raise ValueError(f"{names}: no annotated pictures{of_split}; there are {there}")
        self.classes = tuple(map(composed, self._names(read.names) if classes is None else classes))
        if classes is None:
            self.classes = tuple(dict.fromkeys(self.classes))
        wanted = read
        if options.only is not None:
            of_split = "" if split is None else f" in the split {split}"
            only = list(map(composed, options.only))
            check_known(f"{names}{of_split}: only", only, self.classes)
            if classes is None:
                self.classes = tuple(name for name in self.classes if name in only)
            wanted = read.of_classes(only)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        for name in self.classes:
            # A name with a control character could not be shown in tables, lists and terminals.
            if any(unicodedata.category(character) == "Cc" for character in name):
                raise ValueError(f"{names}: the name of a class has a control character: {name!r}")
        self.transform = transform
        self.pictures, self._headers, self._image_ids = read.pictures, read.headers, read.image_ids
        self.files, self.n_unlabelled, self.unreadable = read.files, read.n_unlabelled, read.unreadable
        self.levels = levels or find_levels(read.pictures, read.headers, options.bits)
        self._cut = _marks(len(read.pictures))
        usable = usable_objects(wanted, self.classes, type(self), options)
        self._all, self.dropped, self.doubts = usable.objects, usable.dropped, usable.doubts
        self._keep_difficult = keep_difficult
        self._objects = self._wanted(keep_crowds)
        self.notes = [line for folder in folders for line in describe_unreadable(folder.unreadable)]
        if left_out := len(read.labels) - len(wanted.labels):
            self.notes.append(f"objects of other classes, which are left out: {left_out}")
        self.notes += notes_of(read, self.levels, self._unlabelled, usable.sizes, self.sizes)

    def _read(self, folders: Sequence[Folder], split: str | None) -> Annotations:
        """Reads the annotations from the files, or from the cache if the files have not changed."""
        skips = self.options.skip_unreadable > 0
        rule = self._unlabelled = self.options.unlabelled or self._unlabelled_rule(folders[0])

        def read() -> dict[str, np.ndarray]:
            readers = (reader for folder in folders for reader in self._readers(folder, split))
            others = partial(_unlabelled, folders, split)
            return read_annotations(readers, others, rule == "background", skips).to_arrays(self._declared)

        def sources(arrays: dict[str, np.ndarray]) -> Iterator[str]:
            annotations, _ = Annotations.from_arrays(arrays)
            for texts in (annotations.files.texts(), annotations.pictures.texts()):
                yield from map(source_of, texts)
            yield from (source_of(text) for text, _ in annotations.unreadable)
            yield from {os.path.dirname(source_of(text)) or "." for text in annotations.pictures.texts()}
            for folder in folders:
                yield from map(str, folder.folders)
                yield from (source_of(text_of(path)) for path in self._others(folder, split))

        key = type(self).__name__, *(name for folder in folders for name in folder.names), split, rule, skips
        annotations, self._declared = Annotations.from_arrays(cached(key, read, sources))
        annotations.check_share(self.options.skip_unreadable)
        return annotations

    def _wanted(self, keep_crowds: bool) -> Packed[dict[str, Tensor]]:
        """Selects the objects that targets include."""
        columns = self._all.columns
        kept = torch.where(columns["crowd"], keep_crowds, ~columns["difficult"] | self._keep_difficult)
        wanted = self._all.where(kept)
        columns = {name: column for name, column in wanted.columns.items() if name != "beyond"}
        return Packed(columns, wanted.row_splits)

    def view(self, transform: Callable[..., Any] | None, keep_crowds: bool | None = None) -> BoxDataset:
        """Makes a dataset with another transform that shares the pictures and annotations of this one.

        Args:
            transform: see `BoxDataset`.
            keep_crowds: see `BoxDataset`. None: as in this dataset.

        Returns:
            The dataset; this one is not changed.
        """
        view = copy.copy(self)
        view.transform = transform
        if keep_crowds is not None:
            view._objects = self._wanted(keep_crowds)
        return view

    def part(self, indices: Sequence[int]) -> BoxDataset:
        """Makes a dataset of some of the pictures, in this order.

        Args:
            indices: numbers of pictures, from the end if negative, as in a list; they may repeat.

        Returns:
            The dataset; this one is not changed.

        Raises:
            IndexError: there is no such picture.
        """
        part = copy.copy(self)
        every = range(len(self))
        indices = [every[i] for i in indices]
        chosen = torch.tensor(indices, dtype=torch.int64)
        part.pictures, part.files = self.pictures.take(indices), self.files.take(indices)
        part._headers, part._image_ids = self._headers[chosen.numpy()], pack_ids([self._image_ids[i] for i in indices])
        part._all, part._objects = self._all.take(chosen), self._objects.take(chosen)
        part._cut = _marks(len(indices))
        if self._views is not None:
            part._views = self._views[chosen]
        return part

    def tiled(self, size: int, overlap: float = OVERLAP) -> BoxDataset:
        """Makes a dataset of the parts of the pictures that the network sees when it detects with tiles.

        Each tile, and each whole picture, is a picture of its own. Of those without objects, at most as many are used
        as there are with objects; crowds do not count. An object is in a tile if its centre is, and a crowd is in each
        tile that it overlaps. Boxes are cut at the edges of the tile.
        `notes` has one line about the tiles.

        Args:
            size: side of a tile in pixels, at least 1.
            overlap: least overlap of neighbouring tiles, as a fraction of their side, in [0, 1).

        Returns:
            The dataset; this one is not changed.
        """
        parts = [views(width, height, size, overlap) for width, height in self.sizes.tolist()]
        tiled = self.part([i for i, some in enumerate(parts) for _ in some])
        tiled.cut_from = self.pictures
        tiled._views = torch.tensor([view for some in parts for view in some])
        tiled._all, tiled._objects = (in_views(packed, tiled._views) for packed in (tiled._all, tiled._objects))
        filled = tiled._objects.where(~tiled._objects.columns["crowd"]).counts > 0
        used, empty = (which.nonzero()[:, 0] for which in (filled, ~filled))
        spread = torch.linspace(0, len(empty) - 1, min(len(empty), max(1, len(used)))).round().long()
        tiled = tiled.part(torch.cat([used, empty[spread]]).sort().values.tolist())
        objects = tiled._objects.where(~tiled._objects.columns["crowd"])
        boxes, sizes = objects.columns["boxes"], tiled.sizes.repeat_interleave(objects.counts, 0)
        at_edge = ((boxes[:, :2] <= 0) | (boxes[:, 2:] >= sizes)).any(1).float().mean().item() if len(boxes) else 0.0
        tiled.notes = [
            f"{len(tiled)} tiles of {size} pixels and whole pictures, of {len(self)} pictures; "
            f"{len(empty) - len(spread)} without objects are left out; {at_edge:.0%} of the objects touch an edge"
        ]
        return tiled

    def with_classes(self, classes: Sequence[str]) -> BoxDataset:
        """Makes a dataset with other classes that shares the pictures of this one.

        Args:
            classes: see `BoxDataset`; all classes that have objects must be among them.

        Returns:
            The dataset; this one is not changed.

        Raises:
            ValueError: a class that has objects is missing.
        """
        if lacking := sorted(self.used_classes.difference(classes)):
            raise ValueError(f"classes must have all that have objects; these are missing: {', '.join(lacking)}")
        number = torch.tensor([0, *(classes.index(name) + 1 if name in classes else 0 for name in self.classes)])
        view = copy.copy(self)
        view.classes = tuple(classes)
        for name in ("_all", "_objects"):
            packed = getattr(self, name)
            columns = packed.columns | {"labels": number[packed.columns["labels"]]}
            setattr(view, name, Packed(columns, packed.row_splits))
        return view

    @property
    def used_classes(self) -> set[str]:
        """Names of the classes that have objects, difficult ones and crowds included."""
        return {self.classes[label - 1] for label in self._all.columns["labels"].unique().tolist()}

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

    @classmethod
    def _unlabelled_rule(cls, folder: Folder) -> Literal["background", "ignore"]:
        """What the format says of pictures without annotation, see `ReadOptions.unlabelled`."""
        return "ignore"

    def _others(self, folder: Folder, split: str | None) -> Iterable[Path]:
        """Files other than annotations and pictures that affect the result, for the cache to check."""
        return ()

    @classmethod
    def _edges(cls, written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        """Converts the four numbers of each box in the file to its left, top, right and bottom edge in pixels.

        Here these are the numbers themselves, or with `IN_FRACTIONS` their fractions of the picture.

        Args:
            written: (4, R) float64, the numbers in the file.
            height, width: (R,) size of their pictures in pixels.

        Returns:
            Four arrays (R,), not clipped to the picture.
        """
        x0, y0, x1, y1 = written
        return (x0 * width, y0 * height, x1 * width, y1 * height) if cls.IN_FRACTIONS else (x0, y0, x1, y1)

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
        """The class names if none are given: those in the annotations, sorted. Some may be there more than once."""
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
    def annotated(self) -> Packed[dict[str, Tensor]]:
        """All usable objects of each picture, whatever targets include: as `truths`, and one more column.

        It is "beyond" (n,) bool: boxes that reached beyond their picture, and were cut.
        """
        return self._all

    @property
    def sizes(self) -> Tensor:
        """Width and height of each picture in pixels, (N, 2) int64."""
        if self._views is not None:
            return self._views[:, 2:] - self._views[:, :2]
        return torch.from_numpy(upright(self._headers).astype(np.int64))

    @property
    def truths(self) -> Packed[dict[str, Any]]:
        """The true objects of each picture, for evaluation. No picture is decoded for them.

        For each picture: "boxes" (n, 4) float32 xyxy in pixels, "labels" (n,) int64, "difficult" (n,) bool (also True
        for crowds), "crowd" (n,) bool, "areas" (n,) float64 in square pixels (those of the boxes if the file has none),
        "index" (n,) int64, the position of the object in its annotation, from 0; and "image_id" if all ids are
        integers.
        """
        of_images = {"image_id": self._image_ids} if isinstance(self._image_ids, array) else {}
        return Packed(self._objects.columns, self._objects.row_splits, of_images)

    @property
    def cut(self) -> list[AnyFile]:
        """Paths of the pictures that turned out to lack their last bytes, in any process that read them."""
        return [self.pictures[i] for i in self._cut.nonzero().flatten().tolist()]

    def picture(self, index: int) -> Picture:
        """Returns a picture, whose pixels are not yet decoded. No file is read.

        Args:
            index: its number, in 0..N-1.

        Returns:
            A `PictureFile`; of a dataset of tiles a `PicturePart`.
        """
        picture = PictureFile(self.pictures[index], Header(*self._headers[index].tolist()), self.levels)
        if (tile := self.tile(index)) is None:
            return picture
        x0, y0, x1, y1 = tile
        return PicturePart(picture, (x0, y0, x1, y1))

    @property
    def groups(self) -> np.ndarray:
        """For each picture the number of its file, from 0, (N,) int64; tiles of one picture have the same number."""
        return np.unique(list(self.pictures.texts()), return_inverse=True)[1]

    def tile(self, index: int) -> list[int] | None:
        """Edges x0, y0, x1, y1 of a tile in pixels of its picture; None if this is no data set of tiles."""
        return None if self._views is None else self._views[index].tolist()

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Reads pictures that are needed next from remote archives, all at the same time."""
        read_ahead([path.part for path in map(self.pictures.__getitem__, indices) if isinstance(path, Member)])

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
        objects, picture = self._objects[index], self.picture(index)
        target = {name: objects[name].clone() for name in ("boxes", "labels", "difficult")}
        if isinstance(self.transform, PictureTransform):
            sample = self.transform(picture, target)
        else:
            size = picture.height, picture.width
            target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
            sample = tv_tensors.Image(picture.pixels()), target
            sample = self.transform(*sample) if self.transform else sample
        if picture.cut:
            self._cut[index] = 1
        return sample
