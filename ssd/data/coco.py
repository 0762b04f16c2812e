"""Datasets in COCO's JSON: one file for many pictures, boxes as (x, y, width, height) in pixels."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssd.data.dataset import BoxDataset, Entry, Object

PREFIXES = ("instances_", "_annotations.coco")  # instances_val2017.json; Roboflow's val/_annotations.coco.json
KEYS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> dict[str, list[dict[str, Any]]]:
    """The checked content of a file."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: broken JSON ({error})") from error
    for part, keys in KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{path}: no list {part!r}, as COCO has it")
        for index, row in enumerate(content[part]):
            for key in keys:
                if not isinstance(row, dict) or key not in row:
                    raise ValueError(f"{path}: {part}[{index}] has no {key!r}")
                if key.endswith("id") and type(row[key]) not in (int, str):
                    raise ValueError(f"{path}: {part}[{index}][{key!r}] must be a number or a text, got {row[key]!r}")
                if key == "file_name" and not isinstance(row[key], str):
                    raise ValueError(f"{path}: {part}[{index}][{key!r}] must be a text, got {row[key]!r}")
    for part in ("images", "categories"):
        seen = set()
        for index, row in enumerate(content[part]):
            if row["id"] in seen:
                raise ValueError(f"{path}: {part}[{index}]['id'] is {row['id']!r}, which another has")
            seen.add(row["id"])
    for index, row in enumerate(content["annotations"]):
        box = row["bbox"]
        numbers = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
        if not numbers:
            raise ValueError(f"{path}: annotations[{index}]['bbox'] must be 4 numbers, got {box!r}")
    return content


def is_finite(value: Any) -> bool:
    """Whether it is a number, of JSON, that a float holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _float(number: float) -> float:
    """Also of a whole number with hundreds of digits."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def read_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists "images", "annotations" and "categories" of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the JSON is broken, or a list, a key or a box is missing or is none: file, entry and key are named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _read(path, path.stat().st_mtime_ns)


def category_names(content: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The names of the categories in the order of their ids, numbers before texts."""
    rows = sorted(content["categories"], key=lambda row: (isinstance(row["id"], str), row["id"]))
    return [str(row["name"]) for row in rows]


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

    @classmethod
    def _entries(cls, root: Path, split: str | None) -> list[Entry]:
        entries = []
        for name, path in cls._chosen(root, split):
            content = read_coco(path)
            names = {row["id"]: str(row["name"]) for row in content["categories"]}
            objects: dict[Any, list[Object]] = {row["id"]: [] for row in content["images"]}
            for index, row in enumerate(content["annotations"]):
                for key, known in (("image_id", objects), ("category_id", names)):
                    if row[key] not in known:
                        raise ValueError(f"{path}: annotations[{index}][{key!r}] is {row[key]!r}, which is not there")
                box = tuple(map(_float, row["bbox"]))
                area = row.get("area")
                found = Object(
                    index,
                    names[row["category_id"]],
                    box,
                    crowd=bool(row.get("iscrowd", 0)),
                    area=float(area) if is_finite(area) else None,
                )
                objects[row["image_id"]].append(found)
            top = path.parent.parent if path.parent.name == "annotations" else path.parent
            folders = [path.parent, top, top / name, top / "images", top / "images" / name]
            for row in content["images"]:
                places = [folder / row["file_name"] for folder in folders]
                picture = next((place for place in places if place.is_file()), None)
                if picture is None:
                    looked = ", ".join(dict.fromkeys(str(place.parent) for place in places))
                    raise FileNotFoundError(f"{path}: no picture {row['file_name']!r} in any of {looked}")
                entries.append(Entry(path, picture, objects[row["id"]], row["id"]))
        return entries

    @property
    def image_ids(self) -> list[Any]:
        """The id of each picture in its file."""
        return [sample.image_id for sample in self._samples]

    @property
    def category_names(self) -> dict[Any, str]:
        """The names of the categories by their ids.

        Raises:
            ValueError: two files have one id for two names.
        """
        names: dict[Any, str] = {}
        for path in dict.fromkeys(sample.annotation for sample in self._samples):
            for row in read_coco(path)["categories"]:
                if names.setdefault(row["id"], str(row["name"])) != str(row["name"]):
                    raise ValueError(
                        f"{path}: category {row['id']!r} is {row['name']!r}, elsewhere {names[row['id']]!r}"
                    )
        return names

    @classmethod
    def _names(cls, roots: Sequence[Path], split: str | None, entries: Sequence[Entry]) -> Sequence[str]:
        names: dict[str, None] = {}
        for root in roots:
            for _, path in cls._chosen(root, split):
                names |= dict.fromkeys(category_names(read_coco(path)))
        return list(names)

    @staticmethod
    def _edges(box: Sequence[float], height: int, width: int) -> tuple[float, ...]:
        x, y, w, h = box
        return x, y, x + w, y + h
