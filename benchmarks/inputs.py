"""The inputs of all contenders: made on the CPU from fixed seeds, so they are the same tensors in every run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.boxes import cxcy_to_xy
from ssd.loss import pack_targets
from ssd.networks.priors import make_priors
from ssd_ext import LossOptions
from ssd_ext._op import plain

PRIORS = make_priors()  # (8732, 4) cxcywh
PRIORS_XYXY = cxcy_to_xy(PRIORS)
P = len(PRIORS)
VARIANCES = LossOptions().center_variance, LossOptions().size_variance


class Inputs(NamedTuple):
    """The inputs of all contenders of a case; a case fills only the fields that its op takes."""

    boxes: Tensor | None = None  # (N, 4) xyxy; for a batch, the objects of all images, concatenated
    scores: Tensor | None = None  # (N,)
    idxs: Tensor | None = None  # (N,)
    labels: Tensor | None = None  # (N,)
    row_splits: Tensor | None = None  # (B + 1,)
    box_lists: list[Tensor] | None = None  # the same objects of a batch, one tensor per image
    label_lists: list[Tensor] | None = None
    pred_offsets: Tensor | None = None  # (B, P, 4)
    pred_logits: Tensor | None = None  # (B, P, C)
    priors_cxcywh: Tensor | None = None  # (P, 4)
    priors_xyxy: Tensor | None = None  # (P, 4)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(n: int, seed: int) -> Tensor:
    """(n, 4) xyxy with sides of 0.05 to 0.35 and centres anywhere in the image."""
    g = generator(seed)
    centre, sides = torch.rand(n, 2, generator=g), 0.05 + 0.3 * torch.rand(n, 2, generator=g)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


def objects(images: int, classes: int, fewest: int, most: int) -> Inputs:
    """The objects of a batch, packed and as lists, with `fewest` to `most` objects per image."""
    g = generator(1)
    counts = torch.randint(fewest, most + 1, (images,), generator=g).tolist()
    boxes = [random_boxes(n, seed) for seed, n in enumerate(counts)]
    labels = [torch.randint(1, classes, (n,), generator=g) for n in counts]
    packed, packed_labels, row_splits = pack_targets(boxes, labels, torch.device("cpu"))
    return Inputs(boxes=packed, labels=packed_labels, row_splits=row_splits, box_lists=boxes, label_lists=labels)


def clustered_boxes(n: int, classes: int | None) -> Inputs:
    """Boxes in clusters of about 20, as from a detector, with distinct scores; with classes unless that is None."""
    g = generator(n)
    centres = random_boxes(max(1, n // 20), n)
    boxes = centres[torch.randint(len(centres), (n,), generator=g)] + 0.02 * torch.randn(n, 4, generator=g)
    scores = torch.randperm(n, generator=g) / n
    return Inputs(boxes, scores, None if classes is None else torch.randint(classes, (n,), generator=g))


def trained_like(images: int, classes: int, priors: Tensor = PRIORS) -> tuple[Tensor, Tensor]:
    """Offsets (B, P, 4) and logits (B, P, C) like those of a trained SSD, for its priors (P, 4) cxcywh.

    Almost all priors have a high background score. Each image has 1 to 6 objects, and the priors around them predict
    them: the odds of the object's class against background are 1:1 at an IoU of 0.5 and about 1:100 at 0.31, and the
    offsets lead to the object. Some hundred candidates of an image have a score > 0.01.
    """
    g = generator(5)
    pred_offsets = 0.5 * torch.randn(images, len(priors), 4, generator=g)
    logits = torch.randn(images, len(priors), classes, generator=g)
    logits[..., 0] += 10
    for i in range(images):
        n = int(torch.randint(1, 7, (1,), generator=g))
        boxes, labels = random_boxes(n, 100 + i).clamp(0, 1), torch.randint(1, classes, (n,), generator=g)
        overlap, which = plain.box_iou(boxes, cxcy_to_xy(priors)).max(dim=0)
        near = (overlap > 0.2).nonzero()[:, 0]
        offsets = plain.encode_boxes(boxes[which[near]], priors[near], *VARIANCES)
        pred_offsets[i, near] = offsets + 0.2 * torch.randn(len(near), 4, generator=g)
        odds = 24 * (overlap[near] - 0.5) + torch.randn(len(near), generator=g)
        logits[i, near, labels[which[near]]] = logits[i, near, 0] + odds
    return pred_offsets, logits


def untrained(images: int, classes: int, priors: Tensor = PRIORS) -> tuple[Tensor, Tensor]:
    """Small random predictions: every class of every prior has a score near 1 / C."""
    g = generator(6)
    n = len(priors)
    return 0.1 * torch.randn(images, n, 4, generator=g), 0.1 * torch.randn(images, n, classes, generator=g)


def candidates(logits: Tensor, min_score: float) -> float:
    """How many pairs (prior, class) of an image have a score above min_score, on average."""
    return float((logits.softmax(dim=-1)[..., 1:] > min_score).sum()) / len(logits)


def shaped_boxes(shape: str, n: int) -> Inputs:
    """Boxes in one of `SHAPES`, with distinct scores; the plane grows with n, so its density stays the same."""
    g = generator(n)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size or (n,), generator=g)

    plane = 10 * n**0.5
    x, y, w, h = uniform(0, plane), uniform(0, plane), uniform(2, 8), uniform(2, 8)
    if shape == "sizes":
        x, y = 3 * x, 3 * y
        w = 1000 ** uniform(0, 1)
        h = w * uniform(0.5, 1.5)
    elif shape == "line":
        x, y, h = uniform(0, 10 * n), torch.zeros(n), torch.full((n,), 5.0)
    elif shape == "identical":
        x, y, w, h = (torch.full((n,), side) for side in (5.0, 5.0, 3.0, 3.0))
    elif shape == "nested":
        x, y, w = torch.zeros(n), torch.zeros(n), 1 + torch.randperm(n, generator=g).float()
        h = w
    elif shape != "scattered":
        of = torch.arange(n) % max(1, n // int(shape.split()[-1]))  # "clusters of 20"
        x, y, w, h = x[of], y[of], w[of] + 3, h[of] + 3
        x, y = x + 0.3 * torch.randn(n, generator=g), y + 0.3 * torch.randn(n, generator=g)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
    return Inputs(boxes, (1 + torch.randperm(n, generator=g)) / n)


SHAPES = ("scattered", "clusters of 2", "clusters of 20", "clusters of 100", "sizes", "line", "identical", "nested")
