"""What all contenders work on: the same tensors in every run, made on the CPU from fixed seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd.boxes import cxcy_to_xy
from ssd.priors import make_priors
from ssd_ext import reference

PRIORS = make_priors()  # (8732, 4) cxcywh
PRIORS_XYXY = cxcy_to_xy(PRIORS)
P = len(PRIORS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(n: int, seed: int) -> Tensor:
    """(n, 4) xyxy with sides of 0.05 to 0.35 and centres anywhere in the image."""
    g = generator(seed)
    centre, sides = torch.rand(n, 2, generator=g), 0.05 + 0.3 * torch.rand(n, 2, generator=g)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


def objects(images: int, classes: int, fewest: int, most: int) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes (n_i, 4) and labels (n_i,) of each image, fewest <= n_i <= most."""
    g = generator(1)
    counts = torch.randint(fewest, most + 1, (images,), generator=g).tolist()
    boxes = [random_boxes(n, seed) for seed, n in enumerate(counts)]
    return boxes, [torch.randint(1, classes, (n,), generator=g) for n in counts]


def clustered_boxes(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in clusters of about 20, as a detector gives them, with scores that all differ and 20 classes."""
    g = generator(n)
    centres = random_boxes(max(1, n // 20), n)
    boxes = centres[torch.randint(len(centres), (n,), generator=g)] + 0.02 * torch.randn(n, 4, generator=g)
    return boxes, torch.randperm(n, generator=g) / n, torch.randint(20, (n,), generator=g)


def trained_like(images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Offsets (B, P, 4) and logits (B, P, C) like those of a trained SSD.

    Background is certain almost everywhere. The priors around each of 1 to 6 objects fire: the odds of the object's
    class against background are 1 at an IoU of 0.5 and about 1:100 at 0.31, and their offsets lead to the object.
    Some hundred candidates of an image have a score > 0.01.
    """
    g = generator(5)
    locs = 0.5 * torch.randn(images, P, 4, generator=g)
    logits = torch.randn(images, P, classes, generator=g)
    logits[..., 0] += 10
    for i in range(images):
        n = int(torch.randint(1, 7, (1,), generator=g))
        boxes, labels = random_boxes(n, 100 + i).clamp(0, 1), torch.randint(1, classes, (n,), generator=g)
        overlap, which = reference.box_iou(boxes, PRIORS_XYXY).max(dim=0)
        near = (overlap > 0.2).nonzero()[:, 0]
        offsets = reference.encode_boxes(boxes[which[near]], PRIORS[near], 0.1, 0.2)
        locs[i, near] = offsets + 0.2 * torch.randn(len(near), 4, generator=g)
        odds = 24 * (overlap[near] - 0.5) + torch.randn(len(near), generator=g)
        logits[i, near, labels[which[near]]] = logits[i, near, 0] + odds
    return locs, logits


def untrained(images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Small random predictions: every class of every prior has a score near 1 / C."""
    g = generator(6)
    return 0.1 * torch.randn(images, P, 4, generator=g), 0.1 * torch.randn(images, P, classes, generator=g)


def candidates(logits: Tensor, min_score: float) -> float:
    """How many (prior, class) of an image pass min_score, on average."""
    return float((logits.softmax(dim=-1)[..., 1:] > min_score).sum()) / len(logits)
