"""Writing a data set as COCO, Pascal VOC or YOLO, or as archives of WebDataset."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple
from xml.etree import ElementTree

import yaml

from ssd.data.folder import kind_of_split
from ssd.data.members import AnyFile, Member
from ssd.data.yolo import KEYS
from ssd.runtime.files import Names


class Annotated(NamedTuple):
    """An object to write."""

    label: int  # its class is classes[label - 1]
    edges: tuple[Decimal, ...]  # left, top, right and bottom in pixels
    difficult: bool
    crowd: bool
    area: float  # in square pixels


def annotated(rows: Iterable[Mapping[str, Any]], width: int, height: int) -> list[Annotated]:
    """Converts detections in COCO's format to objects to write; those without width or height are left out.

    Args:
        rows: see `ssd.inference.detections.Detections.to_coco`. The category id is the label.
        width, height: size of the picture in pixels, at whose edges the boxes are cut.
    """
    objects = []
    for row in rows:
        x, y, w, h = (Decimal(str(value)) for value in row["bbox"])
        x1, y1 = min(x + w, Decimal(width)), min(y + h, Decimal(height))
        if x < x1 and y < y1:
            objects.append(Annotated(row["category_id"], (x, y, x1, y1), False, False, float((x1 - x) * (y1 - y))))
    return objects


class Written(NamedTuple):
    """A picture to write."""

    number: int  # from 1
    home: str  # the folder of the pictures that it is in; "" for none
    name: str  # of the file
    splits: Sequence[str]  # those that it is in
    size: tuple[int, int]  # width and height
    objects: Sequence[Annotated]

    def inside(self, above: str, suffix: str | None = None) -> str:
        """A path in the folder `above`, for the picture or for a file with its name and another suffix."""
        path = PurePosixPath(above, self.home, self.name)
        return str(path if suffix is None else path.with_name(os.path.splitext(self.name)[0] + suffix))


def check_name(path: AnyFile) -> None:
    """Raises ValueError if the name of a picture cannot be written into annotations."""
    if not path.name.isprintable():
        raise ValueError(f"{path}: the name of the picture has characters that cannot be written; rename it")


class Writer(ABC):
    """Writes annotations into an empty folder.

    Args:
        folder: the folder.
        classes: the names of the classes.
        splits: the names of the splits.

    Attributes:
        notes: what the format cannot hold, with the number of objects.
    """

    PICTURES: ClassVar[str] = "images"  # the folder of the pictures
    IN_PARTS: ClassVar[bool] = True  # whether it has a folder for each split
    COPIES: ClassVar[bool] = False  # whether a picture of two splits is there twice
    LACKS: ClassVar[Mapping[str, Callable[[Annotated], bool]]] = {}  # objects that the format cannot hold, by reason

    def __init__(self, folder: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        self.folder, self.classes, self.splits = folder, classes, splits
        self.notes: Counter[str] = Counter()

    @classmethod
    def stem(cls, name: str) -> str:
        """The name of a picture without suffix, as the format can hold it."""
        return name

    @classmethod
    def name(cls, path: AnyFile, taken: Names) -> str:
        """A name for a picture in its new folder: its own, or with a number if another one has it or its stem.

        Args:
            path: the picture.
            taken: the names of the other pictures in this folder, without suffix; that of this one is added.
        """
        stem, suffix = os.path.splitext(path.name)
        return taken.add(cls.stem(stem)) + suffix

    def place(self, picture: Written, source: AnyFile, link: bool) -> None:
        """Puts a picture at its place. See `ssd.data.conversion.convert_dataset` for `link`."""
        target = self.folder / picture.inside(self.PICTURES)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Member):
            target.write_bytes(source.read_bytes())
            return
        real = os.path.realpath(source)
        if link:
            os.symlink(real, target)
            return
        try:
            os.link(real, target)
        except OSError:  # another disk, or a file system without hard links
            shutil.copyfile(real, target)

    @abstractmethod
    def add(self, picture: Written) -> None:
        """Writes the annotations of a picture, or keeps them for `finish`."""

    @abstractmethod
    def finish(self) -> None:
        """Writes what describes all pictures."""

    @classmethod
    def held(cls, picture: Written) -> list[Annotated]:
        """The objects of a picture without those that the format cannot hold."""
        return [item for item in picture.objects if not any(is_it(item) for is_it in cls.LACKS.values())]

    def _count_lacking(self, picture: Written) -> None:
        """Counts the objects that the format cannot hold, by the first reason."""
        left = list(picture.objects)
        for reason, is_it in self.LACKS.items():
            before, left = len(left), [item for item in left if not is_it(item)]
            self.notes[f"left out: {reason}"] += before - len(left)

    def _unmarked(self, objects: Sequence[Annotated]) -> None:
        """Counts the difficult objects, for a format without this mark."""
        self.notes["difficult objects are written without this mark, which the format lacks"] += sum(
            item.difficult for item in objects
        )

    def _write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")


def _is_crowd(item: Annotated) -> bool:
    return item.crowd


def _is_thin(item: Annotated) -> bool:
    """Whether `VOCDataset` would leave the box out."""
    x0, y0, x1, y1 = item.edges
    return x1 - x0 <= 1 or y1 - y0 <= 1


class CocoWriter(Writer):
    """Writes annotations/instances_<split>.json, for pictures in images/<split>/."""

    def __init__(self, folder: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        super().__init__(folder, classes, splits)
        self._files: dict[str, dict[str, list[dict[str, Any]]]] = {
            split: {"images": [], "annotations": [], "categories": []} for split in splits or ("all",)
        }

    def add(self, picture: Written) -> None:
        (width, height), number = picture.size, picture.number
        self._unmarked([item for item in picture.objects if not item.crowd])
        for split in picture.splits or ("all",):
            file = self._files[split]
            name = picture.name if picture.home == split else picture.inside("")
            file["images"].append({"id": number, "file_name": name, "width": width, "height": height})
            for label, (x0, y0, x1, y1), _, crowd, area in picture.objects:
                box = [_plain(value) for value in (x0, y0, x1 - x0, y1 - y0)]
                ids = {"id": len(file["annotations"]) + 1, "image_id": number, "category_id": label}
                file["annotations"].append(ids | {"bbox": box, "area": area, "iscrowd": int(crowd)})

    def finish(self) -> None:
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes, start=1)]
        for split, file in self._files.items():
            text = json.dumps(file | {"categories": categories}, ensure_ascii=False)
            self._write(f"annotations/instances_{split}.json", text)


class VocWriter(Writer):
    """Writes Annotations/<name>.xml and ImageSets/Main/<split>.txt, for pictures in JPEGImages/."""

    PICTURES = "JPEGImages"
    IN_PARTS = False
    LACKS: ClassVar[Mapping[str, Callable[[Annotated], bool]]] = {
        "crowds, which Pascal VOC's format lacks": _is_crowd,
        "boxes at most one pixel wide or high, which Pascal VOC's format does not tell from points": _is_thin,
    }

    def __init__(self, folder: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        super().__init__(folder, classes, splits)
        self._lists: dict[str, list[str]] = {split: [] for split in splits}

    @classmethod
    def text(cls, picture: Written, classes: Sequence[str], folder: str = PICTURES) -> str:
        """The XML of a picture.

        Args:
            picture: the picture; objects that the format cannot hold are left out.
            classes: the names of the classes.
            folder: name of the folder of the picture.
        """
        root = ElementTree.Element("annotation")
        _fill(root, folder=folder, filename=picture.name)
        width, height = picture.size
        _fill(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
        for label, (x0, y0, x1, y1), difficult, *_ in cls.held(picture):
            node = ElementTree.SubElement(root, "object")
            _fill(node, name=classes[label - 1], pose="Unspecified", truncated=0, difficult=int(difficult))
            edges = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            _fill(ElementTree.SubElement(node, "bndbox"), **{key: _plain(value) for key, value in edges.items()})
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def add(self, picture: Written) -> None:
        self._count_lacking(picture)
        path = picture.inside("Annotations", ".xml")
        self._write(path, self.text(picture, self.classes))
        for split in picture.splits:
            self._lists[split].append(PurePosixPath(path).stem)

    def finish(self) -> None:
        for split, names in self._lists.items():
            self._write(f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in names))


class YoloWriter(Writer):
    """Writes labels/<split>/<name>.txt, data.yaml and classes.txt, for pictures in images/<split>/.

    Ultralytics reads data.yaml. Label Studio reads the classes.txt at the top, and LabelImg the one beside the labels.
    """

    LACKS: ClassVar[Mapping[str, Callable[[Annotated], bool]]] = {"crowds, which YOLO's format lacks": _is_crowd}

    @classmethod
    def stem(cls, name: str) -> str:
        return f"{name}_1" if name.lower() == "classes" else name  # its labels would be in classes.txt

    def __init__(self, folder: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        super().__init__(folder, classes, splits)
        unknown = [split for split in splits if not kind_of_split(split)]
        if unknown:
            raise ValueError(
                f"YOLO's splits are named after train, val and test, but there is {unknown[0]!r}; "
                "choose others with --split"
            )
        self._pictures: dict[str, list[str]] = {split: [] for split in splits}
        self._homes: dict[str, set[str]] = {split: set() for split in splits}  # of the pictures of each split
        self._folders = {""}  # of the labels, and the top

    @classmethod
    def text(cls, picture: Written) -> str:
        """The lines of a picture; objects that the format cannot hold are left out."""
        width, height = picture.size
        lines = []
        for label, edges, *_ in cls.held(picture):
            x0, y0, x1, y1 = (float(edge) / side for edge, side in zip(edges, (width, height) * 2, strict=True))
            numbers = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
            lines.append(" ".join((str(label - 1), *(f"{number:.12g}" for number in numbers))))
        return "".join(f"{line}\n" for line in lines)

    def add(self, picture: Written) -> None:
        self._count_lacking(picture)
        self._unmarked(self.held(picture))
        path = picture.inside("labels", ".txt")
        self._write(path, self.text(picture))
        self._folders.add(os.path.dirname(path))
        for split in picture.splits:
            self._pictures[split].append(picture.inside(self.PICTURES))
            self._homes[split].add(picture.home)

    def finish(self) -> None:
        places: dict[str, list[str]] = {}
        for split, pictures in self._pictures.items():
            if self._homes[split] <= {split}:
                place = f"{self.PICTURES}/{split}"
            else:  # some of its pictures are in the folder of another split
                place = f"{split}.txt"
                self._write(place, "".join(f"./{picture}\n" for picture in pictures))
            places.setdefault(kind_of_split(split), []).append(place)
        content: dict[str, Any] = {key: its if len(its) > 1 else its[0] for key in KEYS if (its := places.get(key))}
        content |= {"names": dict(enumerate(self.classes))}
        self._write("data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        for folder in self._folders:
            self._write(os.path.join(folder, "classes.txt"), "".join(f"{name}\n" for name in self.classes))


class WebDatasetWriter(Writer):
    """Writes <split>-000000.tar and so on, in which each picture is followed by <name>.json with its objects."""

    COPIES = True
    AT_MOST = 256 << 20  # bytes of an archive, unless one picture has more

    def __init__(self, folder: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        super().__init__(folder, classes, splits)
        self._open: dict[str, tarfile.TarFile] = {}
        self._counts: Counter[str] = Counter()  # the archives of each split

    @classmethod
    def stem(cls, name: str) -> str:
        return name.replace(".", "_")  # WebDataset takes the name up to the first dot as the name of the sample

    def place(self, picture: Written, source: AnyFile, link: bool) -> None:
        if link:
            raise ValueError("pictures in archives cannot be links: leave out --link")
        data = source.read_bytes()
        for split in picture.splits or ("pictures",):
            if split not in self._open or self._open[split].offset + len(data) > self.AT_MOST:
                self._next(split)
            self._store(split, picture.name, data)

    def add(self, picture: Written) -> None:
        (width, height), objects = picture.size, []
        for label, (x0, y0, x1, y1), difficult, crowd, area in picture.objects:
            box = [_plain(value) for value in (x0, y0, x1 - x0, y1 - y0)]
            name = {"category_id": label, "category": self.classes[label - 1]}
            marks = {key: 1 for key, is_it in (("iscrowd", crowd), ("difficult", difficult and not crowd)) if is_it}
            objects.append({"bbox": box, **name, "area": area, **marks})
        content = {"file_name": picture.name, "width": width, "height": height, "annotations": objects}
        data = json.dumps(content, ensure_ascii=False).encode()
        for split in picture.splits or ("pictures",):
            self._store(split, os.path.splitext(picture.name)[0] + ".json", data)

    def finish(self) -> None:
        for tar in self._open.values():
            tar.close()

    def _next(self, split: str) -> None:
        """Begins the next archive of a split."""
        if split in self._open:
            self._open[split].close()
        path = self.folder / f"{split}-{self._counts[split]:06}.tar"
        self._open[split] = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # closed by finish
        self._counts[split] += 1

    def _store(self, split: str, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._open[split].addfile(info, io.BytesIO(data))
        self._open[split].members.clear()  # type: ignore[attr-defined]  # which tarfile fills with all of them


def _plain(value: Decimal) -> int | float:
    """A number for JSON and XML, without ".0" and exponent where possible."""
    return int(value) if value == value.to_integral_value() else float(value)


def _fill(node: ElementTree.Element, **values: Any) -> None:
    """Adds elements with texts."""
    for tag, value in values.items():
        ElementTree.SubElement(node, tag).text = str(value)


WRITERS: dict[str, type[Writer]] = {
    "coco": CocoWriter,
    "voc": VocWriter,
    "yolo": YoloWriter,
    "webdataset": WebDatasetWriter,
}
