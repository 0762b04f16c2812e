"""Boxes with their labels and scores, as callers hand them over: read onto the host and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def read_boxes(boxes: Tensor, labels: Tensor, allowed: range, of: str = "") -> tuple[Tensor, np.ndarray]:
    """Boxes (k,4) in float64, so that no IoU below a threshold is rounded up to it, and labels (k,) int64.

    A shape that does not fit and a label that is not allowed are a ValueError, whose message begins with `of`.
    """
    boxes = torch.as_tensor(boxes).detach().cpu().double()
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)  # an empty list has shape (0,)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{of}boxes must have shape (k, 4), got {tuple(boxes.shape)}")
    labels = read_column(labels, f"{of}labels", len(boxes)).long().numpy()
    for wrong in labels[(labels < allowed.start) | (labels >= allowed.stop)]:
        raise ValueError(f"{of}labels must be in {allowed.start}..{allowed.stop - 1}, got {wrong}")
    return boxes, labels


def read_column(values: Tensor, name: str, n_boxes: int) -> Tensor:
    """One value for each box; more or fewer are a ValueError."""
    values = torch.as_tensor(values).detach().cpu()
    if values.shape != (n_boxes,):
        raise ValueError(f"{name} must have shape ({n_boxes},), one for each box, got {tuple(values.shape)}")
    return values


def read_images(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]], n_classes: int
) -> Iterator[tuple[tuple[Tensor, np.ndarray, np.ndarray], tuple[Tensor, np.ndarray, np.ndarray]]]:
    """Of each image (boxes, labels, scores) of the detections and (boxes, labels, difficult) of the objects.

    Their types are float64, int64 and, in the third place, float64 and bool. Labels are in 0..n_classes - 1, those of
    objects not 0. What does not fit, and lists of two lengths, are a ValueError.
    """
    if len(detections) != len(targets):
        raise ValueError(f"detections has {len(detections)} images, targets has {len(targets)}")
    for i, (detection, target) in enumerate(zip(detections, targets, strict=True)):
        boxes, labels = read_boxes(*detection[:2], range(n_classes), f"detections[{i}]: ")
        scores = read_column(detection[2], f"detections[{i}]: scores", len(labels)).double().numpy()
        gt_boxes, gt_labels = read_boxes(target["boxes"], target["labels"], range(1, n_classes), f"targets[{i}]: ")
        difficult = target.get("difficult", torch.zeros(len(gt_labels)))
        gt_difficult = read_column(difficult, f"targets[{i}]: difficult", len(gt_labels)).bool().numpy()
        yield (boxes, labels, scores), (gt_boxes, gt_labels, gt_difficult)
