"""Other ways than NMS to merge detections of one object: Soft-NMS and weighted box fusion, in plain PyTorch.

docs/semantics.md has the rules. They are functions for your own programs; `ssd.Detector` uses NMS, and weighted box
fusion with `flip`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ssd.detection import Found
from ssd_ext import box_iou

__all__ = ["soft_nms", "weighted_box_fusion"]

Decay = Literal["gaussian", "linear"]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    *,
    method: Decay = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS: lowers the scores of boxes that overlap a better box, instead of dropping these boxes.

    The time grows with the square of the number of boxes.

    Args:
        boxes: (N, 4) xyxy, floating or integer.
        scores: (N,) floating, at least 0.
        idxs: (N,) integer, such as labels; only boxes of equal numbers lower each other's scores. None: all boxes do.
        method: "gaussian" multiplies a score by exp(-IoU^2 / sigma), "linear" by 1 - IoU if the IoU is above
            `iou_threshold`.
        sigma: of "gaussian", above 0.
        iou_threshold: of "linear", in 0..1.
        min_score: boxes are returned if their new score is above this; at least 0.

    Returns:
        keep (K,) int64, the indices of the boxes by descending new score, and their new scores (K,), of the dtype of
        `scores`. Ties: the lowest index comes first. A box with a NaN score is not returned.

    Raises:
        ValueError: a shape, dtype or number is not allowed, or the devices differ.

    Source: Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, 2017.

    Examples:
        >>> import torch
        >>> from ssd import soft_nms
        >>> boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
        >>> keep, scores = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="linear")
        >>> keep.tolist(), [round(score, 3) for score in scores.tolist()]  # the first two have an IoU of 0.68
        ([0, 2, 1], [0.9, 0.7, 0.255])
    """
    if method not in get_args(Decay):
        raise ValueError(f"method must be one of {', '.join(get_args(Decay))}, got {method!r}")
    if not (sigma > 0 and 0 <= iou_threshold <= 1 and min_score >= 0):
        raise ValueError(
            "sigma must be above 0, iou_threshold from 0 to 1 and min_score at least 0, "
            f"got {sigma}, {iou_threshold} and {min_score}"
        )
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating, got {scores.dtype}")
    for name, column in (("scores", scores), ("idxs", scores if idxs is None else idxs)):
        _check_column(name, column, boxes)
    left = scores.detach().nan_to_num(nan=0.0)  # 0 for boxes that were visited
    keep, new = [], []
    for _ in range(len(left)):
        best = int(left.argmax())
        if not left[best] > min_score:
            break
        keep.append(best)
        new.append(left[best].clone())
        iou = box_iou(boxes[best : best + 1], boxes)[0].to(left.dtype)
        factor = torch.exp(-(iou**2) / sigma) if method == "gaussian" else torch.where(iou > iou_threshold, 1 - iou, 1)
        left *= factor if idxs is None else torch.where(idxs == idxs[best], factor, 1)
        left[best] = 0
    return torch.tensor(keep, dtype=torch.int64, device=boxes.device), torch.stack(new) if new else left[:0]


def weighted_box_fusion(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    min_score: float = 0.0,
) -> Found:
    """Weighted box fusion: joins the detections of several detectors in one picture.

    Detections of one class at one place become one, with the mean of their boxes, weighted by their scores. An object
    that only some of the detectors have found gets a lower score.

    Args:
        detections: for each of the M detectors, at least one, (boxes (k, 4) xyxy, labels (k,) integer, scores (k,) in
            0..1), all in the same unit, such as pixels of the picture.
        weights: M numbers above 0, by which scores are multiplied; None: all are 1.
        iou_threshold: boxes are joined if their IoU is above this; in 0..1.
        min_score: detections whose score is not above this are left out; at least 0.

    Returns:
        The n objects by descending score, with boxes (n, 4) and scores (n,) in float32 and labels (n,) int64, on the
        device of the first detector's boxes. Ties: the object with the better first detection comes first.

    Raises:
        ValueError: there is no detector; a shape or number is not allowed.

    Source: Solovyev et al., Weighted boxes fusion: Ensembling boxes from different object detection models, 2021.

    Examples:
        >>> import torch
        >>> from ssd import weighted_box_fusion
        >>> first = torch.tensor([[0, 0, 10, 10], [40, 40, 50, 50]]), torch.tensor([1, 1]), torch.tensor([0.5, 0.5])
        >>> second = torch.tensor([[0, 0, 12, 10]]), torch.tensor([1]), torch.tensor([0.5])
        >>> found = weighted_box_fusion([first, second])
        >>> found.boxes.tolist(), found.scores.tolist()  # only one detector has found the second object
        ([[0.0, 0.0, 11.0, 10.0], [40.0, 40.0, 50.0, 50.0]], [0.5, 0.25])
    """
    if not detections:
        raise ValueError("detections must have those of at least one detector")
    factors = [1.0] * len(detections) if weights is None else list(weights)
    if len(factors) != len(detections) or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"weights must be {len(detections)} numbers above 0, one for each detector, got {factors}")
    if not (0 <= iou_threshold <= 1 and min_score >= 0):
        raise ValueError(
            f"iou_threshold must be from 0 to 1 and min_score at least 0, got {iou_threshold} and {min_score}"
        )
    for i, (boxes, labels, scores) in enumerate(detections):
        _check_column(f"detections[{i}]: labels", labels, boxes)
        _check_column(f"detections[{i}]: scores", scores, boxes)
    device = detections[0][0].device
    columns = [torch.cat([column.detach().cpu() for column in each]) for each in zip(*detections, strict=True)]
    boxes, labels, scores = columns[0].double(), columns[1].long(), columns[2].double()
    weight = torch.tensor(factors, dtype=torch.float64).repeat_interleave(torch.tensor([len(d[1]) for d in detections]))
    kept = (scores > min_score) & boxes.isfinite().all(1)
    weighted = (scores * weight)[kept]
    order = weighted.sort(descending=True, stable=True).indices
    boxes, labels, weighted = boxes[kept][order], labels[kept][order], weighted[order]
    group = torch.empty_like(labels)  # for each box the first box of its object
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        group[rows] = rows[_joined(boxes[rows], weighted[rows], iou_threshold)]
    first, object_of, counts = group.unique(return_inverse=True, return_counts=True)
    totals = weighted.new_zeros(len(first)).index_add_(0, object_of, weighted)
    sums = boxes.new_zeros(len(first), 4).index_add_(0, object_of, weighted[:, None] * boxes)
    new = totals / counts * counts.clamp(max=len(factors)) / sum(factors)
    best = new.sort(descending=True, stable=True).indices
    fused = sums / totals[:, None]
    return Found(fused[best].float().to(device), labels[first][best].to(device), new[best].float().to(device))


def _joined(boxes: Tensor, weights: Tensor, iou_threshold: float) -> Tensor:
    """Returns for each of n boxes of one class, best first, the index of the first box of its object, (n,) int64."""
    fused, sums = boxes.clone(), torch.zeros(len(boxes), 5, dtype=boxes.dtype)  # of each object
    terms = torch.cat([weights[:, None] * boxes, weights[:, None]], 1)
    firsts: list[int] = []
    group = []
    for i in range(len(boxes)):
        best, k = box_iou(boxes[i : i + 1], fused[: len(firsts)])[0].max(0) if firsts else (-1, 0)
        if not best > iou_threshold:
            k = len(firsts)
            firsts.append(i)
        sums[k] += terms[i]
        fused[k] = sums[k, :4] / sums[k, 4]
        group.append(firsts[k])
    return torch.tensor(group, dtype=torch.int64)


def _check_column(name: str, values: Tensor, boxes: Tensor) -> None:
    """Raises ValueError unless there is one value for each of the boxes (n, 4)."""
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name.rpartition(' ')[0]} boxes must be (n, 4), got {tuple(boxes.shape)}".strip())
    if values.shape != boxes.shape[:1]:
        raise ValueError(f"{name} must be ({len(boxes)},), one for each box, got {tuple(values.shape)}")
