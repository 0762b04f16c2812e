"""Detections that a program left in a file: a list of COCO's results, or what `ssd detect` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from os import PathLike
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ssd.data.coco import COCODataset, category_names, is_finite, read_coco
from ssd.data.dataset import BoxDataset

KEYS = ("image_id", "category_id", "bbox", "score")


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
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            content = json.loads(self.path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: broken JSON ({error})") from error
        self.classes: tuple[str, ...] | None = None
        self._content = content
        if not isinstance(content, list):
            self._content = read_coco(self.path)
            self.classes = tuple(category_names(self._content))

    def detections(self, dataset: BoxDataset) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What was found in each picture.

        Args:
            dataset: opened with `classes`, if the file has them.

        Returns:
            for each picture boxes (k, 4) float64 xyxy in pixels, labels (k,) int64 and scores (k,) float64.

        Raises:
            ValueError: an entry lacks something, or has what is unknown to the data set or not allowed: file, entry and
                key are named.
        """
        if isinstance(self._content, list):
            rows, of = self._content, ""
            if not isinstance(dataset, COCODataset):
                raise ValueError(
                    f"{self.path}: is a list, whose ids are of data in COCO's JSON, not a {type(dataset).__name__}"
                )
            places, names = self._by_id(dataset.image_ids), dataset.category_names
        else:
            rows, of = self._content["annotations"], "annotations"
            places = self._by_name(self._content["images"], dataset.pictures)
            names = {row["id"]: str(row["name"]) for row in self._content["categories"]}
        labels = {
            category: dataset.classes.index(name) + 1 for category, name in names.items() if name in dataset.classes
        }
        found: list[list[tuple[list[float], int, float]]] = [[] for _ in range(len(dataset))]
        for index, row in enumerate(rows):
            _check(row, f"{self.path}: {of}[{index}]", {"image_id": places, "category_id": labels})
            x, y, width, height = row["bbox"]
            detection = [x, y, x + width, y + height], labels[row["category_id"]], row["score"]
            found[places[row["image_id"]]].append(detection)
        return [_columns(detections) for detections in found]

    def _by_id(self, ids: Sequence[Any]) -> dict[Any, int]:
        """The place of each picture by its id."""
        places = {image_id: place for place, image_id in enumerate(ids)}
        for place, image_id in enumerate(ids):
            if places[image_id] != place:
                raise ValueError(
                    f"{self.path}: image_id {image_id!r} is in two files of the data; take one split of it"
                )
        return places

    def _by_name(self, images: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> dict[Any, int]:
        """The place of each picture by the id that the file gives it."""
        named: dict[str, list[int]] = {}
        for place, picture in enumerate(pictures):
            named.setdefault(picture.name, []).append(place)
        places: dict[Any, int] = {}
        taken: dict[int, int] = {}  # by which of the images
        for index, row in enumerate(images):
            where = f"{self.path}: images[{index}]['file_name'] is {row['file_name']!r}"
            path = PurePosixPath(str(row["file_name"]).replace("\\", "/"))
            alike = {place: _shared_end(path, pictures[place]) for place in named.get(path.name, ())}
            best = [place for place, n in alike.items() if n == max(alike.values())]
            if not best:
                raise ValueError(f"{where}, which is no picture of the data")
            if len(best) > 1:
                raise ValueError(f"{where}, which may be {pictures[best[0]]} or {pictures[best[1]]}")
            if best[0] in taken:
                raise ValueError(f"{where}, as is images[{taken[best[0]]}]: {pictures[best[0]]}")
            places[row["id"]] = best[0]
            taken[best[0]] = index
        if missing := set(range(len(pictures))).difference(taken):
            names = f"{pictures[min(missing)]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
            raise ValueError(f"{self.path}: lacks {names} of the data; take a split whose pictures it has")
        return places


def _shared_end(a: PurePath, b: PurePath) -> int:
    """How many names two paths share, from the last one on."""
    pairs = zip(reversed(a.parts), reversed(b.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check(row: Any, where: str, known: Mapping[str, Mapping[Any, int]]) -> None:
    for key in KEYS:
        if not isinstance(row, dict) or key not in row:
            raise ValueError(f"{where} has no {key!r}")
    for key, values in known.items():
        if isinstance(row[key], (list, dict)) or row[key] not in values:
            raise ValueError(f"{where}[{key!r}] is {row[key]!r}, which is not there")
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box)) and min(box[2:]) >= 0):
        raise ValueError(f"{where}['bbox'] must be x, y, width and height, finite and sizes not negative, got {box!r}")
    if not is_finite(row["score"]):
        raise ValueError(f"{where}['score'] must be a finite number, got {row['score']!r}")


def _columns(detections: Sequence[tuple[list[float], int, float]]) -> tuple[Tensor, Tensor, Tensor]:
    boxes, labels, scores = zip(*detections, strict=True) if detections else ((),) * 3
    return (
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float64),
    )
