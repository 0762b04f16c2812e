"""Reading whole JSON files, and telling by its first keys which tool has written one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ssd.data.folder import Folder

HEAD = 1 << 16  # bytes at the beginning of a file in which the keys must be
COCO, LABELME, VIA, LABEL_STUDIO, CREATEML = "COCO", "LabelMe", "VIA", "Label Studio", "CreateML"
WEBDATASET = "WebDataset"
DATUMARO = "Datumaro"
LABEL_LISTS = rb'"(rectangle|polygon|ellipse|brush|keypoint)labels"\s*:'
# The kind of a file by its first bracket and by keys that it has; the first line that fits decides. A file that begins
# with "[" is never one of COCO's annotations, but may be a list of detections.
KEYS = (
    (
        b"[",
        re.compile(LABEL_LISTS + rb'|"(was_cancelled|annotation_id|file_upload|total_annotations)"\s*:'),
        LABEL_STUDIO,
    ),
    (b"[", re.compile(rb'"annotations"\s*:\s*\[(?s:.*)"coordinates"\s*:'), CREATEML),
    (b"{", re.compile(LABEL_LISTS + rb'|"was_cancelled"\s*:'), LABEL_STUDIO),
    (b"{", re.compile(rb'"(_via_settings|_via_img_metadata|shape_attributes|file_attributes)"\s*:'), VIA),
    (b"{", re.compile(rb'"(imagePath|imageData)"\s*:|"shapes"\s*:\s*\[\s*\{[^][{}]*"points"\s*:'), LABELME),
    (b"{", re.compile(rb'"items"\s*:\s*\['), DATUMARO),  # which is not read, but has categories and annotations too
    (b"{", re.compile(rb'"(images|annotations|categories)"\s*:'), COCO),
)
PICTURES_OR_BOXES = re.compile(rb'"(images|annotations)"\s*:')
OF_MANY = re.compile(rb'"(images|categories)"\s*:')  # keys of a file that describes many pictures
IN_A_LIST = re.compile(rb'"image_id"\s*:')  # key of an annotation of such a file
TYPES = {dict: "an object", list: "a list", str: "a text"}
Value = TypeVar("Value", dict[str, Any], list[Any], str)


def kinds(folder: Folder) -> dict[str, str]:
    """The kind of each JSON file of a folder, by its path; "" for unknown ones. Call it with `Folder.once`."""
    return {path: _kind(folder.head(path, HEAD)) for path in folder.files(".json")}


def of_kind(folder: Folder, kind: str) -> list[str]:
    """The paths of the JSON files of one kind."""
    return [path for path, its in folder.once(kinds).items() if its == kind]


def _kind(start: bytes) -> str:
    head = start.replace(b"\0", b"")  # of UTF-16
    bracket = re.search(rb"[\[{]", head)
    fits = (kind for first, keys, kind in KEYS if bracket and bracket[0] == first and keys.search(head))
    kind = next(fits, "")
    if kind != COCO:
        return kind
    whole = len(start) < HEAD
    if not PICTURES_OR_BOXES.search(head):  # Label Studio's notes.json has only the categories
        return "" if whole else kind
    return kind if OF_MANY.search(head) or (not whole and IN_A_LIST.search(head)) else WEBDATASET


def read_json(path: Path) -> Any:
    """Reads a JSON file in UTF-8, UTF-16 or UTF-32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the JSON is broken.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None


def is_json(path: Path) -> bool:
    """Tells whether a file is sound JSON."""
    try:
        read_json(path)
    except ValueError:
        return False
    return True


def field(row: Any, key: str, kind: type[Value], where: str) -> Value:
    """The value of a key, which must have a type.

    Args:
        row: an object of a JSON file.
        key: its key.
        kind: dict, list or str.
        where: the name of the row, for error messages.

    Raises:
        ValueError: the row is no object, has no such key, or its value has another type.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object, got {row!r}")
    if key not in row:
        raise ValueError(f"{where} has no {key!r}")
    if not isinstance(row[key], kind):
        raise ValueError(f"{where}[{key!r}] must be {TYPES[kind]}, got {row[key]!r}")
    return row[key]


def name_in(row: Any, key: str, where: str) -> str:
    """The name of a class: a text that is not empty. Arguments and errors are those of `field`."""
    name = field(row, key, str, where).strip()
    if not name:
        raise ValueError(f"{where}[{key!r}] is empty; it must be the name of a class")
    return name


def numbers_in(row: Mapping[str, Any], keys: str, where: str) -> list[float]:
    """The numbers of several keys, which are separated by blanks.

    Raises:
        ValueError: a key is missing, or its value is no number.
    """
    for key in keys.split():
        if key not in row:
            raise ValueError(f"{where} has no {key!r}")
    return [_number(row[key], f"{where}[{key!r}]") for key in keys.split()]


def points_in(values: Any, where: str) -> list[tuple[float, float]]:
    """The points of a list of [x, y].

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(values, list) or not all(isinstance(point, list) and len(point) == 2 for point in values):
        raise ValueError(f"{where} must be a list of points [x, y], got {values!r}")
    return [(_number(x, where), _number(y, where)) for x, y in values]


def numbers_of(values: Any, n: int, where: str) -> list[float]:
    """The numbers of a list of n numbers.

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(f"{where} must be a list of {n} numbers, got {values!r}")
    return [_number(value, where) for value in values]


def size_in(row: Mapping[str, Any], width: str, height: str, where: str) -> tuple[int, int]:
    """The width and height of a picture by their keys; zeros if one of them is missing or null.

    Raises:
        ValueError: a value is no number of pixels.
    """
    if row.get(width) is None or row.get(height) is None:
        return 0, 0
    sizes = numbers_in(row, f"{width} {height}", where)
    for key, size in zip((width, height), sizes, strict=True):
        if not 0 <= size < 1 << 31:
            raise ValueError(f"{where}[{key!r}] must be a number of pixels, got {row[key]!r}")
    return int(sizes[0]), int(sizes[1])


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float):  # a bool is no number
        raise ValueError(f"{where} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
