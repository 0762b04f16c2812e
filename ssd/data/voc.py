"""Datasets in Pascal VOC layout.

VOC files count pixels from 1 and include the last one, so a box written as (xmin, ymin, xmax, ymax) has the edges
(xmin - 1, ymin - 1, xmax, ymax). Files of other tools are read in the same way. If a tool counts from 0, as LabelImg
does, boxes extend one pixel further to the left and to the top than drawn.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from ssd.data.annotations import NO_BOX, Entry, Object
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, split_of
from ssd.data.picture_formats import SUFFIXES
from ssd.runtime.faults import Faults
from ssd.runtime.text import composed, read_lines, read_xml

FIRST_ELEMENT = re.compile(rb"<([A-Za-z]\w*)")
ENDINGS = (".xml", *SUFFIXES)


def root_tag(path: Path) -> str:
    """The tag of the first element of an XML file; "" if there is none near the beginning."""
    with path.open("rb") as file:
        head = file.read(4096).replace(b"\0", b"")  # of UTF-16
    root = FIRST_ELEMENT.search(head)
    return root[1].decode() if root else ""


def _read_annotation(path: Path) -> tuple[str, tuple[int, int], list[Object]]:
    """Reads the picture's file name, its width and height (zeros if there are none) and the objects of an XML file."""
    root = read_xml(path)
    objects = []
    for index, node in enumerate(root.findall("object")):
        if not (name := node.findtext("name", "").strip()):
            raise ValueError(f"{path}: object {index} lacks a <name>")
        edges = node.find("bndbox")
        written = [] if edges is None else [edges.findtext(side, "") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = tuple(map(float, written)) if any(written) else NO_BOX
        except ValueError:
            raise ValueError(f"{path}: object {index} has a <bndbox> that is not four numbers: {written}") from None
        difficult = node.findtext("difficult", "0").strip().lower() in ("1", "true")
        objects.append(Object(index, name, box, difficult))
    size = root.find("size")
    try:
        width, height = [0, 0] if size is None else [round(float(size.findtext(s) or 0)) for s in ("width", "height")]
    except (ValueError, OverflowError):  # not needed to read the boxes
        width, height = 0, 0
    return (root.findtext("filename") or "").strip(), (width, height), objects


def _entry(folder: Folder, path: str) -> Entry:
    filename, size, objects = _read_annotation(folder.root / path)
    picture = folder.find([filename, PurePosixPath(path).stem], path)
    return Entry(folder.root / path, folder.root / picture, objects, size=size)


def _lists(folder: Folder) -> dict[str, str]:
    """Finds the lists of splits: those in ImageSets/Main, or else files such as train.txt at the top."""
    found: dict[str, str] = {}
    for path in folder.files(".txt"):
        parts = PurePosixPath(path).parts
        if parts[-3:-1] == ("ImageSets", "Main") and (other := found.setdefault(parts[-1][:-4], path)) != path:
            raise ValueError(f"{folder.root}: has two lists of one name, {other} and {path}; name the folder of each")
    return found or folder.lists()


def _listed(folder: Folder, path: str, annotations: Sequence[str]) -> Iterator[str]:
    """The annotations of a list. A line is a name, which may have folders and a suffix; or a name and 1, 0 or -1."""
    by_name: dict[str, str] = {}
    for file in annotations:
        if (other := by_name.setdefault(composed(PurePosixPath(file).stem), file)) != file:
            raise ValueError(f"{folder.root / path}: two XML files have one of its names, {other} and {file}")
    faults = Faults()
    for line in read_lines(folder.root / path):
        last = composed(line.replace("\\", "/").rpartition("/")[2])
        names = [name for word in (last, last.split()[0]) for name in (word, _without_ending(word))]
        found = next((by_name[name] for name in names if name in by_name), None)
        if found is None:
            faults.add(FileNotFoundError(f"{folder.root / path}: lists {line!r}, but no XML file has this name"))
        else:
            yield found
    faults.check()


def _without_ending(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in ENDINGS else name


class VOCDataset(BoxDataset):
    """A dataset of Pascal VOC's XML files, one for each picture; arguments and attributes are those of `BoxDataset`.

    The XML files may be in a folder of their own or beside the pictures. ImageSets/Main, or files such as train.txt at
    the top, have the names of each split. If there are no such lists, folders such as train/ and test/ are the splits.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import VOCDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> box = "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax>"  # pixels are counted from 1
        >>> cat = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
        >>> _ = Path("a.xml").write_text(f"<annotation><filename>a.png</filename>{cat}</annotation>")
        >>> image, target = VOCDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "Pascal VOC"
    LAYOUT = (
        "*.xml beside the pictures or in a folder of their own; splits are lists in ImageSets/Main (train.txt, "
        "val.txt ...) or folders (train/, val/ ...)"
    )

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        annotations = folder.files(".xml")
        if not annotations:
            return None
        if root_tag(folder.root / annotations[0]) not in ("annotation", ""):  # XML of another kind
            return None
        return f"{len(annotations)} XML files, such as {annotations[0]}"

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted(_lists(folder) or {split for path in folder.files(".xml") if (split := split_of(path))})

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        annotations, lists = folder.files(".xml"), _lists(folder)
        if split in lists:
            annotations = list(_listed(folder, lists[split], annotations))
        elif split is not None:
            annotations = [path for path in annotations if not lists and split_of(path) == split]
        return (partial(_entry, folder, path) for path in annotations)

    def _others(self, folder: Folder, split: str | None) -> Iterable[Path]:
        return (folder.root / path for path in _lists(folder).values())

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
        xmin, ymin, xmax, ymax = written
        return xmin - 1, ymin - 1, xmax, ymax

    @staticmethod
    def _sound(
        written: np.ndarray, edges: np.ndarray, height: np.ndarray, width: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        xmin, ymin, xmax, ymax = written
        # A box of one pixel is valid in VOC, but in practice it is an accidental click.
        return (xmax > xmin) & (ymax > ymin), (xmin <= width) & (ymin <= height) & (xmax >= 1) & (ymax >= 1)
