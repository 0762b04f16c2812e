"""The public ops: checked arguments, then one call into the dispatcher.

Boxes are `xyxy` = (xmin, ymin, xmax, ymax) or `cxcywh` = centre and size, in one unit; for SSD fractions of the image.
Every op takes float16, bfloat16, float32 and float64 (boxes: integers too), non-contiguous tensors and empty ones,
never modifies its inputs, and gives the same bits from run to run and on every backend unless it says otherwise.
Half precision and integers are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ext import _registry  # noqa: F401  (defines torch.ops.ssd_ext)
from ssd_ext.reference import compute_dtype

_ops = torch.ops.ssd_ext

MATCHINGS = ("per_prior", "bipartite")
LOC_LOSSES = ("l1", "smooth_l1")


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    A degenerate, inverted, infinite or NaN box has IoU 0 with everything, itself included.
    Differentiable where the IoU is positive, gradient 0 elsewhere.

    Args:
        boxes1: (N, 4) xyxy, floating or integer.
        boxes2: (M, 4) xyxy, on the same device.

    Returns:
        (N, M) in [0, 1]; float64 if a box tensor is float64, else float32.

    Raises:
        ValueError: a shape is not (n, 4), or the devices differ.
    """
    _check_boxes("boxes1", boxes1)
    _check_boxes("boxes2", boxes2)
    _check_devices(boxes1=boxes1, boxes2=boxes2)
    return _ops.box_iou(*_promote(boxes1, boxes2))


def match_priors(
    boxes: Tensor, offsets: Tensor, priors_xyxy: Tensor, threshold: float = 0.5, mode: str = "per_prior"
) -> Tensor:
    """Assigns to every prior of every image an object or background; no IoU matrix is stored by the kernels.

    `per_prior`: each prior takes its best object (on equal IoU the lowest index) and is positive if that IoU is
    >= threshold; then each object whose best IoU is > 0 forces its best prior (on equal IoU the lowest index); of two
    objects that force one prior, the highest index wins.
    `bipartite`: the best remaining (object, free prior) pair of all is fixed, again and again (ties: lowest object,
    then lowest prior), until every object that overlaps a free prior has one of its own; the other priors as above.

    Args:
        boxes: (G, 4) xyxy, the objects of all images in a row; rows from offsets[B] on are padding and ignored.
        offsets: (B + 1,) int32; image i owns the rows offsets[i]:offsets[i + 1].
        priors_xyxy: (P, 4) xyxy.
        threshold: least IoU of a positive prior, in [0, 1].
        mode: "per_prior" or "bipartite".

    Returns:
        (B, P) int32: the index of the object inside its image, -1 for background. No objects: all -1.

    Raises:
        ValueError: wrong shape, dtype, device or mode; offsets (checked on CPU tensors) that fall or leave 0..G.

    Source:
        Liu et al., SSD (2016), section 2.2 "Matching strategy"; `bipartite` is the rule of its Caffe implementation.
    """
    _check_boxes("boxes", boxes)
    _check_boxes("priors_xyxy", priors_xyxy)
    _check_offsets(offsets, len(boxes))
    _check_devices(boxes=boxes, offsets=offsets, priors_xyxy=priors_xyxy)
    _check_choice("mode", mode, MATCHINGS)
    boxes, priors_xyxy = _promote(boxes, priors_xyxy)
    return _ops.match_priors(boxes, offsets, priors_xyxy, threshold, mode)


def encode_boxes(boxes: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = (0.1, 0.2)) -> Tensor:
    """Offsets of boxes relative to priors, as an SSD network predicts them; the inverse of `decode_boxes`.

    ((cx - pcx) / (pw * v0), (cy - pcy) / (ph * v0), log(w / pw) / v1, log(h / ph) / v1). Differentiable in the boxes.
    The logarithm agrees with plain PyTorch's to rounding, everything else to the bit.

    Args:
        boxes: (..., P, 4) xyxy.
        priors_cxcywh: (P, 4) cxcywh.
        variances: (of the centre, of the size).

    Returns:
        (..., P, 4); float64 if an input is float64, else float32. A box with w <= 0 or h <= 0 gives inf or NaN there.

    Raises:
        ValueError: shapes do not fit, or the devices differ.

    Source:
        Liu et al., SSD (2016), equation 2.
    """
    _check_per_prior("boxes", boxes, priors_cxcywh)
    boxes, priors_cxcywh = _promote(boxes, priors_cxcywh)
    return _ops.encode_boxes(boxes, priors_cxcywh, *_check_variances(variances))


def decode_boxes(
    pred_offsets: Tensor,
    priors_cxcywh: Tensor,
    variances: tuple[float, float] = (0.1, 0.2),
    max_log_scale: float | None = None,
) -> Tensor:
    """Boxes from predicted offsets; the inverse of `encode_boxes`. Differentiable in the offsets.

    Args:
        pred_offsets: (..., P, 4) as `encode_boxes` gives them.
        priors_cxcywh: (P, 4) cxcywh.
        variances: (of the centre, of the size).
        max_log_scale: where given, log(w / pw) and log(h / ph) are cut at this value before exp.

    Returns:
        (..., P, 4) xyxy, not clipped to the image; float64 if an input is float64, else float32.

    Raises:
        ValueError: shapes do not fit, or the devices differ.

    Source:
        Liu et al., SSD (2016), equation 2, solved for the box.
    """
    _check_per_prior("pred_offsets", pred_offsets, priors_cxcywh)
    pred_offsets, priors_cxcywh = _promote(pred_offsets, priors_cxcywh)
    return _ops.decode_boxes(pred_offsets, priors_cxcywh, *_check_variances(variances), max_log_scale)


def select_hard_negatives(loss: Tensor, positive: Tensor, ratio: float = 3, min_negatives: int = 0) -> Tensor:
    """The negatives with the largest losses, a fixed number of them per positive.

    Per image k = int(ratio * positives), or `min_negatives` if that is more, at most the number of negatives.
    Ties go to the lowest prior index; NaN counts as the largest loss, -0 equals 0.

    Args:
        loss: (B, P) floating.
        positive: (B, P) bool; these are never selected.
        ratio: negatives per positive, >= 0.
        min_negatives: least number of negatives per image.

    Returns:
        (B, P) bool.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a number is negative.

    Source:
        Liu et al., SSD (2016), section 2.2 "Hard negative mining".
    """
    if loss.dim() != 2 or not loss.is_floating_point():
        raise ValueError(f"loss must be (B, P) floating, got {_describe(loss)}")
    if positive.shape != loss.shape or positive.dtype != torch.bool:
        raise ValueError(f"positive must be {tuple(loss.shape)} bool as loss is, got {_describe(positive)}")
    _check_devices(loss=loss, positive=positive)
    _check_not_negative(ratio=ratio, min_negatives=min_negatives)
    return _ops.select_hard_negatives(loss, positive, ratio, min_negatives)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, as `torchvision.ops.nms`, with a defined order of ties.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) floating; NaN counts as the largest.
        iou_threshold: a box is dropped if its IoU with a kept one is greater.

    Returns:
        (K,) int64: indices of the kept boxes by descending score, ties by lowest index.

    Raises:
        ValueError: shapes do not fit, or the devices differ.
    """
    _check_scored_boxes(boxes, scores)
    return _ops.nms(_floating(boxes), scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` inside each group of boxes of equal `idxs`, as `torchvision.ops.batched_nms`.

    Works on groups, not on boxes shifted by their class, so that any ids, negative or huge coordinates and half
    precision are safe.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) floating; NaN counts as the largest.
        idxs: (N,) integer: group, usually the class or the (image, class) of each box.
        iou_threshold: a box is dropped if its IoU with a kept one of its group is greater.

    Returns:
        (K,) int64: indices of the kept boxes by descending score, ties by lowest index.

    Raises:
        ValueError: shapes or dtypes do not fit, or the devices differ.
    """
    _check_scored_boxes(boxes, scores)
    if idxs.shape != scores.shape or idxs.is_floating_point():
        raise ValueError(f"idxs must be ({len(scores)},) integer as scores is, got {_describe(idxs)}")
    _check_devices(boxes=boxes, idxs=idxs)
    idxs = idxs if idxs.dtype in (torch.int32, torch.int64) else idxs.long()  # the dtypes that kernels know
    return _ops.batched_nms(_floating(boxes), scores, idxs, iou_threshold)


def multibox_loss(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    priors_cxcywh: Tensor,
    *,
    threshold: float = 0.5,
    neg_pos_ratio: float = 3,
    loc_loss: str = "l1",
    matching: str = "per_prior",
    min_negatives: int = 0,
    variances: tuple[float, float] = (0.1, 0.2),
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The SSD training loss of a batch: matching, encoding, cross entropy with hard negatives, localisation.

    conf_loss = (cross entropy of the positives + of the selected hard negatives) / n_pos; a negative's mining value is
    its cross entropy against background. loc_loss `l1`: the mean of |difference| over all 4 * n_pos numbers;
    `smooth_l1`: the sum of smooth L1 (beta 1) / n_pos, the paper's form. No positives: both are 0 with zero gradients
    (with `min_negatives` the negatives count, divided by 1). Differentiable once in the predictions.
    Sums are exact to rounding: backends agree to a relative 1e-5.

    Args:
        pred_offsets: (B, P, 4) predicted offsets.
        pred_logits: (B, P, C) predicted class logits, class 0 = background.
        boxes: (G, 4) xyxy, the objects of all images in a row; rows from offsets[B] on are padding. A degenerate
            object (w <= 0, h <= 0 or not finite) matches nothing.
        labels: (G,) int64 in 1..C-1.
        offsets: (B + 1,) int32; image i owns the rows offsets[i]:offsets[i + 1].
        priors_cxcywh: (P, 4) cxcywh.
        threshold: least IoU of a positive prior.
        neg_pos_ratio: hard negatives per positive.
        loc_loss: "l1" (the tutorial's) or "smooth_l1" (the paper's).
        matching: "per_prior" or "bipartite", see `match_priors`.
        min_negatives: least number of hard negatives per image, so that images without objects can teach.
        variances: (of the centre, of the size).
        check: check the values of labels and offsets on CUDA too, at the price of a copy to the host.

    Returns:
        conf_loss, loc_loss: 0-d, float64 if a prediction is float64, else float32; n_pos: 0-d int64.

    Raises:
        ValueError: wrong shape, dtype, device or option; a label outside 1..C-1 (checked on CPU tensors).

    Source:
        Liu et al., SSD (2016), section 2.2, equations 1 to 3.
    """
    _check_predictions(pred_offsets, pred_logits, priors_cxcywh)
    _check_boxes("boxes", boxes)
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({len(boxes)},) int64, one per box, got {_describe(labels)}")
    _check_offsets(offsets, len(boxes), batch=len(pred_logits), check=check)
    _check_devices(
        pred_offsets=pred_offsets,
        pred_logits=pred_logits,
        boxes=boxes,
        labels=labels,
        offsets=offsets,
        priors_cxcywh=priors_cxcywh,
    )
    if _values_can_be_read(labels, check):
        _check_labels(labels[: int(offsets[-1])], pred_logits.shape[-1])
    _check_choice("loc_loss", loc_loss, LOC_LOSSES)
    _check_choice("matching", matching, MATCHINGS)
    _check_not_negative(neg_pos_ratio=neg_pos_ratio, min_negatives=min_negatives)
    # Boxes and priors in the dtype of the arithmetic; of the predictions only float64 needs the other one to follow.
    dtype = compute_dtype(pred_offsets, pred_logits)
    if dtype == torch.float64:
        pred_offsets, pred_logits = pred_offsets.double(), pred_logits.double()
    conf, loc, n_pos, _, _ = _ops.multibox_loss(
        pred_offsets,
        pred_logits,
        boxes.to(dtype),
        labels,
        offsets,
        priors_cxcywh.to(dtype),
        threshold,
        neg_pos_ratio,
        loc_loss,
        matching,
        min_negatives,
        *_check_variances(variances),
    )
    return conf, loc, n_pos


def postprocess_detections(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    priors_cxcywh: Tensor,
    min_score: float,
    max_overlap: float,
    top_k: int,
    pre_nms_top_k: int | None = None,
    variances: tuple[float, float] = (0.1, 0.2),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detections of a batch from a network's predictions: softmax, decoding, per-class NMS, the best of each image.

    Candidates are all (prior, class >= 1) with a score > min_score; NaN never passes. Inside a class a box is dropped
    if its IoU with a better kept one (score descending, then lowest prior) is > max_overlap. The best `top_k` of the
    image are returned (score descending, then lowest class, then lowest prior). Nothing is capped before NMS unless
    `pre_nms_top_k` is given, nothing is clipped to the image. Scores agree between backends to a relative 1e-5.

    Args:
        pred_offsets: (B, P, 4) predicted offsets, floating; computed in float32.
        pred_logits: (B, P, C) predicted class logits, class 0 = background.
        priors_cxcywh: (P, 4) cxcywh.
        min_score: candidates need a greater score.
        max_overlap: greatest IoU of two detections of one class.
        top_k: most detections per image.
        pre_nms_top_k: where given, only that many best candidates per image and class enter NMS.
        variances: (of the centre, of the size).

    Returns:
        boxes (B, top_k, 4) float32 xyxy, scores (B, top_k) float32, labels (B, top_k) int64 in 1..C-1, counts (B,)
        int32: how many are real. The rest is padding: box 0, score 0, label 0. The shapes do not depend on the data.

    Raises:
        ValueError: wrong shape, dtype, device or number.

    Source:
        Liu et al., SSD (2016), section 2.2 "Training objective" (decoding) and section 3 "Inference time".
    """
    _check_predictions(pred_offsets, pred_logits, priors_cxcywh)
    _check_devices(pred_offsets=pred_offsets, pred_logits=pred_logits, priors_cxcywh=priors_cxcywh)
    _check_not_negative(top_k=top_k)
    if pre_nms_top_k is not None:
        _check_not_negative(pre_nms_top_k=pre_nms_top_k)
    return _ops.postprocess_detections(
        pred_offsets,
        pred_logits,
        priors_cxcywh,
        min_score,
        max_overlap,
        top_k,
        pre_nms_top_k,
        *_check_variances(variances),
    )


# ------------------------------------------------------------------------------------------------------- checks


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _floating(boxes: Tensor) -> Tensor:
    """Integer boxes in float32, in which they are computed."""
    return boxes if boxes.is_floating_point() else boxes.float()


def _promote(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one floating dtype, so that kernels see a single one."""
    a, b = _floating(a), _floating(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _check_boxes(name: str, boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or boxes.is_complex() or boxes.dtype == torch.bool:
        raise ValueError(f"{name} must be (n, 4) numbers, got {_describe(boxes)}")


def _check_per_prior(name: str, values: Tensor, priors_cxcywh: Tensor) -> None:
    _check_boxes("priors_cxcywh", priors_cxcywh)
    if values.dim() < 2 or values.shape[-2:] != priors_cxcywh.shape:
        raise ValueError(f"{name} must be (..., {len(priors_cxcywh)}, 4), one row per prior, got {_describe(values)}")
    _check_devices(**{name: values}, priors_cxcywh=priors_cxcywh)


def _check_scored_boxes(boxes: Tensor, scores: Tensor) -> None:
    _check_boxes("boxes", boxes)
    if scores.shape != boxes.shape[:1] or not scores.is_floating_point():
        raise ValueError(f"scores must be ({len(boxes)},) floating, one per box, got {_describe(scores)}")
    _check_devices(boxes=boxes, scores=scores)


def _check_predictions(pred_offsets: Tensor, pred_logits: Tensor, priors_cxcywh: Tensor) -> None:
    _check_boxes("priors_cxcywh", priors_cxcywh)
    if pred_logits.dim() != 3 or not pred_logits.is_floating_point() or pred_logits.shape[2] < 1:
        raise ValueError(f"pred_logits must be (B, P, C) floating with C >= 1, got {_describe(pred_logits)}")
    expected = (*pred_logits.shape[:2], 4)
    if tuple(pred_offsets.shape) != expected or not pred_offsets.is_floating_point():
        raise ValueError(f"pred_offsets must be {expected} floating as pred_logits is, got {_describe(pred_offsets)}")
    if pred_logits.shape[1] != len(priors_cxcywh):
        raise ValueError(f"pred_logits has {pred_logits.shape[1]} priors, priors_cxcywh has {len(priors_cxcywh)}")


def _check_devices(**tensors: Tensor) -> None:
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, {first} is on {reference.device}")


def _values_can_be_read(tensor: Tensor, check: bool) -> bool:
    """On the CPU always, elsewhere (a copy to the host) when asked; never while a graph is traced."""
    return (tensor.device.type == "cpu" or check) and not torch.compiler.is_compiling()


def _check_offsets(offsets: Tensor, n_boxes: int, batch: int | None = None, check: bool = False) -> None:
    expected = "(B + 1,)" if batch is None else f"({batch + 1},)"
    if offsets.dim() != 1 or len(offsets) != (batch + 1 if batch is not None else max(1, len(offsets))):
        raise ValueError(f"offsets must be {expected} int32, got {_describe(offsets)}")
    if offsets.dtype != torch.int32:
        raise ValueError(f"offsets must be {expected} int32, got {_describe(offsets)}")
    if _values_can_be_read(offsets, check):
        rows = offsets.tolist()
        if rows[0] != 0 or rows[-1] > n_boxes or rows != sorted(rows):
            raise ValueError(f"offsets must rise from 0 to at most {n_boxes}, the number of boxes, got {rows}")


def _check_labels(labels: Tensor, n_classes: int) -> None:
    wrong = labels[(labels < 1) | (labels >= n_classes)]
    if len(wrong):
        raise ValueError(f"labels must be in 1..{n_classes - 1} (0 is background), got {int(wrong[0])}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def _check_variances(variances: tuple[float, float]) -> tuple[float, float]:
    center, size = variances
    if not (center > 0 and size > 0):
        raise ValueError(f"variances must be two positive numbers, got {variances}")
    return center, size
