"""Datasets in COCO's format: one JSON file for many pictures, with boxes as (x, y, width, height) in pixels."""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssd.data.annotations import NO_BOX, Entry, ImageId, Object
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, is_split
from ssd.data.json_kinds import COCO, kinds
from ssd.data.json_rows import START, json_rows
from ssd.runtime.faults import Faults
from ssd.runtime.text import composed

PREFIXES = ("instances_", "_annotations.coco")  # instances_val2017.json; Roboflow's val/_annotations.coco.json
Id = int | str  # of a picture or a category

NUMBERS = {int, float}  # types of a number in JSON; bool is not among them


class CocoRows:
    """The R rows of "annotations", or of a list of results in COCO's format, as arrays.

    Args:
        scored: whether the rows are detections: each has a score, and its box must be finite with sizes >= 0.

    Attributes:
        boxes: (R, 4) float64 x, y, width and height in pixels; `NO_BOX` if an annotation has none.
        scores: (R,) float64; empty unless `scored`.
        crowd: (R,) bool, whether "iscrowd" is set.
        areas: (R,) float64 in square pixels, NaN for rows without an area.
    """

    def __init__(self, scored: bool = False) -> None:
        self.scored = scored
        # Each id is stored once, with a number in the order of first appearance; the rows hold these numbers.
        self._image_ids: dict[Hashable, int] = {}
        self._category_ids: dict[Hashable, int] = {}
        self._images, self._categories = array("i"), array("i")
        self._boxes, self._scores, self._areas, self._crowd = array("d"), array("d"), array("d"), bytearray()

    def __len__(self) -> int:
        return len(self._areas)

    def add(self, row: Any) -> None:
        """Adds a row.

        Args:
            row: a value of the JSON file.

        Raises:
            ValueError: a key is missing or has a wrong value. The caller puts the row's name before the message.
        """
        try:
            image, category = row["image_id"], row["category_id"]
            box, score = (row["bbox"], row["score"]) if self.scored else (row.get("bbox"), 0.0)
        except (KeyError, TypeError):
            keys = "image_id", "category_id", "bbox", "score"
            missing = next(key for key in keys if not isinstance(row, dict) or key not in row)
            raise ValueError(f" has no {missing!r}") from None
        if type(image) is not int or type(category) is not int:
            self._check_ids(row)
        sound = type(box) is list and len(box) == 4 and NUMBERS.issuperset(map(type, box))
        if self.scored:
            if not (sound and box[2] >= 0 and box[3] >= 0 and all(map(is_finite, box))):
                raise ValueError(f"['bbox'] must be x, y, width and height, finite with sizes >= 0, got {box!r}")
            if not is_finite(score):
                raise ValueError(f"['score'] must be a finite number, got {score!r}")
            self._scores.append(score)
        elif not sound:
            if box is not None and box != []:
                raise ValueError(f"['bbox'] must be 4 numbers, got {box!r}")
            box = NO_BOX
        self._images.append(self._image_ids.setdefault(image, len(self._image_ids)))
        self._categories.append(self._category_ids.setdefault(category, len(self._category_ids)))
        try:
            self._boxes.extend(box)
        except OverflowError:
            del self._boxes[4 * len(self) :]
            self._boxes.extend(map(_float, box))
        self._crowd.append(1 if row.get("iscrowd") else 0)
        area = row.get("area")
        self._areas.append(area if is_finite(area) else math.nan)

    def _check_ids(self, row: Any) -> None:
        """Raises ValueError if an id of a row is neither an integer nor a text."""
        for key in ("image_id", "category_id"):
            value = row[key]
            if type(value) is int or type(value) is str:
                continue
            if not self.scored:
                raise ValueError(f"[{key!r}] must be an integer or a string, got {value!r}")
            if isinstance(value, (list, dict)):  # other values are looked up unchanged: 7.0 finds 7
                raise ValueError(f"[{key!r}] is {value!r}, which does not exist")

    def numbers(self, key: str, known: Mapping[Any, int], where: str, unknown: int | None = None) -> np.ndarray:
        """Looks up the ids of all rows. An id that is not known as a number may be known as a text, and vice versa.

        Args:
            key: "image_id" or "category_id".
            known: an index for each id.
            where: the file and list, for error messages.
            unknown: the index of ids that are not in `known`; None: they are errors.

        Returns:
            (R,) int64, for each row the index that `known` has for its id.

        Raises:
            ValueError: ids are not in `known`, and `unknown` is None.
        """
        ids, column = (self._image_ids, self._images) if key == "image_id" else (self._category_ids, self._categories)
        numbers = np.array(column, np.int64)
        number_of = [known.get(value, known.get(_other_type(value), unknown)) for value in ids]
        if None in number_of:
            faults = Faults()
            rows = np.unique(numbers, return_index=True)[1].tolist()  # the first one of each id
            for value, row, index in zip(ids, rows, number_of, strict=True):
                if index is None:
                    faults.add(ValueError(f"{where}[{row}][{key!r}] is {value!r}, which does not exist"))
            faults.check()
        return np.array(number_of, np.int64)[numbers]

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
    """Reads and checks a JSON file in COCO's format.

    Args:
        path: the file.
        scored: whether its annotations are detections with a score, see `CocoRows`. The file may then be a plain list.

    Attributes:
        images: dict from the id of each picture to its file name.
        sizes: list of the width and height that the file gives for each picture; zeros if it gives none.
        categories: dict from the id of each category to its name, sorted by id, numbers before texts.
        rows: `CocoRows` of its annotations.
        is_list: whether the file is a list of results, without images and categories.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the JSON is broken, or a list, a key or a value is missing or wrong. The message names the file, the
            entry and the key.
    """

    def __init__(self, path: Path, scored: bool = False) -> None:
        self.images: dict[Id, str] = {}
        self.categories: dict[Id, str] = {}
        self.sizes: list[tuple[int, int]] = []
        self.rows = CocoRows(scored)
        self.is_list = False
        names = {"images": ("file_name", self.images), "categories": ("name", self.categories)}
        seen: Counter[str] = Counter()  # the entries of each list that were read
        faults = Faults()
        for part, row in json_rows(path):
            if row is START:
                self.is_list = scored and part == ""
                seen[part] = 0
                continue
            try:
                if part in names:
                    _add_name(row, *names[part])
                    if part == "images":
                        self.sizes.append((_pixels(row.get("width")), _pixels(row.get("height"))))
                elif part == "annotations" or self.is_list:
                    self.rows.add(row)
            except ValueError as error:
                faults.add(ValueError(f"{path}: {part}[{seen[part]}]{error}"))
            seen[part] += 1
        faults.check()
        for part in () if self.is_list else ("images", "annotations", "categories"):
            if part not in seen:
                raise ValueError(f"{path}: no list {part!r}, which COCO's format requires")
        self.categories = dict(sorted(self.categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _add_name(row: Any, key: str, known: dict[Id, str]) -> None:
    """Adds the name of a picture or a category. Raises ValueError with a message that lacks the name of the row."""
    for name in ("id", key):
        if not isinstance(row, dict) or name not in row:
            raise ValueError(f" has no {name!r}")
    if type(row["id"]) not in (int, str):
        raise ValueError(f"['id'] must be an integer or a string, got {row['id']!r}")
    if row["id"] in known:
        raise ValueError(f"['id'] is {row['id']!r}, a duplicate")
    if key == "file_name" and not isinstance(row[key], str):
        raise ValueError(f"[{key!r}] must be a string, got {row[key]!r}")
    known[row["id"]] = composed(str(row[key]))


def _other_type(value: Any) -> Id | None:
    """The same id as a text instead of an integer, or as an integer instead of a text; None if there is none."""
    if type(value) is int:
        return str(value)
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def _pixels(value: Any) -> int:
    """A width or a height; 0 if the file has no usable number, which is not needed to read the boxes."""
    return int(value) if is_finite(value) and 0 < value < 1 << 31 else 0


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold; infinities, NaN and bools are not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _float(number: float) -> float:
    """Converts a number; integers that are too large become infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _files(folder: Folder) -> dict[str, str]:
    """Finds the JSON files of annotations, by the names of their splits; a single file has the name ""."""
    files = [path for path, kind in folder.once(kinds).items() if _is_coco(folder, path, kind)]
    instances = [path for path in files if PurePosixPath(path).stem.startswith(PREFIXES[0])]
    found: dict[str, str] = {}
    for path in instances or files:  # COCO's folder also has files of captions and keypoints
        inside, stem = PurePosixPath(path).parent.name, PurePosixPath(path).stem.removeprefix(PREFIXES[0])
        name = inside if is_split(inside) and not is_split(stem) else stem
        if name in found:
            raise ValueError(f"{folder.root}: {found[name]} and {path} are both named {name!r}; name one as the data")
        found[name] = path
    if len(found) == 1 and not is_split(next(iter(found))):
        return {"": next(iter(found.values()))}
    return found


def _is_coco(folder: Folder, path: str, kind: str) -> bool:
    """Whether a JSON file is one of COCO's, by its name or its first keys; files of other formats are not."""
    inside, _, name = (folder.root / path).as_posix().rpartition("/")
    expected = folder.only is not None or inside.endswith("/annotations")  # so that errors in the file are reported
    return name.startswith(PREFIXES) or kind == COCO or (expected and not kind)


def _top(inside: Path) -> Path:
    """The folder of pictures and annotations, of the folder that a JSON file is in."""
    return inside.parent if inside.name == "annotations" else inside


def _entry(
    root: Path, find: Callable[[], str], file: Path, objects: list[Object], image_id: Id, size: tuple[int, int]
) -> Entry:
    return Entry(file, root / find(), objects, image_id, size)


class COCODataset(BoxDataset):
    """A dataset in COCO's format; arguments and attributes are those of `BoxDataset`.

    Its layout is `annotations/instances_<split>.json` with pictures in `<split>/` or `images/<split>/`, or
    `<split>/_annotations.coco.json` beside its pictures, or a single JSON file, given by its path or by its folder.
    Labels follow the order of the category ids. Boxes of crowds ("iscrowd") are left out unless `keep_crowds`.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import COCODataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> annotation = {"image_id": 1, "category_id": 17, "bbox": [10, 5, 20, 20]}
        >>> images, categories = [{"id": 1, "file_name": "a.png"}], [{"id": 17, "name": "cat"}]
        >>> content = {"images": images, "annotations": [annotation], "categories": categories}
        >>> _ = Path("cats.json").write_text(json.dumps(content))
        >>> image, target = COCODataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "COCO"
    LAYOUT = (
        "annotations/instances_train.json and the pictures in train/ or images/train/; or train/_annotations.coco.json "
        "beside its pictures; or a JSON file instead of a folder"
    )

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        files = list(_files(folder).values())
        return f"COCO's {', '.join(files[:3])}" if files else None

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted(filter(None, _files(folder)))

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: dict[str, list[tuple[Id, str]]] = {}  # id and name of the categories of each file
        super().__init__(*args, **options)

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        files = _files(folder)
        if not files:
            others = [str(folder.root / name) for name in folder.files(".json")] or [f"{folder.path}: no JSON file"]
            raise ValueError(
                f"{', '.join(others[:3])}: not in COCO's format, which has images, annotations, categories"
            )
        for split_name, name in files.items():
            if split not in (None, split_name):
                continue
            path = folder.root / name
            file = CocoFile(path)
            self._declared[str(path)] = list(file.categories.items())
            rows = file.rows
            names, where = list(file.categories.values()), f"{path}: annotations"
            images = rows.numbers("image_id", {id: i for i, id in enumerate(file.images)}, where)
            labels = rows.numbers("category_id", {id: i for i, id in enumerate(file.categories)}, where)
            order = np.argsort(images, kind="stable")
            ends = np.bincount(images, minlength=len(file.images)).cumsum().tolist()
            boxes, areas, crowd = rows.boxes, rows.areas, rows.crowd
            surroundings = folder if folder.only is None else Folder(_top(folder.root))
            beside = name if surroundings is folder else path.relative_to(surroundings.root).as_posix()
            begin = 0
            for (image_id, file_name), size, end in zip(file.images.items(), file.sizes, ends, strict=True):
                its = order[begin:end]
                columns = (column[its].tolist() for column in (labels, boxes, crowd, areas))
                objects = [
                    Object(index, names[label], tuple(box), crowd=is_crowd, area=None if math.isnan(area) else area)
                    for index, label, box, is_crowd, area in zip(its.tolist(), *columns, strict=True)
                ]
                found = partial(surroundings.find, [file_name], beside, split_name)
                yield partial(_entry, surroundings.root, found, path, objects, image_id, size)
                begin = end

    @property
    def image_ids(self) -> Sequence[ImageId]:
        """The id of each picture, an integer or a string, in the order of the dataset."""
        return self._image_ids

    @property
    def category_names(self) -> dict[Id, str]:
        """Dict from the id of each category to its name.

        Raises:
            ValueError: two files use the same id for different names.
        """
        names: dict[Id, str] = {}
        for path, categories in self._declared.items():
            for id, name in categories:
                if names.setdefault(id, name) != name:
                    raise ValueError(f"{path}: category {id!r} is {name!r}, elsewhere {names[id]!r}")
        return names

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return [name for categories in self._declared.values() for _, name in categories]

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        x, y, w, h = written
        return x, y, x + w, y + h
