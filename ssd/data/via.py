"""Datasets of the VGG Image Annotator (VIA 1 and 2): JSON files of regions in pixels, projects as well as exports."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ssd.data.annotations import NO_BOX, ONLY, Object
from ssd.data.folder import Folder
from ssd.data.json_kinds import VIA, field, numbers_in, of_kind, points_in, read_json
from ssd.data.listing import Listed, ListingDataset
from ssd.data.outlines import Box, around, around_ellipse
from ssd.runtime.faults import Faults
from ssd.runtime.text import printable

ATTRIBUTES = ("class", "label", "category", "name", "type")  # whose value is the class, if regions have several
WITHOUT_BOX = ("point", "polyline", "line")


def _box(shape: Mapping[str, Any], where: str) -> Box:
    kind = shape.get("name")
    if kind in WITHOUT_BOX:
        return NO_BOX
    if kind == "rect":
        x, y, width, height = numbers_in(shape, "x y width height", where)
        return x, y, x + width, y + height
    if kind == "circle":
        x, y, radius = numbers_in(shape, "cx cy r", where)
        return around_ellipse((x, y), (radius, radius))
    if kind == "ellipse":
        x, y, a, b = numbers_in(shape, "cx cy rx ry", where)
        angle = numbers_in(shape, "theta", where)[0] if "theta" in shape else 0.0  # in radians; VIA 1 has none
        return around_ellipse((x, y), (a, b), math.degrees(angle))
    if kind == "polygon":
        xs, ys = (field(shape, f"all_points_{axis}", list, where) for axis in "xy")
        if len(xs) != len(ys):
            raise ValueError(f"{where} has {len(xs)} x and {len(ys)} y of a polygon")
        return around(points_in([[x, y] for x, y in zip(xs, ys, strict=True)], where))
    raise ValueError(f"{where}['name'] must be rect, circle, ellipse, polygon, polyline or point, got {kind!r}")


def _class(attributes: Mapping[str, Any], key: str, where: str) -> str:
    """The value of the attribute with the class: a text, or the only box that is ticked; `ONLY` without attributes."""
    if not key:
        return ONLY
    value = attributes.get(key)
    if isinstance(value, dict):
        ticked = [name for name, is_ticked in value.items() if is_ticked]
        value = ticked[0] if len(ticked) == 1 else value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}['region_attributes'][{key!r}] must be the name of one class, got {value!r}")
    return value.strip()


def _class_attribute(regions: list[Any], path: Path) -> str:
    """The attribute that has the class; "" if no region has any attribute, as where there is only one class."""
    rows = [region.get("region_attributes") for region in regions if isinstance(region, dict)]
    found = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    usual = [key for name in ATTRIBUTES for key in found if key.lower() == name]
    if not found:
        return ""
    if len(found) != 1 and not usual:
        raise ValueError(
            f"{path}: no attribute of the regions is named {', '.join(ATTRIBUTES[:-1])} or {ATTRIBUTES[-1]}, so the "
            f"class is unknown; they have: {printable(', '.join(found))}. "
            "Give them an attribute 'class' in VIA"
        )
    return (usual or found)[0]


def _objects(regions: list[Any], begin: int, key: str, where: str) -> list[Object]:
    objects, faults = [], Faults()
    for i, region in enumerate(regions):
        its = f"{where}['regions'][{i}]"
        with faults.caught():
            name = _class(field(region, "region_attributes", dict, its), key, its)
            box = _box(field(region, "shape_attributes", dict, its), f"{its}['shape_attributes']")
            objects.append(Object(begin + i, name, box))
    faults.check()
    return objects


class VIADataset(ListingDataset):
    """A dataset of VIA; arguments and attributes are those of `BoxDataset`.

    A region is replaced by the box around it. Points and lines have no box and are left out. The class is the only
    attribute of the regions, or the one named class, label, category, name or type. Regions without attributes are of
    one class, "object".

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import VIADataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> shape = {"name": "rect", "x": 10, "y": 5, "width": 20, "height": 20}
        >>> region = {"shape_attributes": shape, "region_attributes": {"class": "cat"}}
        >>> content = {"a.png1000": {"filename": "a.png", "size": 1000, "regions": [region]}}
        >>> _ = Path("via_region_data.json").write_text(json.dumps(content))
        >>> image, target = VIADataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "VGG Image Annotator"
    LAYOUT = "a project or an export as JSON, such as via_region_data.json; splits as for CSV"

    @classmethod
    def _files(cls, folder: Folder) -> list[str]:
        return of_kind(folder, VIA)

    @classmethod
    def _pictures(cls, folder: Folder, file: str) -> Iterator[Listed]:
        path = folder.root / file
        content = read_json(path)
        if isinstance(content, dict) and "_via_img_metadata" in content:
            content = field(content, "_via_img_metadata", dict, f"{path}: the file")
        if not isinstance(content, dict):
            raise ValueError(f"{path}: must be a project or an export of annotations of VIA")
        pictures, faults = [], Faults()
        for key, row in content.items():
            where = f"{path}: [{key!r}]"
            with faults.caught():
                name, regions = field(row, "filename", str, where), row.get("regions", [])
                regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 has a dict
                if not isinstance(regions, list):
                    raise ValueError(f"{where}['regions'] must be a list, got {regions!r}")
                pictures.append((where, name, regions))
        faults.check()
        every = [region for _, _, regions in pictures for region in regions]
        attribute, begin = _class_attribute(every, path) if every else "", 0
        for where, name, regions in pictures:
            yield Listed((name,), partial(_objects, regions, begin, attribute, where))
            begin += len(regions)
