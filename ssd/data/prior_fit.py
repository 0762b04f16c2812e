"""Measures how well priors fit the objects of a dataset: objects that no prior overlaps are hard to learn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssd.boxes import cxcy_to_xy
from ssd.data.dataset import BoxDataset
from ssd.networks import Network
from ssd.networks.priors import make_priors
from ssd_ext import LossOptions, box_iou

CHUNK = 1000  # boxes whose IoUs are in memory at once
SAMPLE = 50_000  # objects that are measured; a share of 1 % is then known to within 0.1 %


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


def describe_fit(dataset: BoxDataset, network: Network) -> Iterator[str]:
    """Describes how the priors of a network fit the objects of a dataset.

    Args:
        dataset: the data set.
        network: the network; all its layouts of priors are described. It may be on the meta device.

    Yields:
        Lines of text with the sizes of the objects of each class and, for each preset, the share of objects that no
        prior overlaps enough. A dataset without objects gives no lines.
    """
    boxes, labels = dataset.objects.columns.values()
    if not len(boxes):
        return
    if len(boxes) > SAMPLE:
        yield f"of {SAMPLE} objects, drawn at random from {len(boxes)}:"
        drawn = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        boxes, labels = boxes[drawn], labels[drawn]
    size = network.input_size
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() * size
    classes = {name: labels == label for label, name in enumerate(dataset.classes, 1) if (labels == label).any()}
    yield (
        f"size of the objects: square root of the area, in pixels of the {size} x {size} input; median, 10 % to 90 %"
    )
    for name, its in classes.items():
        low, median, high = sides[its].quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
        yield f"  {name}: {median:.0f}, {low:.0f} to {high:.0f}"
    yield f"share of objects that no prior overlaps by an IoU of {LossOptions().threshold:g}, by layout of priors:"
    for layout in network.layouts:
        alone = without_prior(boxes, make_priors(network.layout(layout, network.prior_spec.maps))).float()
        each = ", ".join(f"{name} {alone[its].mean():.1%}" for name, its in classes.items())
        yield f"  {layout}: {alone.mean():.1%} ({each})"
