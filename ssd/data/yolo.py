"""Datasets in YOLO's layout: a text file per picture, a line per object, boxes in fractions of the picture."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import yaml

from ssd.data.annotations import Entry, Object
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, split_of
from ssd.data.reading import is_picture
from ssd.runtime.text import read_lines, read_text

NAMES = ("classes.txt", "obj.names", "_darknet.labels")  # files with the class names, a line each
KEYS = ("train", "val", "test")  # of the YAML file: the pictures of each split
LABELS = {"images": "labels", "image": "label"}  # folders of pictures, and of their text files beside them
AnyPath = TypeVar("AnyPath", bound=PurePath)


class _Described(NamedTuple):
    """A YAML file that describes the data, as Ultralytics and Roboflow write it."""

    path: Path
    content: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The class names: a list, or a dict with the keys 0, 1 ... in any order, also as texts."""
        names = self.content.get("names")
        if isinstance(names, dict):
            by_number = {str(key): name for key, name in names.items()}
            names = [by_number.get(str(number)) for number in range(len(names))]
        if not isinstance(names, list) or not names or None in names:
            given = self.content.get("names")
            raise ValueError(f"{self.path}: 'names' must be a list, or a dict with the keys 0, 1, ..., got {given!r}")
        return list(map(str, names))

    def pictures(self, key: str) -> list[Path]:
        """The pictures of a split: of a folder, of a list of pictures in a text file, or of several of these."""
        found: list[Path] = []
        for path in self.places(key):
            if path.is_dir():
                found += sorted(filter(is_picture, path.rglob("*")))
            else:
                found += [self._resolve(line, str(path)) for line in read_lines(path)]
        return found

    def places(self, key: str) -> list[Path]:
        """The folders and list files of a split."""
        value = self.content.get(key) or []
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) and place for place in places):
            raise ValueError(f"{self.path}: {key!r} must be a folder, a list file, or a list of these, got {value!r}")
        return [self._resolve(place, key) for place in places]

    def _resolve(self, place: str, what: str) -> Path:
        """A path of the file: relative to its `path`, to its folder, or to the folder above.

        Roboflow writes ../train/images for a folder beside the file, so leading ".." may also be left out.
        """
        here, place = self.path.parent, place.replace("\\", "/")
        given = str(self.content.get("path") or ".")
        inner = re.sub(r"^(\.\./)+", "", place)
        bases = (here / given, here / ".." / given, here, here / "..")
        tried = [Path(os.path.normpath(base / name)) for base in bases for name in (place, inner)]
        for path in tried:
            if path.exists():
                return path
        raise FileNotFoundError(f"{self.path}: {what!r} names {place}, which is not there; looked for {tried[0]}")


def _description(folder: Folder) -> _Described | None:
    """Finds the YAML file that has the class names: data.yaml, or the only one of another name."""
    found = []
    for name in folder.files(".yaml", ".yml"):
        path = folder.root / name
        if "/" in name and not folder.only:
            continue
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: broken YAML ({' '.join(str(error).split())})") from error
        content = content if isinstance(content, dict) else {}
        if "names" in content or path.name == "data.yaml" or folder.only:
            found.append(_Described(path, content))
    usual = [described for described in found if described.path.name == "data.yaml"]
    if len(usual or found) > 1:
        names = " and ".join(described.path.name for described in found[:2])
        raise ValueError(f"{folder.root}: {names} both describe a data set; name one of them as the data")
    return next(iter(usual or found), None)


def _names_file(folder: Folder) -> Path | None:
    """Finds the file with a class name in each line."""
    files = folder.files(".txt", ".names", ".labels")
    found = [path for path in files if path.rpartition("/")[2] in NAMES or path.endswith(".names")]
    return folder.root / min(found, key=lambda path: path.count("/")) if found else None


def _label_files(picture: AnyPath) -> list[AnyPath]:
    """Where the label file of a picture may be: images/a.jpg -> labels/a.txt in the innermost folder, or beside it."""
    parts, beside = picture.parts, picture.with_suffix(".txt")
    for i in range(len(parts) - 2, -1, -1):
        label = LABELS.get(parts[i].lower())
        if label is not None:
            label = label.capitalize() if parts[i][0].isupper() else label
            return [type(picture)(*parts[:i], label, *parts[i + 1 :]).with_suffix(".txt"), beside]
    return [beside]


def _label_file(picture: Path) -> Path:
    """The label file of a picture; the first place if it has none."""
    places = _label_files(picture)
    return next((path for path in places if path.is_file()), places[0])


def _parts(folder: Folder) -> dict[str, list[Path]]:
    """The pictures of each split; "" has those that are in no split."""
    parts: dict[str, list[Path]] = {}
    if described := _description(folder):
        parts = {key: described.pictures(key) for key in KEYS if described.content.get(key)}
    for name, path in folder.lists().items():
        parts.setdefault(name, [folder.root / folder.find([line], path) for line in read_lines(folder.root / path)])
    known = {os.path.abspath(picture) for pictures in parts.values() for picture in pictures}
    listed = bool(parts)
    for path in folder.pictures:
        split, picture = split_of(path), folder.root / path
        if (split or not listed) and os.path.abspath(picture) not in known and _is_labelled(folder, path):
            parts.setdefault(split, []).append(picture)
    return parts


def _has_labels(folder: Folder, path: str) -> bool:
    return any(folder.has(str(place)) for place in _label_files(PurePosixPath(path)))


def _is_labelled(folder: Folder, path: str) -> bool:
    """Whether a picture belongs to the data: it is in a folder "images", or has a text file."""
    inside = {part.lower() for part in path.split("/")[:-1]}
    return not inside.isdisjoint(LABELS) or _has_labels(folder, path)


def _objects(path: Path, names: Sequence[str]) -> list[Object]:
    if not path.is_file():
        return []
    objects = []
    for index, line in enumerate(read_text(path).splitlines()):
        if not line.strip():
            continue
        try:
            first, *rest = line.split()
            label, numbers = int(first), [float(number) for number in rest]
        except ValueError:
            raise ValueError(
                f"{path}: line {index + 1} must be the number of a class, then numbers, got {line!r}"
            ) from None
        if len(numbers) < 4 or (len(numbers) > 4 and len(numbers) % 2):
            raise ValueError(
                f"{path}: line {index + 1} must have 4 numbers, or the x and y of a polygon's corners, got {line!r}"
            )
        if not 0 <= label < len(names):
            raise ValueError(f"{path}: line {index + 1} has class {label}, but there are {len(names)} classes: {names}")
        if len(numbers) > 4:  # corners of a polygon, which are replaced by its box
            xs, ys = numbers[::2], numbers[1::2]
            x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
            numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
        objects.append(Object(index, names[label], tuple(numbers)))
    return objects


def _entry(picture: Path, names: Sequence[str]) -> Entry:
    path = _label_file(picture)
    return Entry(path, picture, _objects(path, names))


class YOLODataset(BoxDataset):
    """A dataset in YOLO's layout; arguments and attributes are those of `BoxDataset`.

    A YAML file names the folders or lists of the pictures of each split, or the folders are named like splits. The text
    file of a picture is in the same place with `labels` instead of `images`, or beside the picture; a picture without a
    text file has no objects. The YAML file, classes.txt or obj.names has the names of the classes.
    """

    FORMAT = "YOLO"
    LAYOUT = (
        "a YAML file that names the pictures and classes, or classes.txt or obj.names; *.txt beside the pictures, or "
        "in labels/ where the pictures are in images/"
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: list[str] = []  # the names of the classes
        super().__init__(*args, **options)

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        if described := _description(folder):
            return f"YOLO's {described.path.name}"
        names = _names_file(folder)
        labelled = None
        if names is not None and len(folder.files(".txt")) > (names.suffix == ".txt"):
            labelled = next((path for path in folder.pictures if _has_labels(folder, path)), None)
        if names is None or labelled is None:
            return None
        return f"YOLO's text files, such as that of {labelled}, with the classes of {names.name}"

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted(filter(None, _parts(folder)))

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        described, listed = _description(folder), _names_file(folder)
        if described is None and listed is None:
            raise FileNotFoundError(f"{folder.path}: no YAML file, classes.txt or obj.names with the class names")
        names = described.names if described else read_lines(listed) if listed else []
        self._declared += names
        parts = _parts(folder)
        chosen = [picture for name, pictures in parts.items() if split in (None, name) for picture in pictures]
        for picture in dict.fromkeys(chosen):  # a YAML file may name a folder for two splits
            yield partial(_entry, picture, names)

    def _others(self, folder: Folder, split: str | None) -> Iterable[Path]:
        described, names = _description(folder), _names_file(folder)
        if described is not None:  # whose folders and lists may be outside of this folder
            yield from (described.path, *(place for key in KEYS for place in described.places(key)))
        yield from () if names is None else (names,)
        yield from (folder.root / path for path in folder.lists().values())

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return list(dict.fromkeys(self._declared))

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        cx, cy, w, h = written
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
