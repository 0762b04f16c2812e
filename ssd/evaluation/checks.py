"""Checks the boxes, labels and scores that callers pass to the metrics."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import read_boxes, read_column
from ssd.loss import FRACTIONS

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
        ValueError: the numbers of images or rows differ, a shape, label or object is not allowed, or an object has no
            boxes or labels.
        TypeError: a detection is no triple, or an object is no mapping.
    """
    if len(detections) != len(targets):
        raise ValueError(f"detections has {len(detections)} images, targets has {len(targets)}")
    for i, (detection, target) in enumerate(zip(detections, targets, strict=True)):
        if isinstance(detection, Mapping):
            raise TypeError(
                f"detections[{i}] must be (boxes, labels, scores), got {type(detection).__name__}; for those of "
                'torchvision pass [(d["boxes"], d["labels"], d["scores"]) for d in detections]'
            )
        if not isinstance(target, Mapping):
            raise TypeError(f'targets[{i}] must be a dict with "boxes" and "labels", got {type(target).__name__}')
        if missing := [name for name in ("boxes", "labels") if name not in target]:
            raise ValueError(f"targets[{i}] must have boxes and labels, and has no {' and no '.join(missing)}")
        boxes, labels = read_boxes(*detection[:2], range(n_classes), f"detections[{i}]: ")
        scores = read_column(detection[2], f"detections[{i}]: scores", len(labels)).double().numpy()
        gt_boxes, gt_labels = read_boxes(target["boxes"], target["labels"], range(1, n_classes), f"targets[{i}]: ")
        wrong = ~(gt_boxes[:, 2:] >= gt_boxes[:, :2]).all(1)  # NaN is wrong too
        if wrong.any():
            box = ", ".join(f"{side:g}" for side in gt_boxes[wrong][0].tolist())
            raise ValueError(
                f"targets[{i}]: a box must be x0, y0, x1, y1 with x1 >= x0 and y1 >= y0, got {box} (xywh?)"
            )
        difficult = target.get("difficult", torch.zeros(len(gt_labels)))
        gt_difficult = read_column(difficult, f"targets[{i}]: difficult", len(gt_labels)).bool().numpy()
        yield (boxes, labels, scores), (gt_boxes, gt_labels, gt_difficult)


def check_units(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    n_classes: int,
    *,
    in_pixels: bool = False,
) -> None:
    """Checks that detections and objects are in one unit; boxes are in pixels if most of them reach beyond FRACTIONS.

    Args:
        detections, targets, n_classes: see `read_images`.
        in_pixels: whether this unit must be pixels.

    Raises:
        ValueError: the units differ, or are not pixels; see also `read_images`.
        TypeError: see `read_images`.
    """
    found, truths = [torch.empty(0, 4)], [torch.empty(0, 4)]
    for (boxes, labels, _), (gt_boxes, _, _) in read_images(detections, targets, n_classes):
        found.append(boxes[labels > 0])  # label 0 has the box of the whole picture
        truths.append(gt_boxes)
    units = {
        name: "pixels" if boxes.amax(1).nanmedian() > FRACTIONS else "fractions of the picture"
        for name, boxes in (("detections", torch.cat(found)), ("targets", torch.cat(truths)))
        if len(boxes)
    }
    if len({*units.values(), *(["pixels"] if in_pixels else [])}) > 1:
        looks = " and ".join(f"those of {name} look like {unit}" for name, unit in units.items())
        raise ValueError(f"boxes must be in {'pixels' if in_pixels else 'one unit'}: {looks}")
