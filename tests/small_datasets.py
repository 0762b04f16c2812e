"""Small data sets of drawn pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def add_picture(root: Path, name: str, objects=(), *, size=(60, 40), filename=None, suffix=".jpg", declared=None):
    """Add one picture of `size` (width, height) with objects (class, xmin, ymin, xmax, ymax[, difficult])."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}{suffix}")
    width, height = declared or size
    xml = f"<size><width>{width}</width><height>{height}</height></size>"
    if filename != "":
        xml += f"<filename>{filename or name + suffix}</filename>"
    for label, xmin, ymin, xmax, ymax, *difficult in objects:
        box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"  # as in VOC; to be ignored
        flag = "".join(f"<difficult>{value}</difficult>" for value in difficult)
        xml += f"<object>{part}<name>{label}</name>{flag}<bndbox>{box}</bndbox></object>"
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{xml}</annotation>")


def add_split(root: Path, split: str, *names: str):
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n\n")


def cut(path: Path, share: float):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


NAMES = ("dog", "cat", "apple tree")  # not in the order of the alphabet
PICTURES = {  # split -> picture -> objects (class, xmin, ymin, xmax, ymax) as VOC writes them
    "train": {"a": [("dog", 1, 1, 30, 40), ("cat", 11, 5, 20, 30)], "b": [], "c": [("apple tree", 21, 11, 60, 20)]},
    "val": {"d": [("cat", 1, 21, 40, 40)]},
}
WIDTH, HEIGHT = 60, 40


def coco_content(pictures):
    """COCO's numbers: ids that begin anywhere, categories in another order than their ids."""
    ids = {name: 100 + 7 * i for i, name in enumerate(pictures)}
    categories = [{"id": 3 * i + 5, "name": name} for i, name in enumerate(NAMES)]
    by_name = {row["name"]: row["id"] for row in categories}
    annotations = [
        {"image_id": ids[name], "category_id": by_name[label], "bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]}
        for name, objects in pictures.items()
        for label, x0, y0, x1, y1 in objects
    ]
    images = [{"id": ids[name], "file_name": f"{name}.jpg"} for name in pictures]
    return {"images": images, "annotations": annotations[::-1], "categories": categories[::-1]}


def as_coco(voc, root, layout):
    for split, pictures in PICTURES.items():
        file, folder = {
            "coco": (f"annotations/instances_{split}.json", f"images/{split}"),
            "coco2017": (f"annotations/instances_{split}.json", split),
            "roboflow": (f"{split}/_annotations.coco.json", split),
        }[layout]
        for path in (root / file, root / folder / "x"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(coco_content(pictures)))
        for name in pictures:
            shutil.copy(voc / "JPEGImages" / f"{name}.jpg", root / folder)
    if layout == "coco":
        (root / "annotations" / "captions_train.json").write_text("{}")


def as_yolo(voc, root, layout):
    for split, pictures in PICTURES.items():
        images, labels = [
            root / (f"{split}/{kind}" if layout == "roboflow" else f"{kind}/{split}") for kind in ("images", "labels")
        ]
        for folder in (images, labels):
            folder.mkdir(parents=True)
        for name, objects in pictures.items():
            shutil.copy(voc / "JPEGImages" / f"{name}.jpg", images)
            lines = []
            for label, x0, y0, x1, y1 in objects:
                edges = (x0 - 1) / WIDTH, (y0 - 1) / HEIGHT, x1 / WIDTH, y1 / HEIGHT
                box = (edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2, edges[2] - edges[0], edges[3] - edges[1]
                if layout == "polygons":
                    box = edges[0], edges[1], edges[2], edges[1], edges[2], edges[3], edges[0], edges[3]
                lines.append(" ".join(map(str, (NAMES.index(label), *box))))
            if objects or layout == "polygons":  # with a YAML file, a picture without objects needs no text file
                (labels / f"{name}.txt").write_text("\n".join(lines) + "\n\n")
    names = {"yolo": f"names: {json.dumps(NAMES)}", "roboflow": "names:\n  0: dog\n  1: cat\n  2: apple tree"}
    if layout == "polygons":
        (root / "classes.txt").write_text("\n".join(NAMES))
    else:
        train = "train/images" if layout == "roboflow" else "images/train"
        (root / "data.yaml").write_text(f"path: .\ntrain: {train} # pictures\n{names[layout]}\nnc: 3\n")
