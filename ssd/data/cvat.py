"""Datasets in CVAT's own format, "CVAT for images 1.1": an XML file of shapes in pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from xml.etree.ElementTree import Element

from ssd.data.annotations import NO_BOX, Object
from ssd.data.folder import Folder
from ssd.data.listing import Listed, ListingDataset
from ssd.data.outlines import Box, around, around_ellipse, around_rectangle
from ssd.data.voc import root_tag
from ssd.runtime.faults import Faults
from ssd.runtime.text import read_xml

WITHOUT_BOX = {"polyline", "points", "skeleton", "cuboid"}
SHAPES = {"box", "polygon", "ellipse", "mask", *WITHOUT_BOX}
WITHOUT_BOX_LABELS = {*WITHOUT_BOX, "tag"}  # types of labels


def _numbers(node: Element, keys: str, where: str) -> list[float]:
    try:
        return [float(node.get(key, "")) for key in keys.split()]
    except ValueError:
        given = {key: node.get(key) for key in keys.split()}
        raise ValueError(f"{where} must have the numbers {keys.replace(' ', ', ')}, got {given}") from None


def _box(node: Element, where: str) -> Box:
    if node.tag in WITHOUT_BOX:
        return NO_BOX
    (degrees,) = _numbers(node, "rotation", where) if node.get("rotation") else (0.0,)
    if node.tag == "box":
        x0, y0, x1, y1 = _numbers(node, "xtl ytl xbr ybr", where)
        return around_rectangle((x0, y0, x1, y1), degrees, ((x0 + x1) / 2, (y0 + y1) / 2))
    if node.tag == "ellipse":
        x, y, a, b = _numbers(node, "cx cy rx ry", where)
        return around_ellipse((x, y), (a, b), degrees)
    if node.tag == "mask":
        x, y, width, height = _numbers(node, "left top width height", where)
        return x, y, x + width, y + height
    try:
        points = [tuple(map(float, point.split(","))) for point in node.get("points", "").split(";") if point.strip()]
        if not all(len(point) == 2 for point in points):
            raise ValueError
    except ValueError:
        raise ValueError(f"{where} must have points as x,y;x,y;..., got {node.get('points')!r}") from None
    return around(points)


def _objects(nodes: Sequence[Element], begin: int, where: str) -> list[Object]:
    objects, faults = [], Faults()
    for i, node in enumerate(nodes):
        its = f"{where} {node.tag} {i}"
        with faults.caught():
            name = node.get("label", "").strip()
            if not name:
                raise ValueError(f"{its} has no label")
            objects.append(Object(begin + i, name, _box(node, its)))
    faults.check()
    return objects


def _size(image: Element, where: str) -> tuple[int, int]:
    if not image.get("width") or not image.get("height"):
        return 0, 0
    width, height = _numbers(image, "width height", where)
    if not 0 <= width < 1 << 31 or not 0 <= height < 1 << 31:
        raise ValueError(f"{where} must have a width and a height in pixels, got {width} x {height}")
    return int(width), int(height)


class CVATDataset(ListingDataset):
    """A dataset in the format "CVAT for images"; arguments and attributes are those of `BoxDataset`.

    A shape is replaced by the box around it. Points, lines, skeletons and cuboids are left out.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import CVATDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> box = '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="25"/>'
        >>> image = f'<image id="0" name="a.png" width="80" height="40">{box}</image>'
        >>> _ = Path("annotations.xml").write_text(f"<annotations>{image}</annotations>")
        >>> image, target = CVATDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "CVAT for images"
    LAYOUT = "annotations.xml; splits are the subsets of the images, or as for CSV"

    @classmethod
    def _files(cls, folder: Folder) -> list[str]:
        return folder.once(_files)

    @classmethod
    def _pictures(cls, folder: Folder, file: str) -> Iterator[Listed]:
        path, root, begin = folder.root / file, folder.once(_roots)[file], 0
        if root.find("track") is not None:
            raise ValueError(f"{path}: has tracks of a video; export the data as 'CVAT for images'")
        for image in root.iter("image"):
            name, subset = image.get("name", ""), image.get("subset", "")
            if not name:
                raise ValueError(f"{path}: image {image.get('id')} has no name")
            where = f"{path}: image {name!r}:"
            nodes = [node for node in image if node.tag in SHAPES]
            objects, size = partial(_objects, nodes, begin, where), partial(_size, image, where)
            yield Listed((name,), objects, size, "" if subset.lower() == "default" else subset)
            begin += len(nodes)

    @classmethod
    def _classes(cls, folder: Folder) -> list[str]:
        labels = (label for root in folder.once(_roots).values() for label in root.iterfind("meta//label"))
        with_box = (label for label in labels if label.findtext("type", "") not in WITHOUT_BOX_LABELS)
        return [name for label in with_box if (name := label.findtext("name", "").strip())]

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return [*self._declared, *sorted(found)]


def _files(folder: Folder) -> list[str]:
    """The XML files of CVAT. Only a few are opened: Pascal VOC may have a hundred thousand."""
    every = folder.files(".xml")
    named = [path for path in every if re.fullmatch(r"(.*/)?annotations?\.xml", path.lower())]
    if not any(root_tag(folder.root / path) == "annotations" for path in (*every[:1], *named)):
        return []
    return [path for path in every if root_tag(folder.root / path) == "annotations"]


def _roots(folder: Folder) -> dict[str, Element]:
    """The content of each file."""
    return {path: read_xml(folder.root / path) for path in folder.once(_files)}
