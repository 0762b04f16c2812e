"""Measures how well priors fit the objects of a dataset, and fits them: objects without a prior are hard to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ssd.boxes import cxcy_to_xy
from ssd.data.dataset import BoxDataset
from ssd.networks import Network
from ssd.networks.priors import FITTED, PriorSpec, make_priors, shapes_of
from ssd_ext import LossOptions, box_iou

CHUNK = 1000  # boxes whose IoUs are in memory at once
SAMPLE = 50_000  # objects that are measured; a share of 1 % is then known to within 0.1 %
FITTED_TO = 5000  # objects to which priors are fitted; a share of 85 % is then known to within 0.5 %
FIRST_STEP, LAST_STEP = 0.4, 0.0125  # changes of a side or a ratio, as fractions
LEAST_GAIN = 1e-5
LEAST_CELLS = 0.8  # least side in cells: smaller priors would leave gaps between each other
LARGEST_SIDE = 1.05
LARGEST_RATIO = 8.0


def without_prior(boxes: Tensor, priors_cxcywh: Tensor, threshold: float = LossOptions().threshold) -> Tensor:
    """Finds the boxes whose IoU with every prior is below the least IoU of a positive prior.

    Matching assigns only one prior, the best one, to each of these boxes.

    Args:
        boxes: (n, 4) float xyxy in fractions of the image.
        priors_cxcywh: (P, 4) float cxcywh in fractions of the image.
        threshold: least IoU of a positive prior, in 0..1.

    Returns:
        (n,) bool.
    """
    corners = cxcy_to_xy(priors_cxcywh)
    best = [box_iou(chunk, corners).amax(1) for chunk in boxes.split(CHUNK)]
    return torch.cat(best) < threshold if best else boxes.new_empty(0, dtype=torch.bool)


def share_with_prior(boxes: Tensor, layout: PriorSpec, threshold: float = LossOptions().threshold) -> float:
    """Measures how many objects have a prior that fits.

    Args:
        boxes: (n, 4) float xyxy in fractions of the image; of many, 5000 are drawn at random.
        layout: the layout of the priors.
        threshold: least IoU of a positive prior, in 0..1.

    Returns:
        The share of boxes whose best prior has an IoU of at least `threshold`; 1 if there are no boxes.
    """
    boxes = _drawn(boxes, FITTED_TO)
    return 1 - int(without_prior(boxes, make_priors(layout), threshold).sum()) / max(1, len(boxes))


def fit_priors(boxes: Tensor, layouts: Sequence[PriorSpec], threshold: float = LossOptions().threshold) -> PriorSpec:
    """Fits the sides and ratios of priors to objects.

    Maximises the share of objects whose best prior has an IoU of at least `threshold`, plus the mean of the best IoUs.
    One number after another is increased or decreased by 40 % where this helps, then by half of that, down to 1 %.

    Args:
        boxes: (n, 4) float xyxy in fractions of the image; of many, 5000 are drawn at random.
        layouts: one or more layouts for the same maps. The fit starts from the best of them and keeps its number of
            priors for each cell.
        threshold: least IoU of a positive prior, in 0..1.

    Returns:
        The fitted layout; the first of `layouts` if there are no boxes.
    """
    if not len(boxes):
        return layouts[0]
    boxes = _drawn(boxes, FITTED_TO)
    search = max((_Search(boxes, layout, threshold) for layout in layouts), key=lambda search: search.value)
    step = FIRST_STEP
    while step >= LAST_STEP:
        if not search.improve(step):
            step /= 2
    return search.layout


class _Search:
    """A layout, and how well it fits the boxes.

    Attributes:
        value: the share of boxes whose best IoU reaches the threshold, plus the mean of the best IoUs.
    """

    def __init__(self, boxes: Tensor, layout: PriorSpec, threshold: float) -> None:
        self._start, self._threshold = layout, threshold
        self._sides = boxes[:, 2:] - boxes[:, :2]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        # Of the priors with one shape, the nearest one has the highest IoU. Its distance does not depend on the shape.
        self._distances = []
        for cells, n in zip(layout.cells, layout.maps, strict=True):
            nearest = (centres * cells - 0.5).round().clamp(0, n - 1)
            self._distances.append((centres - (nearest + 0.5) / cells).abs())
        # The sides of both squares of each map, and its ratios.
        parts = zip(layout.scales, layout.extra_scales, layout.ratios, strict=True)
        self._numbers = [[scale, extra, *ratios] for scale, extra, ratios in parts]
        self._best = torch.stack([self._best_iou(k, numbers) for k, numbers in enumerate(self._numbers)])  # (maps, n)
        self.value = self._value_of(self._best.amax(0))

    @property
    def layout(self) -> PriorSpec:
        return replace(
            self._start,
            scales=tuple(numbers[0] for numbers in self._numbers),
            extra_scales=tuple(numbers[1] for numbers in self._numbers),
            ratios=tuple(tuple(numbers[2:]) for numbers in self._numbers),
        )

    def improve(self, step: float) -> bool:
        """Tries to change each number by this fraction; returns whether a change has helped."""
        before = self.value
        for k, numbers in enumerate(self._numbers):
            others = self._best[[j for j in range(len(self._best)) if j != k]]
            for i in range(len(numbers)):
                for factor in (1 + step, 1 / (1 + step)):
                    changed = [*numbers[:i], numbers[i] * factor, *numbers[i + 1 :]]
                    if not self._allowed(k, i, changed[i]):
                        continue
                    best = self._best_iou(k, changed)
                    value = self._value_of(torch.cat([others, best[None]]).amax(0))
                    if value > self.value + LEAST_GAIN:
                        numbers[:], self._best[k], self.value = changed, best, value
        return self.value > before

    def _allowed(self, k: int, i: int, number: float) -> bool:
        if i < 2:
            return LEAST_CELLS / self._start.cells[k] <= number <= LARGEST_SIDE
        return 1 / LARGEST_RATIO <= number <= LARGEST_RATIO

    def _best_iou(self, k: int, numbers: Sequence[float]) -> Tensor:
        """(n,): the IoU of each box with the best prior of map k."""
        shapes = torch.tensor(shapes_of(numbers[0], numbers[1], numbers[2:])).clamp(max=1) / 2  # (m, 2)
        half, distance = self._sides[:, None] / 2, self._distances[k][:, None]
        width_height = torch.minimum(half, distance + shapes) - torch.maximum(-half, distance - shapes)  # (n, m, 2)
        inter = width_height.clamp(min=0).prod(-1)
        return (inter / (self._sides.prod(-1)[:, None] + 4 * shapes.prod(-1) - inter)).amax(1)

    def _value_of(self, best: Tensor) -> float:
        return float(best.mean() + (best >= self._threshold).float().mean())


def _drawn(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows, drawn at random."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]


class Fit(NamedTuple):
    """The sizes of n objects, all of a data set or a random sample, and whether priors fit them.

    Attributes:
        sides: (n,) float, square roots of the areas, in pixels of the network's input.
        labels: (n,) int64.
        alone: for each layout of priors, (n,) bool: whether no prior overlaps the object enough. The last one, with the
            name `FITTED`, is the layout that fits these objects best.
        input_size: side of the network's input in pixels.
        n_objects: number of objects of the data set.
    """

    sides: Tensor
    labels: Tensor
    alone: dict[str, Tensor]
    input_size: int
    n_objects: int

    def quantiles(self, its: Tensor) -> list[float]:
        """The sides below which 10 %, 50 % and 90 % of the objects `its`, (n,) bool, are; at least one."""
        found: list[float] = self.sides[its].quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
        return found


def measure_fit(dataset: BoxDataset, network: Network) -> Fit:
    """Measures the sizes of the objects of a data set, and which of them no prior of a network fits.

    Args:
        dataset: the data set; of more than `SAMPLE` objects, so many are drawn at random.
        network: the network; all its layouts of priors are measured. It may be on the meta device.
    """
    boxes, labels = dataset.objects.columns.values()
    drawn = _drawn(torch.arange(len(boxes)), SAMPLE) if len(boxes) > SAMPLE else slice(None)
    n_objects, boxes, labels = len(boxes), boxes[drawn], labels[drawn]
    layouts = network.all_layouts()
    layouts = layouts | {FITTED: fit_priors(boxes, list(layouts.values()))}
    alone = {name: without_prior(boxes, make_priors(layout)) for name, layout in layouts.items()}
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() * network.input_size
    return Fit(sides, labels, alone, network.input_size, n_objects)


def describe_fit(fit: Fit, classes: Sequence[str]) -> Iterator[str]:
    """Describes how the priors of a network fit the objects of a dataset.

    Args:
        fit: the result of `measure_fit`.
        classes: names of the classes.

    Yields:
        Lines of text with the sizes of the objects of each class and, for each preset, the share of objects that no
        prior overlaps enough. A dataset without objects gives no lines.
    """
    if not len(fit.sides):
        return
    if fit.n_objects > len(fit.sides):
        yield f"of {len(fit.sides)} objects, drawn at random from {fit.n_objects}:"
    size = fit.input_size
    by_class = {name: fit.labels == label for label, name in enumerate(classes, 1) if (fit.labels == label).any()}
    yield (
        f"size of the objects: square root of the area, in pixels of the {size} x {size} input; median, 10 % to 90 %"
    )
    for name, its in by_class.items():
        low, median, high = fit.quantiles(its)
        yield f"  {name}: {median:.0f}, {low:.0f} to {high:.0f}"
    yield f"share of objects that no prior overlaps by an IoU of {LossOptions().threshold:g}, by layout of priors:"
    for layout, alone in fit.alone.items():
        each = ", ".join(f"{name} {alone[its].float().mean():.1%}" for name, its in by_class.items())
        yield f"  {layout}: {alone.float().mean():.1%} ({each})"
