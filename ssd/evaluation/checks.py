"""Checks the boxes, labels and scores that callers pass to the metrics."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import read_boxes, read_column

Checked = tuple[Tensor, np.ndarray, np.ndarray]  # boxes; labels; scores of detections, or `difficult` of objects


def read_images(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]], n_classes: int
) -> Iterator[tuple[Checked, Checked]]:
    """Checks the detections and the objects of each image, and copies them to the host.

    Args:
        detections: for each image (boxes (k, 4), labels (k,), scores (k,)); labels in 0..n_classes - 1.
        targets: for each image "boxes" (n, 4), "labels" (n,) in 1..n_classes - 1 and optionally "difficult" (n,).
        n_classes: number of classes, background included.

    Yields:
        For each image the pair (boxes (k, 4) float64, labels (k,) int64, scores (k,) float64) of the detections and
        (boxes (n, 4) float64, labels (n,) int64, difficult (n,) bool) of the objects.

    Raises:
        ValueError: the numbers of images or rows differ, or a shape or label is not allowed.
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
