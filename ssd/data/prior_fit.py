"""How the objects of a data set fit the priors of a network: what no prior overlaps is hard to learn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssd.boxes import cxcy_to_xy
from ssd.data.dataset import BoxDataset
from ssd.networks.priors import PRESETS, make_priors
from ssd.networks.ssd300 import SSD300
from ssd_ext import LossOptions, box_iou

CHUNK = 1000  # boxes whose IoUs are held at once
SAMPLE = 50_000  # objects that tell enough of all: a share of 1 % is then right to a tenth of it


def without_prior(boxes: Tensor, priors_cxcywh: Tensor, threshold: float = LossOptions().threshold) -> Tensor:
    """Which boxes (n, 4) xyxy no prior (P, 4) overlaps by as much as a positive one has to: (n,) bool.

    Matching still gives each of them its best prior, but that one alone.
    """
    corners = cxcy_to_xy(priors_cxcywh)
    best = [box_iou(chunk, corners).amax(1) for chunk in boxes.split(CHUNK)]
    return torch.cat(best) < threshold if best else boxes.new_empty(0, dtype=torch.bool)


def describe_fit(dataset: BoxDataset) -> Iterator[str]:
    """Lines: the sizes of the objects of each class, and the share of them that no prior of each preset overlaps."""
    boxes, labels = dataset.objects.columns.values()
    if not len(boxes):
        return
    if len(boxes) > SAMPLE:
        yield f"of {SAMPLE} objects, drawn from {len(boxes)}:"
        drawn = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        boxes, labels = boxes[drawn], labels[drawn]
    size = SSD300.input_size
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() * size
    classes = {name: labels == label for label, name in enumerate(dataset.classes, 1) if (labels == label).any()}
    yield f"side of the objects in pixels of the network's {size} (the root of their area): median, 10 % to 90 %"
    for name, its in classes.items():
        low, median, high = sides[its].quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
        yield f"  {name}: {median:.0f}, {low:.0f} to {high:.0f}"
    yield f"objects that no prior overlaps by {LossOptions().threshold:g}, by priors:"
    for preset in PRESETS:
        alone = without_prior(boxes, make_priors(preset)).float()
        each = ", ".join(f"{name} {alone[its].mean():.1%}" for name, its in classes.items())
        yield f"  {preset}: {alone.mean():.1%} ({each})"
