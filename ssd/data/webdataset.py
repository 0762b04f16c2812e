"""Datasets of WebDataset's layout: a JSON file for each picture, with boxes as in COCO; usually in tar archives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ssd.data.annotations import NO_BOX, Entry, Object
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, split_of
from ssd.data.json_kinds import WEBDATASET, field, is_json, kinds, numbers_of, read_json, size_in
from ssd.runtime.faults import Faults
from ssd.runtime.text import composed

# Keys of the class of an object; the first one that is there counts.
NAMES = ("category", "category_name", "label", "class", "class_name", "name", "category_id")


class WebDataset(BoxDataset):
    """A dataset of WebDataset's layout; arguments and attributes are those of `BoxDataset`.

    The JSON file of a picture has its name. Its key "annotations" has a list of objects with a "bbox", which is
    [left, top, width, height] in pixels, and the class in one of the keys `NAMES`: a name or a number. If objects have
    both, the classes are in the order of the numbers.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import WebDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> annotation = {"bbox": [10, 5, 20, 20], "category_name": "cat"}
        >>> _ = Path("a.json").write_text(json.dumps({"annotations": [annotation]}))
        >>> image, target = WebDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "WebDataset"
    LAYOUT = (
        "tar archives such as train-000000.tar, also by URL, or one folder with their files: *.json beside each "
        'picture, with "annotations" as in COCO'
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: dict[str, int] = {}  # the smallest number of each class
        super().__init__(*args, **options)

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        files = folder.once(_files)
        return f"{len(files)} JSON files beside pictures, such as {next(iter(files))}" if files else None

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted({split for path in folder.once(_files) if (split := split_of(path))})

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        for path, picture in folder.once(_files).items():
            if split in (None, split_of(path)):
                yield partial(self._entry, folder, path, picture)

    def _entry(self, folder: Folder, path: str, picture: str) -> Entry:
        file = folder.root / path
        if not picture:
            raise FileNotFoundError(f"{file}: no picture with the same name is beside it")
        content = read_json(file)
        objects, faults = [], Faults()
        for index, row in enumerate(field(content, "annotations", list, f"{file}: the file")):
            with faults.caught():
                objects.append(self._object(index, row, f"{file}: annotations[{index}]"))
        faults.check()
        size = size_in(content, "width", "height", str(file))
        return Entry(file, folder.root / picture, objects, content.get("image_id"), size)

    def _object(self, index: int, row: Any, where: str) -> Object:
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be an object, got {row!r}")
        given = {key: row[key] for key in NAMES if row.get(key) is not None}
        given = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in given.items()}
        name, number = next(iter(given.values()), None), given.get("category_id")
        if type(name) not in (int, str) or name == "":
            raise ValueError(
                f"{where}: the class must be a name or a number in one of {', '.join(NAMES)}, got {given or list(row)}"
            )
        name = composed(str(name))
        if type(number) is int:
            self._declared[name] = min(number, self._declared.get(name, number))
        if "bbox" not in row:
            raise ValueError(f"{where} has no 'bbox', only {', '.join(map(repr, row))}")
        box = row.get("bbox")
        x, y, width, height = numbers_of(box, 4, f"{where}['bbox']") if box else NO_BOX
        area = numbers_of([row["area"]], 1, f"{where}['area']")[0] if row.get("area") is not None else None
        difficult, crowd = bool(row.get("difficult")), bool(row.get("iscrowd"))
        return Object(index, name, (x, y, x + width, y + height), difficult, crowd, area)

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return sorted(found, key=lambda name: (self._declared.get(name, float("inf")), name))


def _files(folder: Folder) -> dict[str, str]:
    """The JSON files that have annotations of a picture, or are broken and beside one, and the path of the picture.

    WebDataset takes the name of a sample up to the first dot, so this counts where no picture has the whole name.
    """
    by_stem = {os.path.splitext(path)[0]: path for path in folder.pictures}
    by_key: dict[str, str] = {}
    for path in folder.pictures:
        by_key.setdefault(_key(path), path)
    found, its_kinds = {}, folder.once(kinds)
    for path in folder.as_stored(its_kinds):
        kind, stem = its_kinds[path], os.path.splitext(path)[0]
        picture = by_stem.get(stem) or by_key.get(_key(path))
        if kind == WEBDATASET or (not kind and picture and not is_json(folder.root / path)):
            found[path] = picture or ""
    claimed = any(picture and its_kinds[path] for path, picture in found.items())
    return found if claimed else {}


def _key(path: str) -> str:
    place, slash, name = path.rpartition("/")
    return place + slash + name.partition(".")[0]
