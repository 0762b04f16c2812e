"""Datasets of Label Studio: its exports JSON and JSON-MIN, with regions in percent of the picture.

Boxes are kept in fractions of the picture, so they also fit a picture that was resized after it was labelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ssd.data.annotations import NO_BOX, Object
from ssd.data.folder import Folder
from ssd.data.json_kinds import LABEL_STUDIO, field, numbers_in, of_kind, points_in, read_json, size_in
from ssd.data.listing import Listed, ListingDataset
from ssd.data.outlines import Box, around, around_ellipse, around_rectangle
from ssd.data.picture_formats import SUFFIXES
from ssd.runtime.faults import Faults

UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # the name of an uploaded file: eight random digits, and its own name
Regions = list[tuple[dict[str, Any], str]]  # the value of each region, and its name for messages


def _class_names(value: Mapping[str, Any]) -> list[Any]:
    """The classes of a region: "rectanglelabels", "polygonlabels" or, for a shape with separate labels, "labels"."""
    return [
        name for key, names in value.items() if key.endswith("labels") and isinstance(names, list) for name in names
    ]


def _is_region(value: dict[str, Any]) -> bool:
    return not value.keys().isdisjoint(("x", "points", "vertices", "rle"))


def _box(value: Mapping[str, Any], where: str) -> Box:
    """The box of a region, in fractions of the picture."""
    if value.get("image_rotation"):
        raise ValueError(f"{where}: the picture was turned while it was labelled; turn it back in Label Studio")
    if "points" in value:
        return around((x / 100, y / 100) for x, y in points_in(value["points"], f"{where}['points']"))
    is_ellipse = "radiusX" in value
    if not is_ellipse and not {"width", "height"} <= value.keys():  # a brush or a key point
        return NO_BOX
    keys = "x y radiusX radiusY" if is_ellipse else "x y width height"
    x, y, a, b = (number / 100 for number in numbers_in(value, keys, where))
    degrees = numbers_in(value, "rotation", where)[0] if value.get("rotation") else 0.0
    width, height = size_in(value, "original_width", "original_height", where)
    if not (width and height):
        if degrees:  # which is meant in pixels
            raise ValueError(f"{where} is rotated, but has no 'original_width' and 'original_height'")
        width = height = 1
    x, y, a, b = x * width, y * height, a * width, b * height
    turned = (
        around_ellipse((x, y), (a, b), degrees)
        if is_ellipse
        else around_rectangle((x, y, x + a, y + b), degrees, (x, y))
    )
    return turned[0] / width, turned[1] / height, turned[2] / width, turned[3] / height


def _objects(regions: Regions, begin: int) -> list[Object]:
    objects, faults = [], Faults()
    for index, (value, where) in enumerate(regions, start=begin):
        with faults.caught():
            names = _class_names(value)
            if not names or not all(isinstance(name, str) and name.strip() for name in names):
                raise ValueError(f"{where} must have the name of its class as a label, got {names!r}")
            box = _box(value, where)
            objects += [Object(index, name.strip(), box) for name in names]
    faults.check()
    return objects


def _size(regions: Regions) -> tuple[int, int]:
    return next((size_in(value, "original_width", "original_height", where) for value, where in regions), (0, 0))


def _picture(data: Mapping[str, Any], where: str) -> str:
    """The path or address of the picture among the data of a task: "image", or the only name of a picture."""
    named = {text for text in data.values() if isinstance(text, str) and _path(text).lower().endswith(tuple(SUFFIXES))}
    found = named.pop() if len(named) == 1 else data.get("image")
    if not isinstance(found, str) or not found:
        raise ValueError(f"{where} must have its picture as 'image', or one name of a picture; it has {list(data)}")
    return found


def _path(address: str) -> str:
    """The path of a picture: /data/local-files/?d=a/b.jpg is a/b.jpg; others lose what follows "?"."""
    parts = urlsplit(address) if "?" in address else None
    if parts is None:
        return address
    return parse_qs(parts.query).get("d", [parts.path])[0]


def _names(address: str) -> tuple[str, ...]:
    """The names that a picture may have here: that in Label Studio, and that before it was uploaded."""
    path = _path(address)
    uploaded = UPLOADED.fullmatch(unquote(path).replace("\\", "/").rpartition("/")[2])
    return (path, uploaded[1]) if uploaded else (path,)


def _merged(results: list[Any], where: str) -> Regions:
    """The regions of one annotation. A shape and its separate label are two results with the same id."""
    regions: dict[Any, tuple[dict[str, Any], str]] = {}
    for i, result in enumerate(results):
        its = f"{where}['result'][{i}]"
        if not isinstance(result, dict):
            raise ValueError(f"{its} must be an object, got {result!r}")
        value = result.get("value")
        if isinstance(value, dict) and _is_region(value):
            of_picture = {key: result.get(key) for key in ("original_width", "original_height", "image_rotation")}
            name = result.get("id") if isinstance(result.get("id"), str) else i
            known, first = regions.get(name, ({}, its))
            regions[name] = known | of_picture | value, first
    return list(regions.values())


def _of_task(task: dict[str, Any], where: str) -> Regions | None:
    """The regions of the last annotation that was not cancelled; None if the task has none."""
    key = "annotations" if "annotations" in task else "completions"  # of old versions
    annotations = [(row, f"{where}[{key!r}][{i}]") for i, row in enumerate(field(task, key, list, where))]
    for row, its in annotations:
        field(row, "result", list, its)
    kept = [(row, its) for row, its in annotations if not row.get("was_cancelled") and not row.get("skipped")]
    if not kept:
        return None
    row, its = sorted(kept, key=lambda pair: str(pair[0].get("created_at", "")))[-1]
    return _merged(row["result"], its)


def _of_row(row: dict[str, Any], where: str) -> Regions:
    """The regions of a row of JSON-MIN. A shape and its separate label are in two lists of the row."""
    regions: dict[str, tuple[dict[str, Any], str]] = {}
    for key, values in row.items():
        counts: dict[str, int] = {}
        for i, value in enumerate(values if isinstance(values, list) else ()):
            if isinstance(value, dict) and _is_region(value):
                shape = str([value.get(name) for name in ("x", "y", "width", "height", "rotation", "points")])
                counts[shape] = counts.get(shape, 0) + 1
                known, first = regions.get(f"{shape} {counts[shape]}", ({}, f"{where}[{key!r}][{i}]"))
                regions[f"{shape} {counts[shape]}"] = known | value, first
    return list(regions.values())


class LabelStudioDataset(ListingDataset):
    """A dataset of Label Studio; arguments and attributes are those of `BoxDataset`.

    A region is replaced by the box around it. Brushes and key points have no box and are left out. Of several
    annotations of a picture, the last one that was not cancelled counts. Tasks without one are left out.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import LabelStudioDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> box = {"x": 12.5, "y": 12.5, "width": 25, "height": 50, "rotation": 0}  # in percent of the picture
        >>> region = {"type": "rectanglelabels", "value": box | {"rectanglelabels": ["cat"]}}
        >>> region |= {"original_width": 80, "original_height": 40}
        >>> task = {"data": {"image": "a.png"}, "annotations": [{"result": [region]}]}
        >>> _ = Path("export.json").write_text(json.dumps([task]))
        >>> image, target = LabelStudioDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "Label Studio"
    IN_FRACTIONS = True
    LAYOUT = "an export as JSON or JSON-MIN; splits as for CSV"

    @classmethod
    def _files(cls, folder: Folder) -> list[str]:
        return of_kind(folder, LABEL_STUDIO)

    @classmethod
    def _pictures(cls, folder: Folder, file: str) -> Iterator[Listed]:
        path, begin, faults = folder.root / file, 0, Faults()
        content = read_json(path)
        pictures: dict[str, tuple[str, Regions]] = {}
        for i, task in enumerate(content if isinstance(content, list) else [content]):
            where = f"{path}: [{i}]"
            with faults.caught():
                if not isinstance(task, dict):
                    raise ValueError(f"{where} must be a task, got {task!r}")
                if isinstance(task.get("data"), dict):
                    picture, regions = _picture(task["data"], f"{where}['data']"), _of_task(task, where)
                else:
                    picture, regions = _picture(task, where), _of_row(task, where)
                created = str(task.get("created_at", ""))  # JSON-MIN has a row for each annotation of a picture
                if regions is not None and created >= pictures.get(picture, ("", []))[0]:
                    pictures[picture] = created, regions
        faults.check()
        for picture, (_, regions) in pictures.items():
            yield Listed(_names(picture), partial(_objects, regions, begin), partial(_size, regions))
            begin += len(regions)

    @classmethod
    def _find(cls, pictures: Folder, names: tuple[str, ...], beside: str, split: str) -> str:
        try:
            return pictures.find(names, beside, split)
        except FileNotFoundError:
            stored = pictures.once(_as_stored)
            own = [stored[last] for name in names if (last := unquote(name).rpartition("/")[2]) in stored]
            if not own:
                raise
            return pictures.find(own, beside, split)


def _as_stored(folder: Folder) -> dict[str, str]:
    """The names of the pictures, by those that Label Studio stores: without blanks and marks such as "#"."""
    names = (path.rpartition("/")[2] for path in folder.pictures)
    return {re.sub(r"[^-\w.]", "", name.replace(" ", "_")): name for name in names}
