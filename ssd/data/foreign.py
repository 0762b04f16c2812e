"""Data that is in none of the formats that are read: what it is, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from ssd.data.csv_table import DELIMITERS, first_row
from ssd.data.folder import Folder
from ssd.runtime.text import BOMS, printable

HEAD = 1 << 14  # bytes at the beginning of a file that are looked at
MOST = 20  # files of each kind that are looked at
TO_CSV = "write a CSV file with the columns filename, class, xmin, ymin, xmax and ymax"
NUMBER = r"-?[\d.]+(?:[eE][-+]?\d+)?"
TEXTS = {  # a pattern of lines, what they are, and what to do
    rf"^\w+ {NUMBER} -?\d+(?: {NUMBER}){{12}}\s*$": ("a text file of KITTI", TO_CSV),
    rf"^(?:imagesource:.*|gsd:.*|(?:{NUMBER} ){{8}}[A-Za-z][\w-]* \d)\s*$": ("a text file of DOTA", TO_CSV),
    r"^(?:\d+,){7}-?\d+,?\s*$": ("a text file of VisDrone", TO_CSV),
    r"^\S.*\.\w+\s*\n\d+\s*\n(?:\d+ ){4}": ("a text file of WIDER FACE", TO_CSV),
    r"^# Compatible with PASCAL Annotation": ("a text file of version 1 of Pascal's annotations", TO_CSV),
    r"^\S.*\.\w{3,4}(?: \d+,\d+,\d+,\d+,\d+)+\s*$": (
        "a list of pictures and boxes, as for YOLOv4 in PyTorch",
        f"export another format of YOLO, or {TO_CSV}",
    ),
    rf"^\d+(?: {NUMBER}){{4,}}\s*$": (
        "a text file of YOLO without names of classes, or in another folder than YOLO's",
        "write the names of the classes into classes.txt, one in each line, and put each text file beside its picture, "
        "or into a folder 'labels' beside the folder 'images' of the pictures",
    ),
    rf"^[A-Za-z][^\n]*(?: {NUMBER}){{4}}\s*$": ("a text file of names and boxes, as of the OIDv4 ToolKit", TO_CSV),
}
JSONS = {
    r'"(classTitle|geometryType)"\s*:': ("a file of Supervisely", "export COCO, Pascal VOC or YOLO there"),
    r'"(securityToken|lastVisitedAssetId)"\s*:|"asset"\s*:\s*\{': (
        "a project of VoTT",
        "export CSV or Pascal VOC there",
    ),
    r'"box2d"\s*:': ("a file of BDD100K or Scalabel", "convert it to COCO with bdd100k.label.to_coco"),
    r'"items"\s*:\s*\[|"label"\s*:\s*\{\s*"labels"': ("a data set of Datumaro", "run datum convert -f coco"),
    r'"_cls"\s*:|"filepath"\s*:|"bounding_box"\s*:': ("a data set of FiftyOne", "export a COCODetectionDataset there"),
}
TABLES = {
    "region_shape_attributes": ("a CSV file of VGG Image Annotator", "export the annotations as JSON there"),
    "lead_time": ("a CSV file of Label Studio", "export JSON there"),
}
SUFFIXES = {  # the first letters of suffixes
    ".tfrecord": (
        "a file of TensorFlow's records",
        "write its pictures as files, and their boxes as JSON in COCO's format",
    ),
    ".record": (
        "a file of TensorFlow's records",
        "write its pictures as files, and their boxes as JSON in COCO's format",
    ),
    ".parquet": ("a table of Parquet", "write its pictures as files, and their boxes as JSON in COCO's format"),
    ".jsonl": ("a file of JSON lines", f"write COCO's JSON, or {TO_CSV}"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".7z", ".rar"), ("an archive", "unpack it")),
}


def describe_foreign(folder: Folder) -> str:
    """Says what a folder without a known layout has instead, and what to do, in one sentence; "" if that is unknown."""
    for path, what, remedy in _found(folder):
        return printable(f"{path} looks like {what}, which is not read: {remedy}")
    return ""


def _found(folder: Folder) -> Iterator[tuple[str, str, str]]:
    stems = {PurePosixPath(path).stem for path in folder.pictures}
    texts = sorted(folder.files(".txt"), key=lambda path: PurePosixPath(path).stem not in stems)
    for paths, known in ((folder.files(".json"), JSONS), (texts, TEXTS)):
        for path in paths[:MOST]:
            head = _head(folder, path)
            for pattern, (what, remedy) in known.items():
                if re.search(pattern, head, re.MULTILINE):
                    yield path, what, remedy
    for path in folder.files(".csv", ".tsv")[:MOST]:
        names = max((first_row(folder.root / path, delimiter) for delimiter in DELIMITERS), key=len)
        for column, (what, remedy) in TABLES.items():
            if column in names:
                yield path, what, remedy
        if len(names) > 1:
            yield path, f"a CSV file of unknown columns ({', '.join(names)})", TO_CSV
    for start, (what, remedy) in SUFFIXES.items():
        for path in folder.with_suffix(start)[:1]:
            yield path, what, remedy


def _head(folder: Folder, path: str) -> str:
    with (folder.root / path).open("rb") as file:
        head = file.read(HEAD)
    encoding = next((name for bom, name in BOMS.items() if head.startswith(bom)), "utf-8")
    return head.decode(encoding, "replace").replace("\r\n", "\n")
