"""Datasets in Pascal VOC layout.

VOC files count pixels from 1 and include the last one, so a box written as (xmin, ymin, xmax, ymax) has the edges
(xmin - 1, ymin - 1, xmax, ymax). Files of other tools are read in the same way. If a tool counts from 0, as LabelImg
does, boxes extend one pixel further to the left and to the top than drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ssd.data.dataset import BoxDataset, Entry, Object
from ssd.data.reading import SUFFIXES
from ssd.runtime.text import read_lines, read_xml


def _read_annotation(path: Path) -> tuple[str, list[Object]]:
    """Reads the picture's file name and the objects from an XML file."""
    root = read_xml(path)
    objects = []
    for index, node in enumerate(root.findall("object")):
        try:
            name, edges = node.findtext("name", "").strip(), node.find("bndbox")
            if not name or edges is None:
                raise ValueError
            box = tuple([float(edges.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")])
        except ValueError:
            raise ValueError(f"{path}: object {index} lacks a <name> or a <bndbox> of four numbers") from None
        objects.append(Object(index, name, box, node.findtext("difficult", "0").strip() == "1"))
    return (root.findtext("filename") or "").strip(), objects


class _Folder:
    """A folder in VOC layout: finds its annotations and the picture of each annotation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Annotations", "JPEGImages"):
            if not (root / name).is_dir():
                raise FileNotFoundError(f"{root / name}: no such folder, which the layout of Pascal VOC requires")
        names = [path.name for path in (root / "JPEGImages").iterdir()]
        # Names are also found if upper and lower case differ; an exact match has priority.
        self.pictures = {name.lower(): name for name in names} | {name: name for name in names}

    def annotations(self, split: str | None) -> list[Path]:
        if split is None:
            files = (self.root / "Annotations").glob("*.xml")
            return sorted(path for path in files if not path.name.startswith("._"))  # files that macOS adds
        listed = self.root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            splits = VOCDataset.splits(self.root) or "none (without a split, all annotations are read)"
            raise FileNotFoundError(f"{listed}: no such split; there are: {splits}")
        paths = []
        for line in read_lines(listed):
            # A line is a name, which may contain blanks; or, in the list of a class, a name and 1, 0 or -1.
            path, before_blank = (self.root / "Annotations" / f"{name}.xml" for name in (line, line.split()[0]))
            if not path.is_file() and before_blank.is_file():
                path = before_blank
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, but {listed} lists it")
            paths.append(path)
        return paths

    def entry(self, path: Path) -> Entry:
        filename, objects = _read_annotation(path)
        return Entry(path, self.picture(path, filename), objects)

    def picture(self, annotation: Path, filename: str) -> Path:
        filename = filename.replace("\\", "/").rpartition("/")[2]  # some tools write a path with folders
        for name in (filename, *(annotation.stem + suffix for suffix in SUFFIXES)):
            found = self.pictures.get(name) or self.pictures.get(name.lower())
            if found:
                return self.root / "JPEGImages" / found
        missing = self.root / "JPEGImages" / (filename or f"{annotation.stem}.jpg")
        raise FileNotFoundError(f"{missing}: no such picture, but {annotation} describes it")


class VOCDataset(BoxDataset):
    """A dataset in Pascal VOC layout: folders Annotations and JPEGImages, and lists of splits in ImageSets/Main.

    Arguments and attributes are those of `BoxDataset`.
    """

    FORMAT = "Pascal VOC"
    LAYOUT = "JPEGImages/*.jpg, Annotations/*.xml, and optional lists in ImageSets/Main: train.txt, val.txt ..."

    @staticmethod
    def holds(folder: Path) -> bool:
        return (folder / "Annotations").is_dir()

    @staticmethod
    def splits(folder: Path) -> list[str]:
        return sorted(path.stem for path in (folder / "ImageSets" / "Main").glob("*.txt"))

    def _readers(self, root: Path, split: str | None) -> Iterator[Callable[[], Entry]]:
        folder = _Folder(root)
        return (partial(folder.entry, path) for path in folder.annotations(split))

    def _lists(self, root: Path, split: str | None) -> Iterable[Path]:
        return () if split is None else (root / "ImageSets" / "Main" / f"{split}.txt",)

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
