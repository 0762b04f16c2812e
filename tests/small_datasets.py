"""Small data sets of drawn pictures."""

from __future__ import annotations

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
