"""Pictures and figures of the tutorial: pictures of drawn shapes, and boxes drawn over a picture."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from torch import Tensor

from ssd.data import open_dataset
from ssd.data.shapes import write_shapes

BLUE, ORANGE, GREEN, RED, PURPLE, BROWN = COLOURS = ("#0060e6", "#e67300", "#00902a", "#d4001a", "#8a2be2", "#7a4a1e")
plt.rcParams.update({"figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 90, "font.size": 9})


def drawn_pictures(n: int, seed: int = 0, **options: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Draws pictures of circles, squares and triangles.

    Args:
        n: number of pictures.
        seed, options: see `ssd.data.shapes.write_shapes`.

    Returns:
        For each picture its pixels (3, 300, 300) uint8, its boxes (k, 4) float32 xyxy in fractions of the picture, and
        their labels (k,) int64 in 1..3.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(write_shapes(Path(folder) / "shapes", n, 0, seed=seed, **options), "train")
        items = [dataset[i] for i in range(n)]
    plain = [(pixels, target["boxes"], target["labels"]) for pixels, target in items]
    plain = [tuple(tensor.as_subclass(Tensor) for tensor in item) for item in plain]
    return [(pixels, boxes / torch.tensor(pixels.shape[:0:-1] * 2), labels) for pixels, boxes, labels in plain]


def axes_in_row(n: int, side: float = 2.6, rows: int = 1) -> list[Axes]:
    """Makes one figure with n square axes in rows; returns the axes, row by row."""
    columns = -(-n // rows)
    _, axes = plt.subplots(rows, columns, figsize=(side * columns, side * rows), layout="constrained", squeeze=False)
    return list(axes.flat)


def show(axis: Axes, pixels: Tensor, title: str = "", fade: float = 0.0) -> None:
    """Shows a picture (3, H, W) uint8 in the square from 0 to 1, with y downwards; `fade` from 0 to 1 whitens it."""
    rgb = pixels.permute(1, 2, 0).float() / 255
    axis.imshow((rgb + (1 - rgb) * fade).numpy(), extent=(0, 1, 1, 0))
    axis.set(title=title, xticks=[], yticks=[])


def outline(
    axis: Axes,
    boxes: Tensor,
    colour: str | Sequence[str] = BLUE,
    texts: Iterable[str] = (),
    width: float = 1.5,
    style: str = "-",
    alpha: float = 1.0,
) -> None:
    """Draws the outlines of boxes (k, 4) xyxy in fractions of the picture, with a text in the upper corner of each."""
    corners = boxes.tolist()
    patches = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in corners]
    axis.add_collection(
        PatchCollection(patches, facecolor="none", edgecolor=colour, linewidth=width, linestyle=style, alpha=alpha)
    )
    colours = [colour] * len(corners) if isinstance(colour, str) else colour
    for (x0, y0, _, _), text, background in zip(corners, texts, colours, strict=False):
        label = {"facecolor": background, "edgecolor": "none", "pad": 1}
        axis.text(x0, y0, text, color="white", fontsize=7, va="bottom", bbox=label)
