"""Files of others, damaged at random: each is read, or an error of one of the documented kinds names it.

The same few at each run; `make fuzz`, or SSD_FUZZ_EXAMPLES=10000, tries so many others of each kind.
"""

import contextlib
import io
import json
import random

import pytest
import torch
from annotation_files import (
    DEEP_FOREST,
    KERAS,
    OPEN_IMAGES,
    XML_TO_CSV,
    cvat,
    label_studio,
    label_studio_min,
    labelme,
    table,
    via,
    via_project,
)
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from initial_weights import initial_model
from PIL import Image
from small_datasets import add_picture

from ssd.data import COCODataset, VOCDataset, YOLODataset, open_dataset
from ssd.data.annotations import UnknownClassError
from ssd.data.reading import PictureFile
from ssd.evaluation.detection_file import DetectionFile
from ssd.networks.ssd300 import SSD300
from ssd.runtime.text import read_lines
from ssd.weights.checkpoint import save_checkpoint
from ssd.weights.loading import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")

ODD = (
    None,
    True,
    "",
    "x",
    "1",
    -1,
    0,
    2**70,
    1e300,
    float("nan"),
    float("inf"),
    [],
    {},
    [1],
    {"id": 1},
    "../a",
    "a\0b",
)
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20], "iscrowd": 0, "area": 9.5}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}
DETECTED = COCO | {"annotations": [COCO["annotations"][0] | {"score": 0.5}]}
RESULTS = [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20], "score": 0.5}]


def encoded(format):
    file = io.BytesIO()
    Image.effect_noise((60, 40), 90).convert("RGB").save(file, format)
    return file.getvalue()


def flipped(data, random):
    """Some bytes are others, and some may be gone, or the end."""
    data = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 3, 30))):
        data[random.randrange(len(data))] = random.choice((random.randrange(256), *b"\0\n<>\"'{}[]:,.-0"))
    kind = random.randrange(5)
    if kind == 0:
        del data[random.randrange(len(data) + 1) :]
    if kind == 1:
        begin = random.randrange(len(data))
        del data[begin : begin + random.randrange(1, 50)]
    return bytes(data)


def changed(value, random):
    """JSON with another value somewhere, or without one."""
    if random.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return random.choice(ODD)
    value = value.copy()
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = random.choice(keys)
    if random.random() < 0.2:
        del value[key]
    else:
        value[key] = changed(value[key], random)
    return value


def damaged_json(content):
    def damage(random):
        if random.random() < 0.3:
            return flipped(json.dumps(content).encode(), random)
        return json.dumps(changed(content, random)).encode()

    return damage


def checkpoint(folder):
    save_checkpoint(folder / "w.pt", SSD300(3, width=0.01), ["a", "b"], step=3, settings={"lr": 0.1})
    return (folder / "w.pt").read_bytes()


def changed_checkpoint(folder):
    """A whole file of torch.save with other content."""
    content = torch.load(io.BytesIO(checkpoint(folder)), weights_only=True)

    def change(random):
        kind = random.randrange(3)
        if kind == 0:
            its = changed(content, random)
        elif kind == 1:
            its = content | {"config": changed(content["config"], random)}
        else:
            key = random.choice(list(content["model"]))
            other = random.choice((torch.zeros(3), content["model"][key].double(), torch.tensor(1), 7, None, "x"))
            its = content | {"model": content["model"] | {key: other}}
        file = io.BytesIO()
        torch.save(its, file)
        return file.getvalue()

    return change


XML = """<annotation><filename>a.jpg</filename><size><width>60</width></size><object><name>cat</name>
<difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4.5</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""
YAML = b"path: .\nnames:\n  0: cat\n  1: dog\n"


def in_voc(folder):
    add_picture(folder, "a", [], size=(60, 40))
    return "Annotations/a.xml", lambda: VOCDataset(folder)


def in_coco(folder):
    (folder / "a.jpg").write_bytes(encoded("JPEG"))
    return "truth.json", lambda: read_all(COCODataset(folder))


def read_all(dataset):
    return dataset.classes, dataset.category_names, dataset.truths, list(dataset)


def in_yolo(name):
    def prepare(folder):
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
        (folder / "images" / "a.jpg").write_bytes(encoded("JPEG"))
        (folder / "data.yaml").write_bytes(YAML)
        return name, lambda: YOLODataset(folder)

    return prepare


def in_format(name):
    """Any format, which is told by the content; the file itself is given, so that it need not be of a known one."""

    def prepare(folder):
        (folder / "a.jpg").write_bytes(encoded("JPEG"))
        return name, lambda: open_dataset(folder / name).truths

    return prepare


SHAPES = [
    {"label": "a", "points": [[1, 2], [30, 20]], "shape_type": kind} for kind in ("rectangle", "circle", "point", None)
]
REGIONS = [
    {"shape_attributes": shape, "region_attributes": {"class": "a"}}
    for shape in (
        {"name": "ellipse", "cx": 10, "cy": 11, "rx": 5, "ry": 6, "theta": 0.5},
        {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 3, 8]},
    )
]
XML_OF_CVAT = cvat(
    ["a.jpg"],
    """<box label="thing" xtl="1" ytl="2" xbr="30" ybr="20" rotation="5"/><polygon label="b" points="1,2;9,3;5,8"/>
    <ellipse label="c" cx="10" cy="11" rx="5" ry="6"/><mask label="d" left="1" top="2" width="5" height="6"/>""",
)
CSV_FILES = {
    "csv": DEEP_FOREST,
    "csv without header": KERAS,
    "csv made from xml": XML_TO_CSV,
    "csv of open images": OPEN_IMAGES,
}


def results(folder):
    (folder / "data").mkdir()
    (folder / "data" / "a.jpg").write_bytes(encoded("JPEG"))
    (folder / "data" / "truth.json").write_text(json.dumps(COCO | {"images": COCO["images"][:1]}))

    def read():
        file = DetectionFile(folder / "r.json")
        with contextlib.suppress(UnknownClassError):  # of the data, which knows classes that the file does not
            file.detections(COCODataset(folder / "data", classes=file.classes))

    return "r.json", read


def file_of(name, read):
    return lambda folder: (name, lambda: read(folder / name))


def load_both_ways(path):
    load_weights(path, device="cpu")
    initial_model(5, path)


def bytes_of(data):
    return lambda folder: lambda random: flipped(data, random)


# kind -> folder -> damage; folder -> (the file's name, what reads it)
KINDS = {
    **{
        f"picture.{suffix}": (bytes_of(encoded(*how)), file_of(f"a.{suffix}", lambda path: PictureFile(path).pixels()))
        for suffix, *how in (
            ("jpg", "JPEG"),
            ("png", "PNG"),
            ("webp", "WEBP"),
            ("bmp", "BMP"),
            ("tif", "TIFF"),
            ("gif", "GIF"),
        )
    },
    "voc": (bytes_of(XML.encode()), in_voc),
    "coco": (lambda folder: damaged_json(COCO), in_coco),
    "yolo labels": (bytes_of(b"0 0.5 0.5 0.2 0.3\n1 0.1 0.2 0.3 0.4 0.5 0.6\n"), in_yolo("labels/a.txt")),
    "yolo names": (bytes_of(YAML), in_yolo("data.yaml")),
    "labelme": (lambda folder: damaged_json(labelme("a.jpg", SHAPES)), in_format("a.json")),
    "via": (lambda folder: damaged_json(via(["a.jpg"], REGIONS)), in_format("a.json")),
    "via project": (lambda folder: damaged_json(via_project(["a.jpg"])), in_format("a.json")),
    "label studio": (lambda folder: damaged_json(label_studio(["a.jpg"])), in_format("a.json")),
    "label studio, json-min": (lambda folder: damaged_json(label_studio_min(["a.jpg"])), in_format("a.json")),
    "cvat": (bytes_of(XML_OF_CVAT.encode()), in_format("annotations.xml")),
    **{name: (bytes_of(table(["a.jpg"], *how).encode()), in_format("labels.csv")) for name, how in CSV_FILES.items()},
    "list": (bytes_of("a\nb c\nä\n".encode()), file_of("list.txt", read_lines)),
    "checkpoint": (lambda folder: bytes_of(checkpoint(folder))(folder), file_of("w.pt", load_both_ways)),
    "changed checkpoint": (changed_checkpoint, file_of("w.pt", load_both_ways)),
    "results": (lambda folder: damaged_json(RESULTS), results),
    "detections.json": (lambda folder: damaged_json(DETECTED), results),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_named(kind, tmp_path):
    damage, prepare = KINDS[kind]
    damage, (name, read) = damage(tmp_path), prepare(tmp_path)
    path = tmp_path / name

    @fuzz
    @given(st.integers(0, 2**40))
    def try_one(seed):
        path.write_bytes(damage(random.Random(seed)))
        try:
            read()
        except (ValueError, OSError) as error:
            said = str(error)
        else:
            return
        assert str(path) in said or "the name of a class has a control character" in said  # which names the folder
        assert not any("\n" in line for line in said.split("\n  "))  # of several errors, each has a line

    try_one()
