"""Prior boxes: layouts that published checkpoints were trained with, and layouts for maps of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Clamp = Literal["cxcywh", "wh", "none"]
FITTED = "auto"  # in place of the name of a layout: one that is fitted to the training data, see `ssd.data.prior_fit`


@dataclass(frozen=True)
class PriorSpec:
    """Positions and shapes of the prior boxes of each feature map.

    Each cell of map k has, in this order, a square of side `scales[k]`, a square of side `extra_scales[k]` and, for
    each ratio in `ratios[k]`, a box with the area of the first square. Lengths are fractions of the image side.

    Args:
        scales: side of the first square of each map.
        extra_scales: side of the second square of each map.
        ratios: width / height of the other shapes of each map.
        cells: for each map, the image side divided by the stride of the map; cell i is centred at (i + 0.5) / cells.
            This quotient is more than the map's number of cells in `maps` if the map ends before the image's edge, and
            less if the map extends beyond the edge.
        maps: cells per side of each map.
        clamp: "cxcywh" limits centres and sizes to 0..1, "wh" only sizes, "none" neither.

    Raises:
        ValueError: the tuples differ in length, or `clamp` has another value.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 2.2.
    """

    scales: tuple[float, ...]
    extra_scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    cells: tuple[float, ...]
    maps: tuple[int, ...] = (38, 19, 10, 5, 3, 1)
    clamp: Clamp = "cxcywh"

    def __post_init__(self) -> None:
        for name in ("scales", "extra_scales", "ratios", "cells"):
            if len(getattr(self, name)) != len(self.maps):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.maps)} maps")
        if self.clamp not in get_args(Clamp):
            raise ValueError(f"clamp must be 'cxcywh', 'wh' or 'none', got {self.clamp!r}")

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        """Number of priors in one cell of each map."""
        return tuple(2 + len(ratios) for ratios in self.ratios)


def between(scales: tuple[float, ...]) -> tuple[float, ...]:
    """Geometric means of neighbouring scales: the sides of the extra squares."""
    return tuple(sqrt(scale * following) for scale, following in pairwise(scales))


def _tutorial() -> PriorSpec:
    scales = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9)
    few, many = (2.0, 0.5), (2.0, 3.0, 0.5, 0.333)  # 0.333 and not 1/3: existing checkpoints were trained with it
    return PriorSpec(
        scales=scales,
        extra_scales=(*between(scales), 1.0),
        ratios=(few, many, many, many, few, few),
        cells=(38, 19, 10, 5, 3, 1),
    )


def _caffe(scales: tuple[float, ...], clamp: Clamp = "cxcywh") -> PriorSpec:
    """The layout of the original Caffe code; `scales` has one entry more than there are maps."""
    few, many = (2.0, 1 / 2), (2.0, 1 / 2, 3.0, 1 / 3)
    return PriorSpec(
        scales=scales[:-1],
        extra_scales=between(scales),
        ratios=(few, many, many, many, few, few),
        cells=tuple(300 / stride for stride in (8, 16, 32, 64, 100, 300)),
        clamp=clamp,
    )


#: The layouts of `SSD300` by name, with which checkpoints of other projects were trained.
PRESETS: dict[str, PriorSpec] = {
    # sgrvinod/a-PyTorch-Tutorial-to-Object-Detection, model.py
    "tutorial": _tutorial(),
    # amdegroot/ssd.pytorch, data/config.py: sizes in pixels of the 300 x 300 image
    "caffe_voc": _caffe(tuple(px / 300 for px in (30, 60, 111, 162, 213, 264, 315))),
    "caffe_coco": _caffe(tuple(px / 300 for px in (21, 45, 99, 153, 207, 261, 315))),
    # pytorch/vision, models/detection/ssd.py, ssd300_vgg16
    "torchvision": _caffe((0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), clamp="wh"),
}


def linear_layout(
    maps: Sequence[int],
    smallest: float,
    largest: float,
    ratios: tuple[float, ...],
    following: float = 1.0,
    first: float | None = None,
) -> PriorSpec:
    """Lays out priors with sides that grow by equal steps from map to map.

    The side of a map's second square is the geometric mean of the sides of its first square and of that of the next
    map. The centres are those of the cells.

    Args:
        maps: number of cells per side of each map, at least two maps.
        smallest, largest: side of the first square of the first and of the last map, as a fraction of the image.
        ratios: width / height of the other shapes, the same for all maps.
        following: the side that would follow on the last map.
        first: side of the first square of the first map; the others then grow from `smallest` on the second map.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 2.2, equation 4.

    Examples:
        >>> from ssd.networks.priors import linear_layout
        >>> spec = linear_layout((8, 4, 2), smallest=0.25, largest=0.75, ratios=(2.0, 0.5))
        >>> spec.scales, spec.boxes_per_cell
        ((0.25, 0.5, 0.75), (4, 4, 4))
    """
    n = len(maps) - (first is not None)
    scales = [smallest + (largest - smallest) * k / (n - 1) for k in range(n)]
    if first is not None:
        scales.insert(0, first)
    return PriorSpec(
        scales=tuple(scales),
        extra_scales=between((*scales, following)),
        ratios=(ratios,) * len(maps),
        cells=tuple(maps),
        maps=tuple(maps),
        clamp="wh",
    )


def coco_layout(maps: Sequence[int]) -> PriorSpec:
    """Lays out priors with the sides that the paper uses for COCO: 0.07, 0.15 and further to 0.87 of the image.

    The first map and the last two maps have the ratios 2 and 1/2, the others also 3 and 1/3. For the six maps of
    `SSD300`, the sizes are those of the preset "caffe_coco". The centres are those of the cells.

    Args:
        maps: number of cells per side of each map, at least three maps.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 3.4; NVIDIA/DeepLearningExamples,
    PyTorch/Detection/SSD.
    """
    smallest, largest = 0.15, 0.87
    following = largest + (largest - smallest) / (len(maps) - 2)
    spec = linear_layout(maps, smallest, largest, (2.0, 1 / 2, 3.0, 1 / 3), following, first=0.07)
    few, last = (2.0, 1 / 2), len(maps) - 2
    return replace(spec, ratios=tuple(few if k == 0 or k >= last else all for k, all in enumerate(spec.ratios)))


def spec_of(priors: PriorSpec | Mapping[str, Any]) -> PriorSpec:
    """Returns a layout that is given as a `PriorSpec` or as a dict of its fields.

    Raises:
        ValueError: see `PriorSpec`.
        TypeError: the dict has an unknown field, or lacks one.
    """
    if isinstance(priors, PriorSpec):
        return priors
    return PriorSpec(**{name: _as_tuples(value) for name, value in priors.items()})


def find_spec(spec: str | PriorSpec | Mapping[str, Any]) -> PriorSpec:
    """Finds a layout of priors of `SSD300`.

    Args:
        spec: name of a preset, the fields of a `PriorSpec` as a dict, or a `PriorSpec`, which is returned unchanged.

    Raises:
        ValueError: no preset has this name.
        TypeError: the dict has an unknown field, or lacks one.
    """
    if not isinstance(spec, str):
        return spec_of(spec)
    if spec not in PRESETS:
        raise ValueError(f"priors must be a PriorSpec or one of {', '.join(PRESETS)}, got {spec!r}")
    return PRESETS[spec]


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value


def shapes_of(scale: float, extra: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Width and height of the priors in a cell, for two squares with these sides and for these ratios."""
    return [(scale, scale), (extra, extra), *((scale * sqrt(r), scale / sqrt(r)) for r in ratios)]


def make_priors(spec: str | PriorSpec | Mapping[str, Any] = "tutorial") -> Tensor:
    """Computes the prior boxes, ordered by map, then row, then column, then shape.

    Args:
        spec: "tutorial", "caffe_voc", "caffe_coco", "torchvision", or another layout, see `find_spec`.

    Returns:
        (P, 4) float32 cxcywh in fractions of the image; P = 8732 for the presets. Computed in float64 and
        rounded once.

    Raises:
        ValueError: no preset has this name.

    Examples:
        >>> from ssd.networks.priors import linear_layout, make_priors
        >>> make_priors(linear_layout((2, 1), smallest=0.25, largest=0.5, ratios=()))[0].tolist()  # of the first map
        [0.25, 0.25, 0.25, 0.25]
        >>> make_priors("tutorial").shape
        torch.Size([8732, 4])
    """
    spec = find_spec(spec)
    boxes = []
    for size, cells, scale, extra, ratios in zip(
        spec.maps, spec.cells, spec.scales, spec.extra_scales, spec.ratios, strict=True
    ):
        shapes = shapes_of(scale, extra, ratios)
        centres = [(i + 0.5) / cells for i in range(size)]
        boxes += [(cx, cy, w, h) for cy in centres for cx in centres for w, h in shapes]
    priors = torch.tensor(boxes, dtype=torch.float32)  # (P, 4)
    if spec.clamp != "none":
        priors[:, 0 if spec.clamp == "cxcywh" else 2 :].clamp_(0, 1)
    return priors
