"""Datasets in YOLO's layout: a text file per picture, a line per object, boxes in fractions of the picture."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import yaml

from ssd.data.annotations import Entry, Object
from ssd.data.archives import ArchiveFolder
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, is_split, split_of
from ssd.runtime.faults import Faults
from ssd.runtime.text import composed, read_lines, read_text, spellings

NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")  # files with the class names, a line each
KEYS_OF_DARKNET = ("train", "valid", "test")
KEYS = ("train", "val", "test")  # of the YAML file: the pictures of each split
LABELS = {"images": "labels", "image": "label"}  # folders of pictures, and of their text files beside them
CORNERS = "outlines or oriented boxes; the bounds of their corners are used"
KEY_POINTS = "boxes with key points; only the boxes are used"
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
        count = self.content.get("nc")
        if isinstance(names, list) and isinstance(count, int) and count != len(names):
            raise ValueError(f"{self.path}: 'nc' is {count}, but there are {len(names)} 'names': {names}")
        if not isinstance(names, list) or not names or None in names:
            given = self.content.get("names")
            raise ValueError(f"{self.path}: 'names' must be a list, or a dict with the keys 0, 1, ..., got {given!r}")
        return list(map(str, names))

    @property
    def key_points(self) -> tuple[int, int] | None:
        """The number of key points of each object, and how many numbers each has: 2, or 3 with its visibility."""
        shape = self.content.get("kpt_shape")
        if shape is None:
            return None
        match shape:
            case [int(number), 2 | 3 as values] if number >= 0:
                return number, values
        raise ValueError(f"{self.path}: 'kpt_shape' must be the number of key points, then 2 or 3, got {shape!r}")

    @property
    def splits(self) -> list[str]:
        """The splits that are given. A test split that is not there is left out: Roboflow names one in any case."""
        given = [key for key in KEYS if self.content.get(key)]
        with suppress(FileNotFoundError):
            self.places("test")
            return given
        return [key for key in given if key != "test"]

    def pictures(self, key: str) -> list[Path]:
        """The pictures of a split: of a folder, of a list of pictures in a text file, or of several of these."""
        found: list[Path] = []
        faults = Faults()
        for path in self.places(key):
            if path.is_dir():
                found += [path / name for name in Folder(path).pictures]
            else:
                for line in read_lines(path):
                    with faults.caught():
                        found.append(self._resolve(line, str(path), is_picture=True))
        faults.check()
        return found

    def places(self, key: str) -> list[Path]:
        """The folders and list files of a split."""
        value = self.content.get(key) or []
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) and place for place in places):
            raise ValueError(f"{self.path}: {key!r} must be a folder, a list file, or a list of these, got {value!r}")
        return [self._resolve(place, key) for place in places]

    def _resolve(self, place: str, what: str, is_picture: bool = False) -> Path:
        """A path of the file: relative to its `path`, to its folder, or to the folder above.

        Roboflow writes ../train/images for a folder beside the file, so leading ".." may also be left out. If there is
        no such path, its first folders are left out, because they may be those of another machine, as in
        /content/set/train/images, or those of a program, as CVAT's data/images/train/a.jpg. For a folder, what is left
        must name a split or have two parts: "images" alone may be the pictures of any split.
        """
        here, place = self.path.parent, place.replace("\\", "/")
        given = str(self.content.get("path") or ".")
        inner = re.sub(r"^(\.\./)+", "", place)
        bases = (here / given, here / ".." / given, here, here / "..")
        names = [name for path in (place, inner) for name in spellings(path)]
        tried = [Path(os.path.normpath(base / name)) for base in bases for name in names]
        for path in tried:
            if path.exists():
                return path
        for name in spellings(str(PurePosixPath(given, inner))):
            parts = PurePosixPath(name).parts
            for i in range(1, len(parts)):
                path = here.joinpath(*parts[i:])
                if (is_picture or len(parts) - i > 1 or is_split(parts[i])) and ".." not in parts[i:] and path.exists():
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


def _class_names(path: Path) -> list[str]:
    """The class names of a file with one in each line.

    Raises:
        ValueError: an empty line stands before a name, which would change the numbers of the classes behind it.
    """
    lines = [line.strip() for line in read_text(path).strip().splitlines()]
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1} is empty; each line must be the name of a class")
    return lines


def _lists(folder: Folder) -> dict[str, str]:
    """Finds the lists of pictures by their splits: those that darknet's obj.data names, and those named like splits."""
    lists = folder.lists()
    for path in folder.files(".data"):
        for line in read_lines(folder.root / path):
            key, _, value = (part.strip() for part in line.partition("="))
            name = PurePosixPath(value.replace("\\", "/")).name
            found = [text for text in folder.files(".txt") if PurePosixPath(text).name == name]
            if key in KEYS_OF_DARKNET and len(found) == 1:
                lists[key] = found[0]
    return lists


def _label_files(picture: AnyPath) -> list[AnyPath]:
    """Where the label file of a picture may be: images/a.jpg -> labels/a.txt in the innermost folder, or beside it."""
    parts = picture.parts
    places = [(parts[:-1], parts[-1])]
    for i in range(len(parts) - 2, -1, -1):
        label = LABELS.get(parts[i].lower())
        if label is not None:
            label = label.capitalize() if parts[i][0].isupper() else label
            places.insert(0, ((*parts[:i], label), "/".join(parts[i + 1 :])))
            break
    return [type(picture)(*above, name).with_suffix(".txt") for above, inside in places for name in spellings(inside)]


def _label_file(picture: Path) -> Path:
    """The label file of a picture; the first place if it has none."""
    places = _label_files(picture)
    return next((path for path in places if path.is_file()), places[0])


def _parts(folder: Folder) -> dict[str, list[Path]]:
    """The pictures of each split; "" has those that are in no split."""
    parts: dict[str, list[Path]] = {}
    if described := folder.once(_description):
        parts = {key: described.pictures(key) for key in described.splits}
    for name, path in folder.once(_lists).items():
        parts.setdefault(name, [folder.root / folder.find([line], path) for line in read_lines(folder.root / path)])
    known = {composed(os.path.abspath(picture)) for pictures in parts.values() for picture in pictures}
    listed = bool(parts)
    for path in folder.pictures:
        split, picture = split_of(path), folder.root / path
        if (split or not listed) and composed(os.path.abspath(picture)) not in known and _is_labelled(folder, path):
            parts.setdefault(split, []).append(picture)
    return parts


def _has_labels(folder: Folder, path: str) -> bool:
    return any(folder.has(str(place)) for place in _label_files(PurePosixPath(path)))


def _is_labelled(folder: Folder, path: str) -> bool:
    """Whether a picture belongs to the data: it is in a folder "images", or has a text file."""
    inside = {part.lower() for part in path.split("/")[:-1]}
    return not inside.isdisjoint(LABELS) or _has_labels(folder, path)


class _Classes(NamedTuple):
    """What the rows of text files refer to: the names of the classes, and key points [number, 2 or 3] if they say."""

    names: Sequence[str]
    key_points: tuple[int, int] | None


def _box(numbers: list[float], key_points: tuple[int, int] | None) -> tuple[tuple[float, ...], str]:
    """The box of the numbers after a class, and a remark.

    Besides boxes there are outlines, whose number of corners varies; oriented boxes, which have four corners; and boxes
    that are followed by key points (x, y) or (x, y, visibility).

    Raises:
        ValueError: the kind is unknown. The message lacks file and line.
    """
    n = len(numbers)
    if n == 4:
        return tuple(numbers), ""
    if key_points and key_points[0]:
        number, values = key_points
        if n != 4 + number * values:
            raise ValueError(f"must have 4 numbers and {number} key points of {values} numbers, as kpt_shape says")
        return tuple(numbers[:4]), KEY_POINTS
    flags = numbers[6::3]
    if key_points is None and n >= 7 and (n - 4) % 3 == 0 and (n % 2 or set(flags) <= {0.0, 1.0, 2.0}):
        return tuple(numbers[:4]), KEY_POINTS
    if n < 6 or n % 2:
        scored = " (a fifth number is perhaps the score of a detection)" if n == 5 else ""
        raise ValueError(f"must have 4 numbers, or the x and y of at least 3 corners{scored}")
    if key_points is None and _like_key_points(numbers):
        raise ValueError(
            "is either the corners of an outline or a box with key points; set kpt_shape in the YAML file: "
            f"[{(n - 4) // 2}, 2] for key points, [0, 2] for outlines"
        )
    xs, ys = numbers[::2], numbers[1::2]
    x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
    return ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), CORNERS


def _like_key_points(numbers: list[float]) -> bool:
    """Tells whether numbers are rather a box with points (x, y) in it than corners of an outline.

    If they were corners, then the second one would be the only one outside of this box. Small outlines, of which that
    may be true by chance, and those of four corners, as oriented boxes have, do not count.
    """
    cx, cy, w, h, *points = numbers

    def inside(x: float, y: float) -> bool:
        return abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2

    corners = zip(points[::2], points[1::2], strict=True)
    return (
        len(points) > 4
        and min(w, h) > 0.02
        and not inside(w, h)
        and all(inside(x, y) or x == y == 0 for x, y in corners)
    )


def _object(index: int, line: str, classes: _Classes) -> tuple[Object, str]:
    """Reads a line of a text file, and a remark about it.

    Raises:
        ValueError: the line is broken. The message lacks file and line.
    """
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        raise ValueError("must be the number of a class, then numbers") from None
    if not (0 <= label < len(classes.names) and label.is_integer()):
        known = f"{len(classes.names)} classes, numbered from 0: {classes.names}"
        raise ValueError(f"has class {label:g}, but there are {known}")
    box, remark = _box(numbers, classes.key_points)
    return Object(index, classes.names[int(label)], box), remark


def _entry(picture: Path, classes: _Classes) -> Entry:
    path = _label_file(picture)
    if not path.is_file():
        return Entry(path, picture, [], labelled=False)
    objects, remark, faults = [], "", Faults()
    for index, line in enumerate(read_text(path).splitlines()):
        if not line.strip():
            continue
        try:
            found, said = _object(index, line, classes)
        except ValueError as error:
            faults.add(ValueError(f"{path}: line {index + 1} {error}, got {line!r}"))
        else:
            objects.append(found)
            remark = remark or said
    faults.check()
    return Entry(path, picture, objects, remark=remark)


class YOLODataset(BoxDataset):
    """A dataset in YOLO's layout; arguments and attributes are those of `BoxDataset`.

    A YAML file names the folders or lists of the pictures of each split, or the folders are named like splits. The text
    file of a picture is in the same place with `labels` instead of `images`, or beside the picture; a picture without a
    text file has no objects. The YAML file, classes.txt or obj.names has the names of the classes.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import YOLODataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> _ = Path("a.txt").write_text("0 0.25 0.375 0.25 0.5")  # class, centre and size in fractions
        >>> _ = Path("classes.txt").write_text("cat")
        >>> image, target = YOLODataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "YOLO"
    IN_FRACTIONS = True
    LAYOUT = (
        "a YAML file that names the pictures and classes, or classes.txt or obj.names; *.txt beside the pictures, or "
        "in labels/ where the pictures are in images/"
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: list[str] = []  # the names of the classes
        super().__init__(*args, **options)

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        if isinstance(folder, ArchiveFolder):
            if folder.once(_description) or folder.once(_names_file):
                raise ValueError(f"{folder.path}: YOLO's layout is not read in archives; unpack them")
            return None
        if described := folder.once(_description):
            return f"YOLO's {described.path.name}"
        names = folder.once(_names_file)
        labelled = None
        if names is not None and len(folder.files(".txt")) > (names.suffix == ".txt"):
            labelled = next((path for path in folder.pictures if _has_labels(folder, path)), None)
        if names is None or labelled is None:
            return None
        return f"YOLO's text files, such as that of {labelled}, with the classes of {names.name}"

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted(filter(None, folder.once(_parts)))

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        described, listed = folder.once(_description), folder.once(_names_file)
        if described is None and listed is None:
            raise FileNotFoundError(f"{folder.path}: no YAML file, classes.txt or obj.names with the class names")
        names = described.names if described else _class_names(listed) if listed else []
        self._declared += names
        parts = folder.once(_parts)
        chosen = [picture for name, pictures in parts.items() if split in (None, name) for picture in pictures]
        known = _Classes(names, described.key_points if described else None)
        for picture in dict.fromkeys(chosen):  # a YAML file may name a folder for two splits
            yield partial(_entry, picture, known)

    @classmethod
    def _unlabelled_rule(cls, folder: Folder) -> Literal["background", "ignore"]:
        # Ultralytics, whose YAML file this is, needs no text file for a picture without objects.
        return "background" if folder.once(_description) else "ignore"

    def _others(self, folder: Folder, split: str | None) -> Iterable[Path]:
        described, names = folder.once(_description), folder.once(_names_file)
        if described is not None:  # whose folders and lists may be outside of this folder
            yield from (described.path, *(place for key in described.splits for place in described.places(key)))
        yield from () if names is None else (names,)
        yield from (folder.root / path for path in (*folder.once(_lists).values(), *folder.files(".data")))

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return self._declared

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        cx, cy, w, h = written
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
