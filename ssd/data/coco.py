"""Datasets in COCO's JSON: one file for many pictures, boxes as (x, y, width, height) in pixels."""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssd.data.dataset import BoxDataset, Entry, Object
from ssd.data.json_rows import START, json_rows

PREFIXES = ("instances_", "_annotations.coco")  # instances_val2017.json; Roboflow's val/_annotations.coco.json
NUMBERS = {int, float}  # of JSON; a bool is neither


class CocoRows:
    """The rows of "annotations", or of a list of COCO's results, in arrays: R of them.

    Args:
        scored: whether each has a score, as detections have, whose boxes must be sound too.

    Attributes:
        boxes: (R, 4) float64, x, y, width and height.
        scores: (R,) float64, if `scored`.
        crowd: (R,) bool.
        areas: (R,) float64, NaN where there is none.
    """

    def __init__(self, scored: bool = False) -> None:
        self.scored = scored
        # Each id stands once, by the number that the rows have for it: ids in the order in which they come.
        self._ids: dict[str, dict[Hashable, int]] = {"image_id": {}, "category_id": {}}
        self._numbers = {key: array("i") for key in self._ids}
        self._boxes, self._scores, self._areas, self._crowd = array("d"), array("d"), array("d"), bytearray()

    def __len__(self) -> int:
        return len(self._areas)

    def add(self, row: Any) -> None:
        """Adds a row.

        Raises:
            ValueError: it lacks something, or has what is not allowed; the message goes on behind the row's name.
        """
        try:
            image, category, box = row["image_id"], row["category_id"], row["bbox"]
            score = row["score"] if self.scored else 0.0
        except (KeyError, TypeError):
            keys = "image_id", "category_id", "bbox", "score"
            missing = next(key for key in keys if not isinstance(row, dict) or key not in row)
            raise ValueError(f" has no {missing!r}") from None
        for key, value in (("image_id", image), ("category_id", category)):
            if type(value) is not int and type(value) is not str:
                if not self.scored:
                    raise ValueError(f"[{key!r}] must be a number or a text, got {value!r}")
                if isinstance(value, (list, dict)):  # others are looked up as they are: 7.0 finds 7
                    raise ValueError(f"[{key!r}] is {value!r}, which is not there")
            ids = self._ids[key]
            number = ids.get(value)
            if number is None:
                number = ids[value] = len(ids)
            self._numbers[key].append(number)
        sound = type(box) is list and len(box) == 4 and NUMBERS.issuperset(map(type, box))
        if self.scored:
            if not (sound and box[2] >= 0 and box[3] >= 0 and all(map(is_finite, box))):
                raise ValueError(f"['bbox'] must be x, y, width and height, finite and sizes not negative, got {box!r}")
            if not is_finite(score):
                raise ValueError(f"['score'] must be a finite number, got {score!r}")
            self._scores.append(score)
        elif not sound:
            raise ValueError(f"['bbox'] must be 4 numbers, got {box!r}")
        try:
            self._boxes.extend(box)
        except OverflowError:
            del self._boxes[4 * len(self) :]
            self._boxes.extend(map(_float, box))
        self._crowd.append(1 if row.get("iscrowd") else 0)
        area = row.get("area")
        self._areas.append(area if is_finite(area) else math.nan)

    def numbers(self, key: str, known: Mapping[Any, int], where: str) -> np.ndarray:
        """What stands for the ids of a key, (R,) int64.

        Args:
            key: "image_id" or "category_id".
            known: the number of each id.
            where: the file, for messages.

        Raises:
            ValueError: an id is not among them.
        """
        for value, number in self._ids[key].items():
            if value not in known:
                index = self._numbers[key].index(number)
                raise ValueError(f"{where}[{index}][{key!r}] is {value!r}, which is not there")
        number_of = np.array([known[value] for value in self._ids[key]], np.int64)
        return number_of[np.array(self._numbers[key], np.int64)]

    @property
    def boxes(self) -> np.ndarray:
        return np.array(self._boxes).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        return np.array(self._scores)

    @property
    def areas(self) -> np.ndarray:
        return np.array(self._areas)

    @property
    def crowd(self) -> np.ndarray:
        return np.array(self._crowd, bool)


class CocoFile:
    """A file of COCO, checked.

    Args:
        path: the file.
        scored: see `CocoRows`.

    Attributes:
        images: dict from the id of each picture to its file name.
        categories: dict from the id of each category to its name, numbers before texts and each in their order.
        rows: `CocoRows` of its annotations.
        is_list: whether it is a list of COCO's results, which has no images and categories.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the JSON is broken, or a list, a key or a box is missing or is none: file, entry and key are named.
    """

    def __init__(self, path: Path, scored: bool = False) -> None:
        self.images: dict[Any, str] = {}
        self.categories: dict[Any, str] = {}
        self.rows = CocoRows(scored)
        self.is_list = False
        names = {"images": ("file_name", self.images), "categories": ("name", self.categories)}
        seen = set()
        for part, row in json_rows(path):
            if row is START:
                self.is_list = scored and part == ""
                seen.add(part)
            elif part in names:
                key, known = names[part]
                _add_name(row, key, known, f"{path}: {part}[{len(known)}]")
            elif part == "annotations" or self.is_list:
                try:
                    self.rows.add(row)
                except ValueError as error:
                    raise ValueError(f"{path}: {part}[{len(self.rows)}]{error}") from None
        for part in () if self.is_list else ("images", "annotations", "categories"):
            if part not in seen:
                raise ValueError(f"{path}: no list {part!r}, as COCO has it")
        self.categories = dict(sorted(self.categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _add_name(row: Any, key: str, known: dict[Any, str], where: str) -> None:
    for name in ("id", key):
        if not isinstance(row, dict) or name not in row:
            raise ValueError(f"{where} has no {name!r}")
    if type(row["id"]) not in (int, str):
        raise ValueError(f"{where}['id'] must be a number or a text, got {row['id']!r}")
    if row["id"] in known:
        raise ValueError(f"{where}['id'] is {row['id']!r}, which another has")
    if key == "file_name" and not isinstance(row[key], str):
        raise ValueError(f"{where}[{key!r}] must be a text, got {row[key]!r}")
    known[row["id"]] = str(row[key])


def is_finite(value: Any) -> bool:
    """Whether it is a number, of JSON, that a float holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _float(number: float) -> float:
    """Also of a whole number with hundreds of digits."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


class _Places:
    """Which of some folders holds a picture; each folder is listed once, as to ask for each picture takes a network
    disk minutes."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(dict.fromkeys(folders))
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, file_name: str, wanted_by: Path) -> Path:
        inside, _, name = file_name.rpartition("/")
        for folder in self.folders:
            if name in self._names(os.path.join(folder, inside)):
                return folder / file_name
        places = [folder / file_name for folder in self.folders]
        for place in places:  # by another case, where the disk allows it
            if place.is_file():
                return place
        looked = ", ".join(str(place.parent) for place in places)
        raise FileNotFoundError(f"{wanted_by}: no picture {file_name!r} in any of {looked}")

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]


def _files(root: Path) -> dict[str, Path]:
    """The JSON files of a folder by the names of their splits; a file is a split of its own, without a name."""
    if root.is_file():
        return {"": root}
    found = {}
    for path in sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json")) + sorted(root.glob("*/*.json")):
        if path.stem == PREFIXES[1]:
            found.setdefault(path.parent.name if path.parent != root else "", path)
        elif path.parent in (root, root / "annotations"):
            found.setdefault(path.stem.removeprefix(PREFIXES[0]), path)
    instances = {name: path for name, path in found.items() if path.stem.startswith(PREFIXES[0])}
    return instances or found  # beside COCO's instances lie captions and keypoints


class COCODataset(BoxDataset):
    """COCO's JSON files, see `BoxDataset`: `annotations/instances_<split>.json` with `<split>/` or `images/<split>/`,
    `<split>/_annotations.coco.json` with the pictures beside it, or one JSON file, itself or in its folder.

    Labels follow the order of the categories' ids. Boxes of crowds ("iscrowd") are left out but with `keep_crowds`.
    """

    @staticmethod
    def holds(folder: Path) -> bool:
        return any(path.suffix == ".json" for path in _files(folder).values())

    @staticmethod
    def splits(folder: Path) -> list[str]:
        found = _files(folder)
        return sorted(name for name in found if name) if len(found) > 1 else []

    @classmethod
    def _chosen(cls, root: Path, split: str | None) -> list[tuple[str, Path]]:
        found = _files(root)
        if not found:
            raise FileNotFoundError(f"{root}: no JSON file of annotations, as COCO has it")
        if split is not None and split not in found:
            raise FileNotFoundError(f"{root}: no such split {split!r}; there are: {cls.splits(root) or 'none'}")
        return [(name, path) for name, path in found.items() if split in (None, name)]

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: dict[str, list[tuple[Any, str]]] = {}  # of each file its categories, by their ids
        super().__init__(*args, **options)

    def _readers(self, root: Path, split: str | None) -> Iterator[Callable[[], Entry]]:
        for split_name, path in self._chosen(root, split):
            file = CocoFile(path)
            self._declared[str(path)] = list(file.categories.items())
            rows = file.rows
            names, where = list(file.categories.values()), f"{path}: annotations"
            images = rows.numbers("image_id", {id: i for i, id in enumerate(file.images)}, where)
            labels = rows.numbers("category_id", {id: i for i, id in enumerate(file.categories)}, where)
            order = np.argsort(images, kind="stable")
            ends = np.bincount(images, minlength=len(file.images)).cumsum().tolist()
            boxes, areas, crowd = rows.boxes, rows.areas, rows.crowd
            top = path.parent.parent if path.parent.name == "annotations" else path.parent
            places = _Places([path.parent, top, top / split_name, top / "images", top / "images" / split_name])
            begin = 0
            for (image_id, file_name), end in zip(file.images.items(), ends, strict=True):
                its = order[begin:end]
                columns = (column[its].tolist() for column in (labels, boxes, crowd, areas))
                objects = [
                    Object(index, names[label], tuple(box), crowd=is_crowd, area=None if math.isnan(area) else area)
                    for index, label, box, is_crowd, area in zip(its.tolist(), *columns, strict=True)
                ]
                yield partial(Entry, path, places.find(file_name, path), objects, image_id)
                begin = end

    @property
    def image_ids(self) -> Sequence[Any]:
        """The id of each picture in its file."""
        return self._image_ids

    @property
    def category_names(self) -> dict[Any, str]:
        """The names of the categories by their ids.

        Raises:
            ValueError: two files have one id for two names.
        """
        names: dict[Any, str] = {}
        for path, categories in self._declared.items():
            for id, name in categories:
                if names.setdefault(id, name) != name:
                    raise ValueError(f"{path}: category {id!r} is {name!r}, elsewhere {names[id]!r}")
        return names

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return list(dict.fromkeys(name for categories in self._declared.values() for _, name in categories))

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        x, y, w, h = written
        return x, y, x + w, y + h
