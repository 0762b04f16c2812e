"""Detections that a program left in a file: a list of COCO's results, or what `ssd detect` writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from os import PathLike
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch

from ssd.data.coco import COCODataset, CocoFile
from ssd.data.dataset import BoxDataset
from ssd.detection import Found
from ssd.runtime.packed import Packed, splits_of


class DetectionFile:
    """The detections of a file, by the pictures of a data set.

    A list, as COCO has it, speaks of the ids of a data set in COCO's JSON. A file with "images", "categories" and
    "annotations" brings its names: a picture is the one of the data set that shares most of the end of its path.

    Args:
        path: the file.

    Attributes:
        classes: the names of its categories by rising id; None for a list, which has those of the data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the JSON is broken, or neither of the two.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._content = CocoFile(self.path, scored=True)
        self.classes = None if self._content.is_list else tuple(self._content.categories.values())

    def detections(self, dataset: BoxDataset) -> Packed[Found]:
        """What was found in each picture.

        Args:
            dataset: opened with `classes`, if the file has them.

        Returns:
            for each picture boxes (k, 4) float64 xyxy in pixels, labels (k,) int64 and scores (k,) float64.

        Raises:
            ValueError: an entry has what is unknown to the data set: file, entry and key are named.
        """
        content = self._content
        if content.is_list:
            if not isinstance(dataset, COCODataset):
                raise ValueError(
                    f"{self.path}: is a list, whose ids are of data in COCO's JSON, not a {type(dataset).__name__}"
                )
            where, places, names = f"{self.path}: ", self._by_id(dataset.image_ids), dataset.category_names
        else:
            where, names = f"{self.path}: annotations", content.categories
            places = self._by_name(content.images.items(), dataset.pictures)
        label_of = {
            category: dataset.classes.index(name) + 1 for category, name in names.items() if name in dataset.classes
        }
        images = content.rows.numbers("image_id", places, where)
        labels = content.rows.numbers("category_id", label_of, where)
        boxes = content.rows.boxes
        boxes[:, 2:] += boxes[:, :2]
        order = np.argsort(images, kind="stable")
        columns = (torch.from_numpy(column[order]) for column in (boxes, labels, content.rows.scores))
        return Packed(Found(*columns), splits_of(torch.from_numpy(np.bincount(images, minlength=len(dataset)))))

    def _by_id(self, ids: Sequence[Any]) -> dict[Any, int]:
        """The place of each picture by its id."""
        places = {image_id: place for place, image_id in enumerate(ids)}
        for place, image_id in enumerate(ids):
            if places[image_id] != place:
                raise ValueError(
                    f"{self.path}: image_id {image_id!r} is in two files of the data; take one split of it"
                )
        return places

    def _by_name(self, images: Iterable[tuple[Any, str]], pictures: Sequence[Path]) -> dict[Any, int]:
        """The place of each picture by the id that the file gives it."""
        named: dict[str, list[int]] = {}
        for place, picture in enumerate(pictures):
            named.setdefault(picture.name, []).append(place)
        places: dict[Any, int] = {}
        taken: dict[int, int] = {}  # by which of the images
        for index, (image_id, file_name) in enumerate(images):
            where = f"{self.path}: images[{index}]['file_name'] is {file_name!r}"
            path = PurePosixPath(file_name.replace("\\", "/"))
            alike = {place: _shared_end(path, pictures[place]) for place in named.get(path.name, ())}
            best = [place for place, n in alike.items() if n == max(alike.values())]
            if not best:
                raise ValueError(f"{where}, which is no picture of the data")
            if len(best) > 1:
                raise ValueError(f"{where}, which may be {pictures[best[0]]} or {pictures[best[1]]}")
            if best[0] in taken:
                raise ValueError(f"{where}, as is images[{taken[best[0]]}]: {pictures[best[0]]}")
            places[image_id] = best[0]
            taken[best[0]] = index
        if missing := set(range(len(pictures))).difference(taken):
            names = f"{pictures[min(missing)]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
            raise ValueError(f"{self.path}: lacks {names} of the data; take a split whose pictures it has")
        return places


def _shared_end(a: PurePath, b: PurePath) -> int:
    """How many names two paths share, from the last one on."""
    pairs = zip(reversed(a.parts), reversed(b.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
