"""Datasets in YOLO's layout: a text file per picture, a line per object, boxes in fractions of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ssd.data.dataset import BoxDataset, Entry, Object
from ssd.data.reading import is_picture
from ssd.runtime.text import read_lines, read_text

SPLITS = ("train", "val", "valid", "test")


def _class_names(root: Path) -> list[str]:
    """Reads the class names from classes.txt, or from `names` in data.yaml, a list or a dict with keys 0, 1, ..."""
    listed, described = root / "classes.txt", root / "data.yaml"
    if listed.is_file():
        return read_lines(listed)
    if not described.is_file():
        raise FileNotFoundError(f"{root}: neither data.yaml nor classes.txt with the names of the classes")
    try:
        content = yaml.safe_load(read_text(described))
    except yaml.YAMLError as error:
        raise ValueError(f"{described}: broken YAML ({' '.join(str(error).split())})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        names = list(names.values())
    if not isinstance(names, list) or not names:
        raise ValueError(f"{described}: 'names' must be a list, or a dict with the keys 0, 1, ..., got {names!r}")
    return list(map(str, names))


def _folders(root: Path) -> dict[str, Path]:
    """Returns the folder of pictures of each split, by the name of the split; the name is "" if there are no splits."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        for folder in (root / "images" / split, root / split / "images"):
            if folder.is_dir():
                found.setdefault(split, folder)
    return found or ({"": root / "images"} if (root / "images").is_dir() else {})


def _label_file(picture: Path) -> Path:
    """The label file of a picture: images/a.jpg -> labels/a.txt. The innermost folder named "images" is replaced."""
    parts = list(picture.parts)
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


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

    Pictures are in `images/<split>/`, `<split>/images/` or `images/`. Their text files are in the same place with
    `labels` instead of `images`; a picture without a text file has no objects. data.yaml or classes.txt has the names
    of the classes.
    """

    FORMAT = "YOLO"
    LAYOUT = (
        "images/train/*.jpg or train/images/*.jpg, labels/*.txt in the same structure, and data.yaml or classes.txt"
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: list[str] = []  # the names of the classes
        super().__init__(*args, **options)

    @staticmethod
    def holds(folder: Path) -> bool:
        named = (folder / "data.yaml").is_file() or (folder / "classes.txt").is_file()
        return named and bool(_folders(folder))

    @staticmethod
    def splits(folder: Path) -> list[str]:
        return sorted(name for name in _folders(folder) if name)

    def _readers(self, root: Path, split: str | None) -> Iterator[Callable[[], Entry]]:
        names, folders = _class_names(root), _folders(root)
        if split is not None and split not in folders:
            raise FileNotFoundError(f"{root}: no such split {split!r}; there are: {self.splits(root) or 'none'}")
        self._declared += names
        for name, folder in folders.items():
            if split in (None, name):
                for picture in sorted(filter(is_picture, folder.rglob("*"))):
                    yield partial(_entry, picture, names)

    def _lists(self, root: Path, split: str | None) -> Iterable[Path]:
        return root / "data.yaml", root / "classes.txt"

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return list(dict.fromkeys(self._declared))

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        cx, cy, w, h = written
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
