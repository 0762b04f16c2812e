"""Detections and objects to evaluate."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from ssd.evaluation.evaluate import METHODS

CLASSES = ("cat", "dog")
CAT, DOG = 1, 2
A, B = [0, 0, 10, 10], [20, 0, 30, 10]

NOTHING = (torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0))


def found(*rows):
    """Detections of one image from rows of (box, label, score)."""
    boxes, labels, scores = zip(*rows, strict=True)
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), torch.tensor(scores)


def truth(*rows):
    """Target of one image from rows of (box, label) or (box, label, difficult)."""
    return {
        "boxes": torch.tensor([row[0] for row in rows], dtype=torch.float32),
        "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
        "difficult": torch.tensor([len(row) > 2 and row[2] for row in rows], dtype=torch.bool),
    }


def random_images(seed: int, n_images: int = 8):
    """Crowded images, some without objects or detections, without equal scores; class 4 has no object."""
    rng = np.random.default_rng(seed)
    scores = iter(rng.permutation(2000) / 2000)
    detections, targets = [], []
    for _ in range(n_images):
        corner = rng.uniform(0, 0.7, (rng.integers(0, 7), 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.3, corner.shape)], 1)
        boxes = np.concatenate([boxes, boxes[::2] + rng.normal(0, 0.04, boxes[::2].shape)])  # close neighbours
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        labels = rng.integers(1, 4, len(boxes))
        difficult = torch.from_numpy(rng.random(len(boxes)) < 0.2)
        truths, kinds = torch.from_numpy(boxes).float(), torch.from_numpy(labels)
        targets.append({"boxes": truths, "labels": kinds, "difficult": difficult})
        rows = rng.integers(0, len(boxes), rng.integers(0, 30)) if len(boxes) else []
        near = boxes[rows] + rng.normal(0, 0.02, (len(rows), 4))
        guesses = np.where(rng.random(len(rows)) < 0.85, labels[rows], rng.integers(0, 5, len(rows)))
        its_scores = torch.tensor([next(scores) for _ in rows], dtype=torch.float32)
        detections.append((torch.from_numpy(near).float(), torch.from_numpy(guesses).long(), its_scores))
    return detections, targets


GOOD = (torch.tensor([A, B]), torch.tensor([CAT, DOG]), torch.tensor([0.5, 0.6]))
GOOD_TARGET = {"boxes": GOOD[0], "labels": GOOD[1], "difficult": torch.tensor([False, True])}


needs_coco = pytest.mark.skipif(
    find_spec("faster_coco_eval") is None, reason="no faster-coco-eval: pip install 'ssd-ext[coco]'"
)


all_methods = pytest.mark.parametrize(
    "method", [pytest.param(m, marks=needs_coco if m == "coco" else ()) for m in METHODS]
)


def slow_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)
