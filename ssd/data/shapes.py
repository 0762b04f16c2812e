"""Draws a synthetic detection dataset in Pascal VOC layout, for demonstrations and tests without a download."""

from __future__ import annotations

import colorsys
import math
import os
import tempfile
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SHAPE_CLASSES = ("circle", "square", "triangle")
CORNERS = {"square": 4, "triangle": 3}  # a circle is drawn with 72
SMALLEST, LARGEST = 0.12, 0.6  # side of an object's box, relative to the shorter side of the picture
MOST = 5  # shapes in a picture
EMPTY_SHARE = 0.04  # fraction of pictures without objects
SCALE = 2  # side of the drawing divided by the side of the picture; reducing it smooths the edges

Box = tuple[int, int, int, int]  # edges in pixels
Colour = tuple[int, int, int]  # red, green and blue in 0..255


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draws a dull gradient with stripes, lines, dots and rings, none of which is an object."""
    low, high = (np.array(_colour(rng, (0.05, 0.4), (0.25, 0.8))) for _ in range(2))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    slope = x * math.cos(angle) + y * math.sin(angle)
    slope = (slope - slope.min()) / np.ptp(slope)
    stripes = np.sin(slope * rng.uniform(20, 120)) * rng.uniform(0, 20) * (rng.random() < 0.5)
    pixels = low + (high - low) * slope[..., None] + stripes[..., None]  # (H, W, 3)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((width * SCALE, height * SCALE))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4, 16)):
        (x, y), (u, v) = rng.random((2, 2)) * image.size
        colour, thickness = _colour(rng, (0.1, 0.8), (0.2, 0.9)), int(rng.integers(1, 5))
        radius = rng.uniform(0.004, 0.02) * image.width
        match rng.integers(3):
            case 0:
                draw.line((x, y, u, v), colour, thickness)
            case 1:
                draw.circle((x, y), radius, colour)
            case 2:
                radius *= 10
                ring = (x - radius, y - radius, x + radius, y + radius)
                start, end = rng.uniform(0, 360, 2)
                draw.arc(ring, start, end, colour, thickness)
    return image


def _contour(rng: np.random.Generator, name: str, box: Box) -> list[tuple[float, float]]:
    """Computes the corners of a shape, slightly rotated and scaled to touch all four sides of the box."""
    n = CORNERS.get(name, 72)
    turn = rng.uniform(-0.2, 0.2) - math.pi / 2 + (math.pi / 4 if name == "square" else 0)
    angles = turn + np.arange(n) * 2 * math.pi / n
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (n, 2)
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    x0, y0, x1, y1 = box
    return [tuple(point) for point in points * (x1 - x0, y1 - y0) + (x0, y0)]


def _place(
    rng: np.random.Generator, width: int, height: int, taken: list[Box], sides: tuple[float, float]
) -> Box | None:
    """Draws a free place for one more object, in whole pixels. None if 30 attempts find no free place."""
    for _ in range(30):
        side = min(width, height) * math.exp(rng.uniform(*map(math.log, sides)))
        w, h = (round(side * rng.uniform(0.85, 1)) for _ in range(2))
        x0, y0 = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        box = (x0, y0, x0 + w, y0 + h)
        if all(_overlap(box, other) <= 0.08 for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> float:
    """Area of the intersection, as a fraction of the smaller box."""
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def _picture(
    rng: np.random.Generator,
    width: int,
    height: int,
    most: int = MOST,
    sides: tuple[float, float] = (SMALLEST, LARGEST),
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    image = _background(rng, width, height)  # SCALE times as large
    draw = ImageDraw.Draw(image)
    objects: list[tuple[str, Box]] = []
    for _ in range(0 if rng.random() < EMPTY_SHARE else rng.integers(1, most + 1)):
        box = _place(rng, width, height, [box for _, box in objects], sides)
        if box is None:
            break
        name = SHAPE_CLASSES[rng.integers(len(SHAPE_CLASSES))]
        x0, y0, x1, y1 = (SCALE * edge for edge in box)
        contour = _contour(rng, name, (x0, y0, x1 - 1, y1 - 1))  # Pillow draws the last pixel too
        draw.polygon(contour, _colour(rng, (0.55, 1), (0.6, 1)), _colour(rng, (0, 1), (0, 0.4)), width=3)
        objects.append((name, box))
    grain = rng.normal(128, rng.uniform(2, 10), (height, width, 3)).clip(0, 255).astype(np.uint8)
    return ImageChops.add(image.reduce(SCALE), Image.fromarray(grain), offset=-128), objects


def _annotation(filename: str, width: int, height: int, objects: list[tuple[str, Box]]) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{filename}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for name, (x0, y0, x1, y1) in objects:
        # VOC counts pixels from 1 and includes the last
        box = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        lines.append(f"  <object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>\n"])


def write_shapes(
    folder: str | PathLike[str],
    n_train: int = 300,
    n_test: int = 100,
    size: tuple[int, int] = (300, 300),
    seed: int = 0,
    *,
    most: int = MOST,
    sides: tuple[float, float] = (SMALLEST, LARGEST),
) -> Path:
    """Writes pictures of coloured circles, squares and triangles on busy backgrounds, with their annotations.

    A picture shows up to `most` shapes that hardly overlap; a few show none. The folder gets its name only when it is
    complete. The same arguments give the same pictures (with the same versions of NumPy and Pillow). A picture depends
    only on its split, its number, `size`, `seed`, `most` and `sides`.

    Args:
        folder: created with its parents; it must be missing or empty.
        n_train: number of pictures in the split "train".
        n_test: number of pictures in the split "test".
        size: width and height of the pictures in pixels, at least 64 each.
        seed: an integer, at least 0.
        most: largest number of shapes in a picture, at least 1.
        sides: smallest and largest side of a shape, in fractions of the shorter side of the picture.

    Returns:
        The folder, which `VOCDataset` reads; the classes are `SHAPE_CLASSES`.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: a number is out of range.

    Examples:
        >>> from ssd.data.shapes import write_shapes
        >>> folder = write_shapes("shapes", n_train=2, n_test=1, size=(96, 64))
        >>> sorted(path.name for path in (folder / "JPEGImages").iterdir())
        ['test_00000.jpg', 'train_00000.jpg', 'train_00001.jpg']
    """
    folder, (width, height) = Path(folder), size
    if min(n_train, n_test, seed) < 0 or min(width, height) < 64:
        got = {"n_train": n_train, "n_test": n_test, "seed": seed, "size": size}
        raise ValueError(f"counts and seed must be at least 0 and both sides at least 64, got {got}")
    if most < 1 or not 0 < sides[0] <= sides[1] < 1:
        raise ValueError(f"most must be at least 1, and sides two fractions in ascending order, got {most}, {sides}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        root = Path(scratch) / "set"
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / name).mkdir(parents=True)
        for part, (split, n) in enumerate((("train", n_train), ("test", n_test))):
            names = [f"{split}_{number:05d}" for number in range(n)]
            for number, name in enumerate(names):
                image, objects = _picture(np.random.default_rng([seed, part, number]), width, height, most, sides)
                image.save(root / "JPEGImages" / f"{name}.jpg", quality=90)
                annotation = _annotation(f"{name}.jpg", width, height, objects)
                (root / "Annotations" / f"{name}.xml").write_text(annotation)
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        os.replace(root, folder)
    return folder
