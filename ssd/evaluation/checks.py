"""Boxes with their labels and scores, as callers hand them over: read onto the host and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import read_boxes, read_column


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
