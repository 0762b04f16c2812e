"""`nms` and `batched_nms`: greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ext._boxes import compute_dtype, floating, overlap, rounded_down
from ssd_ext._checks import check_boxes, check_devices, describe, is_floating, is_integer
from ssd_ext._onnx import non_max_suppression
from ssd_ext._op import call, op
from ssd_ext._order import best_first

__all__ = ["batched_nms", "nms"]

# A band of candidates needs a (band, band) matrix of IoUs. The band is large enough to hide the cost of calling each
# PyTorch operation, and small enough for the matrix to fit into a cache. The chunk bounds the memory for any number of
# boxes: band * chunk IoUs are 16 MiB in float32.
NMS_BAND = 256
NMS_CHUNK = 16384


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, as `torchvision.ops.nms`, with a defined order of ties.

    Args:
        boxes: (N, 4) xyxy, floating or integer.
        scores: (N,) floating; NaN counts as the largest score.
        iou_threshold: a box is dropped if its IoU with a better kept box is greater. The IoU is compared with the
            threshold as given, in float64 (docs/semantics.md).

    Returns:
        (K,) int64: indices of the kept boxes by descending score, ties by lowest index; empty without boxes.

    Raises:
        ValueError: shapes or dtypes do not fit, or the devices differ.

    Source:
        Liu et al., SSD (2016), section 3 "Inference time". docs/semantics.md, "NMS", has the rule.

    Examples:
        >>> import torch
        >>> from ssd_ext import nms
        >>> boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)  # the IoU of the first two is 0.68
        tensor([1, 2])
    """
    _check_scored_boxes(boxes, scores)
    return call("nms", floating(boxes), scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` within each group of boxes with equal `idxs`, as `torchvision.ops.batched_nms`.

    Boxes are not shifted by their group, so half precision, all ids, and negative or huge coordinates are safe.

    Args:
        boxes: see `nms`; an empty tensor of any shape has no boxes.
        scores: see `nms`; may be None without boxes.
        idxs: (N,) integer, bool or floating: the group of each box, usually its class or its (image, class). Floating
            numbers belong to one group if they are equal.
        iou_threshold: see `nms`.

    Returns:
        (K,) int64: indices of the kept boxes of all groups, in the order of `nms`.

    Raises:
        ValueError: shapes or dtypes do not fit, or the devices differ.

    Examples:
        >>> import torch
        >>> from ssd_ext import batched_nms
        >>> boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
        >>> scores, classes = torch.tensor([0.8, 0.9, 0.7]), torch.tensor([1, 1, 2])
        >>> batched_nms(boxes, scores, classes, iou_threshold=0.5)
        tensor([1, 2])
    """
    if (boxes.dim() != 2 or scores is None) and boxes.numel() == 0:  # as torchvision's own test calls it
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    _check_scored_boxes(boxes, scores)
    if idxs.shape != scores.shape or not (is_integer(idxs) or is_floating(idxs) or idxs.dtype == torch.bool):
        raise ValueError(
            f"idxs must be ({len(scores)},) integer, bool or floating to match scores, got {describe(idxs)}"
        )
    check_devices(boxes=boxes, idxs=idxs)
    if is_floating(idxs):
        idxs = (idxs if idxs.dtype == torch.float64 else idxs.float()) + 0.0  # -0 + 0 = 0
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # ONNX has no view of bits as another dtype
            idxs = idxs.unique(return_inverse=True)[1]
        else:  # equal numbers have equal bits
            idxs = idxs.view(torch.int64 if idxs.dtype == torch.float64 else torch.int32)
    idxs = idxs if idxs.dtype in (torch.int32, torch.int64) else idxs.long()  # the dtypes that kernels take
    return call("batched_nms", floating(boxes), scores, idxs, iou_threshold)


def _check_scored_boxes(boxes: Tensor, scores: Tensor) -> None:
    check_boxes("boxes", boxes)
    if scores.shape != boxes.shape[:1] or not is_floating(scores):
        raise ValueError(f"scores must be ({len(boxes)},) floating, one per box, got {describe(scores)}")
    check_devices(boxes=boxes, scores=scores)


def suppresses(boxes1: Tensor, idxs1: Tensor, boxes2: Tensor, idxs2: Tensor, iou_threshold: float) -> Tensor:
    """(..., N, M) bool: box n, if kept, suppresses box m. The threshold has to be `rounded_down` to their dtype."""
    iou = overlap(boxes1[..., :, None, :], boxes2[..., None, :, :])[0]
    return (idxs1[..., :, None] == idxs2[..., None, :]) & (iou > iou_threshold)


def greedy(suppresses: Tensor, alive: Tensor) -> Tensor:
    """(..., N) bool: which boxes greedy NMS keeps; the boxes are sorted, best first.

    suppresses (..., N, N) says whether one box suppresses another, alive (..., N) which boxes take part. A box is kept
    if it takes part and no kept box before it suppresses it. Each pass applies this rule to all boxes at once: the
    first pass settles the first box, the next pass the boxes that depend on settled boxes only, and so on. When a pass
    changes nothing, all boxes are settled.
    """
    suppresses = suppresses.triu(diagonal=1)
    keep, before = alive, None
    while before is None or not torch.equal(keep, before):
        before = keep
        keep = alive & ~(suppresses & before[..., :, None]).any(dim=-2)
    return keep


def _fake(boxes: Tensor, scores: Tensor, *rest: Tensor | float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty((kept,), dtype=torch.int64)


def _nms_in_onnx(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _batched_nms_in_onnx(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def _batched_nms_in_onnx(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Every group becomes a class of NonMaxSuppression. Scores become ranks, so that the order is that of the sort."""
    order = (scores if scores.dtype == torch.float64 else scores.float()).sort(descending=True).indices
    idxs = idxs.long()  # of the integers, ONNX Runtime's Unique takes only this dtype
    rank = torch.arange(order.shape[0], 0, -1, device=order.device).float()
    rank_in_group = torch.where(idxs.unique()[:, None] == idxs[order], rank, 0)
    kept = non_max_suppression(boxes[order][None], rank_in_group[None], iou_threshold, 0)[:, 2]
    return order[kept.sort().values]


@op(fake=_fake, onnx=_nms_in_onnx)
def nms_plain(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return batched_nms_plain(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


@op(fake=_fake, onnx=_batched_nms_in_onnx)
def batched_nms_plain(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    by_score = best_first(scores)
    # Sorted by class, so that a band is compared only with the rest of its last class. With a fixed number of boxes per
    # class, the time is linear in the number of classes.
    order = by_score[idxs[by_score].argsort(stable=True)]
    boxes, idxs = boxes.to(compute_dtype(boxes))[order], idxs[order]
    iou_threshold = rounded_down(iou_threshold, boxes.dtype)
    ends = torch.searchsorted(idxs, idxs, right=True)  # where the class of each box ends
    alive = torch.ones_like(idxs, dtype=torch.bool)
    for start in range(0, len(order), NMS_BAND):
        band = slice(start, start + NMS_BAND)
        within = suppresses(boxes[band], idxs[band], boxes[band], idxs[band], iou_threshold)
        alive[band] = greedy(within, alive[band])
        kept = start + alive[band].nonzero()[:, 0]
        end = int(ends[band][-1])
        for chunk_start in range(start + NMS_BAND, end, NMS_CHUNK):
            rest = slice(chunk_start, min(chunk_start + NMS_CHUNK, end))
            suppressed = suppresses(boxes[kept], idxs[kept], boxes[rest], idxs[rest], iou_threshold)
            alive[rest] &= ~suppressed.any(dim=0)
    keep = torch.zeros_like(alive)
    keep[order[alive]] = True
    return by_score[keep[by_score]]
