"""Datasets of LabelMe's JSON files, one for each picture, with the corners of shapes in pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ssd.data.annotations import NO_BOX, Entry, Object
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, split_of
from ssd.data.json_kinds import LABELME, field, is_json, kinds, name_in, of_kind, points_in, read_json, size_in
from ssd.data.outlines import Box, around, around_ellipse
from ssd.runtime.faults import Faults

WITHOUT_BOX = ("point", "points", "line", "linestrip")


def _box(shape: dict[str, Any], where: str) -> Box:
    points, kind = points_in(shape.get("points"), f"{where}['points']"), shape.get("shape_type") or "polygon"
    if kind in WITHOUT_BOX:
        return NO_BOX
    if kind == "circle" and points:  # its centre, and a point of its rim
        if len(points) != 2:
            raise ValueError(f"{where}['points'] must be the centre and a point of the circle, got {shape['points']!r}")
        radius = math.dist(*points)
        return around_ellipse(points[0], (radius, radius))
    return around(points)


def _objects(content: Any, path: Path) -> list[Object]:
    objects, faults = [], Faults()
    for index, shape in enumerate(field(content, "shapes", list, f"{path}: the file")):
        where = f"{path}: shapes[{index}]"
        with faults.caught():
            name = name_in(shape, "label", where)
            objects.append(Object(index, name, _box(shape, where), shape.get("difficult") is True))
    faults.check()
    return objects


def _entry(folder: Folder, path: str) -> Entry:
    file = folder.root / path
    content = read_json(file)
    objects, name = _objects(content, file), content.get("imagePath")
    try:
        names = [name if isinstance(name, str) else "", PurePosixPath(path).stem]
        picture = folder.surroundings.find(names, folder.beside(path))
    except FileNotFoundError as error:
        if not content.get("imageData"):
            raise
        raise FileNotFoundError(f"{error}; if it is only in 'imageData' of the file, save it as a picture") from None
    size = size_in(content, "imageWidth", "imageHeight", str(file))
    return Entry(file, folder.surroundings.root / picture, objects, size=size)


def _files(folder: Folder) -> list[str]:
    """The paths of LabelMe's files, and of broken JSON files in the same folders, for which there is an error."""
    files = of_kind(folder, LABELME)
    places = set(map(os.path.dirname, files))
    others = (path for path, kind in folder.once(kinds).items() if not kind and os.path.dirname(path) in places)
    return sorted([*files, *(path for path in others if not is_json(folder.root / path))])


class LabelMeDataset(BoxDataset):
    """A dataset of LabelMe's files; arguments and attributes are those of `BoxDataset`.

    A shape is replaced by the box around it. Points and lines have no box and are left out.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import LabelMeDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> shape = {"label": "cat", "shape_type": "rectangle", "points": [[10, 5], [30, 25]]}
        >>> content = {"imagePath": "a.png", "imageWidth": 80, "imageHeight": 40, "shapes": [shape]}
        >>> _ = Path("a.json").write_text(json.dumps(content))
        >>> image, target = LabelMeDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "LabelMe"
    LAYOUT = "*.json beside the pictures or in a folder of their own; splits are folders (train/, val/ ...)"

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        files = of_kind(folder, LABELME)
        return f"{len(files)} files of LabelMe, such as {files[0]}" if files else None

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted({split for path in of_kind(folder, LABELME) if (split := split_of(path))})

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        files = (path for path in folder.once(_files) if split in (None, split_of(path)))
        return (partial(_entry, folder, path) for path in files)
