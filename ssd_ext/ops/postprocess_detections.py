"""`postprocess_detections`: turns predictions into the objects of each image."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_ext._boxes import CENTER_VARIANCE, SIZE_VARIANCE, floating, rounded_down
from ssd_ext._checks import (
    check_devices,
    check_log_scale,
    check_options,
    check_predictions,
    choices_of,
    from_0_to_1,
    not_negative,
)
from ssd_ext._onnx import non_max_suppression
from ssd_ext._op import call, op
from ssd_ext._order import best_first
from ssd_ext.ops.box_coding import decode_boxes_plain
from ssd_ext.ops.nms import NMS_BAND, greedy, suppresses

__all__ = ["DetectionOptions", "postprocess_detections"]

# A sub-batch has as many images as fit into this many bytes of scores, and at least one.
SCORES_BYTES = 16 << 20


class DetectionOptions(NamedTuple):
    """The options of `postprocess_detections`; the defaults are those of the paper (section 3.1).

    The annotation of each field has its type and its meaning. `postprocess_detections` checks the values.

    Examples:
        >>> from ssd_ext import DetectionOptions
        >>> sure = DetectionOptions(min_score=0.5)
        >>> sure.max_overlap, sure.top_k
        (0.45, 200)
    """

    min_score: Annotated[float, "keep only detections with a score above this", from_0_to_1] = 0.01
    max_overlap: Annotated[float, "highest IoU of two detections of one class", from_0_to_1] = 0.45
    top_k: Annotated[int, "maximum number of detections per picture", not_negative] = 200
    pre_nms_top_k: Annotated[
        int | None, "maximum number of candidates for NMS per picture and class (default: all)", not_negative
    ] = None
    center_variance: Annotated[float, "see decode_boxes"] = CENTER_VARIANCE
    size_variance: Annotated[float, "see decode_boxes"] = SIZE_VARIANCE
    score: Annotated[Literal["softmax", "sigmoid"], "softmax over all classes, or sigmoid of each class"] = "softmax"
    clip: Annotated[bool, "cut boxes at the edges of the image (the square from 0 to 1) before NMS"] = False
    max_log_scale: Annotated[
        float | None,
        "upper limit for log(w / pw) and log(h / ph), where w, h are the sides of a box and pw, ph those of its prior "
        "(default: no limit)",
    ] = None


_CHOICES = choices_of(DetectionOptions)


def postprocess_detections(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    priors_cxcywh: Tensor,
    options: DetectionOptions = DetectionOptions(),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detects the objects of each image from predictions: scores, decoding, NMS per class, and the best detections.

    Candidates are all pairs of a prior and a class >= 1 with a score > min_score; NaN never passes. The candidates of a
    class are ranked by descending score, ties by lowest prior. A candidate is dropped if its IoU with a kept candidate
    of its class and of a better rank is > max_overlap. The best `top_k` of the image are returned, by descending score,
    ties by lowest class, then lowest prior. The number of candidates for NMS is unlimited unless `pre_nms_top_k` is
    given, and boxes may extend beyond the image unless `clip` is set. Scores agree between backends to a relative 1e-5.

    Args:
        pred_offsets: (B, P, 4) predicted offsets, in the form that `encode_boxes` returns, floating; computed in
            float32.
        pred_logits: (B, P, C) predicted class logits, floating, class 0 = background; computed in float32.
        priors_cxcywh: (P, 4) cxcywh, floating or integer.
        options: see `DetectionOptions`.

    Returns:
        boxes (B, top_k, 4) float32 xyxy in the unit of the priors, labels (B, top_k) int64 in 1..C-1, scores (B, top_k)
        float32 in [0, 1], counts (B,) int32: the number of detections of each image. The other rows are padding: box 0,
        label 0, score 0. The shapes do not depend on the data.

    Raises:
        ValueError: wrong shape, dtype or device, or an option is out of its range.

    Source:
        Liu et al., SSD (2016), section 2.2 "Training objective" (decoding) and section 3 "Inference time".

    Examples:
        >>> import torch
        >>> from ssd_ext import DetectionOptions, postprocess_detections
        >>> priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
        >>> logits = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]])  # background and one class; the first score is 0.95
        >>> options = DetectionOptions(min_score=0.5, top_k=2)
        >>> boxes, labels, scores, counts = postprocess_detections(torch.zeros(1, 2, 4), logits, priors, options)
        >>> boxes[0].tolist(), labels.tolist(), counts.tolist()
        ([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.0, 0.0]], [[1, 0]], [1])
    """
    check_predictions(pred_offsets, pred_logits, priors_cxcywh)
    check_devices(pred_offsets=pred_offsets, pred_logits=pred_logits, priors_cxcywh=priors_cxcywh)
    check_options(options, _CHOICES, "top_k", "pre_nms_top_k")
    check_log_scale(options.max_log_scale)
    return call("postprocess_detections", pred_offsets, pred_logits, floating(priors_cxcywh), *options)


def _is_best(scores: Tensor, n: int) -> Tensor:
    """Mask of the n largest values along the last dimension (ties: lowest index)."""
    smallest = scores.topk(min(max(n, 1), scores.shape[-1])).values[..., -1:]
    above, tied = scores > smallest, scores == smallest
    return above | (tied & (tied.cumsum(dim=-1) <= n - above.sum(dim=-1, keepdim=True)))


def _scores(pred_logits: Tensor, options: DetectionOptions) -> Tensor:
    """(B, C - 1, P)"""
    logits = pred_logits.float()
    scores = logits.sigmoid() if options.score == "sigmoid" else logits.softmax(dim=-1)
    return scores[..., 1:].transpose(1, 2)


def _detect(
    pred_offsets: Tensor, pred_logits: Tensor, priors_cxcywh: Tensor, options: DetectionOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (b, k, 4), labels (b, k) and scores (b, k) of a few images, k <= top_k; padding has label 0."""
    scores = _scores(pred_logits, options)
    passing = scores > options.min_score
    if options.pre_nms_top_k is not None:
        passing = passing & _is_best(torch.where(passing, scores, -1), options.pre_nms_top_k)
    # nonzero lists the candidates by image, class and prior, and the stable sorts keep this order for ties.
    image, label, prior = passing.nonzero(as_tuple=True)
    score = scores[image, label, prior]
    order = best_first(score)
    order = order[image[order].argsort(stable=True)]
    count = passing.sum(dim=(1, 2))
    first = count.cumsum(0) - count
    band = min(NMS_BAND, int(count.max()))
    decoding = options.center_variance, options.size_variance, options.max_log_scale
    max_overlap = rounded_down(options.max_overlap, torch.float32)
    each = torch.arange(len(scores), device=scores.device)[:, None]

    boxes, kept_scores = scores.new_zeros(len(scores), 0, 4), scores.new_zeros(len(scores), 0)
    labels = label.new_zeros(len(scores), 0)
    start = 0
    # Only better boxes of its own class can suppress a box. So all classes are walked together, best first, and
    # the walk ends as soon as every image has top_k boxes. The result equals NMS of every class followed by the
    # cut to top_k, with far less work.
    while bool((((labels > 0).sum(dim=1) < options.top_k) & (start < count)).any()):
        rank = start + torch.arange(band, device=scores.device)
        alive = rank < count[:, None]  # (b, band)
        at = order[(first[:, None] + rank).clamp(max=len(order) - 1)]
        band_boxes = decode_boxes_plain(pred_offsets[each, prior[at]], priors_cxcywh[prior[at]], *decoding)
        if options.clip:
            band_boxes = band_boxes.clamp(0, 1) + 0.0  # -0 + 0 = 0
        band_labels = label[at] + 1
        alive &= ~suppresses(boxes, labels, band_boxes, band_labels, max_overlap).any(dim=1)
        keep = greedy(suppresses(band_boxes, band_labels, band_boxes, band_labels, max_overlap), alive)

        labels = torch.cat([labels, torch.where(keep, band_labels, 0)], dim=1)
        front = (labels == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, : options.top_k]
        labels = labels[each, front]
        boxes = torch.cat([boxes, torch.where(keep[..., None], band_boxes, 0)], dim=1)[each, front]
        kept_scores = torch.cat([kept_scores, torch.where(keep, score[at], 0)], dim=1)[each, front]
        start += band
    return boxes, labels, kept_scores


def _fake(
    pred_offsets: Tensor, pred_logits: Tensor, priors_cxcywh: Tensor, options: DetectionOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = pred_logits.shape[0], options.top_k
    new = pred_logits.new_empty
    boxes, labels = new((*rows, 4), dtype=torch.float32), new(rows, dtype=torch.int64)
    return boxes, labels, new(rows, dtype=torch.float32), new(rows[:1], dtype=torch.int32)


def _in_onnx(
    pred_offsets: Tensor, pred_logits: Tensor, priors_cxcywh: Tensor, options: DetectionOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NonMaxSuppression stops after top_k detections of a class.

    This loses nothing, since an image has at most top_k detections, and it keeps the operator fast with thousands of
    candidates.
    """
    scores = _scores(pred_logits, options)
    n_priors = scores.shape[2]
    if options.pre_nms_top_k is not None:
        scores = torch.where(scores > options.min_score, scores, -torch.inf)  # no NaN
        best, prior = scores.topk(min(options.pre_nms_top_k, n_priors))
        scores = torch.full_like(scores, -torch.inf).scatter(2, prior, best)
    decoding = options.center_variance, options.size_variance, options.max_log_scale
    boxes = decode_boxes_plain(pred_offsets.float(), priors_cxcywh.float(), *decoding)
    if options.clip:
        boxes = boxes.clamp(0, 1)
    kept = non_max_suppression(boxes, scores, options.max_overlap, options.min_score, options.top_k)
    image, label, prior = kept.unbind(1)
    at = (image * scores.shape[1] + label) * n_priors + prior
    left = torch.full_like(scores, -1).flatten().scatter(0, at, scores.flatten()[at]).view(scores.shape).flatten(1)
    if left.shape[1] < options.top_k:
        left = F.pad(left, (0, options.top_k - left.shape[1]), value=-1)
    scores, at = left.topk(options.top_k)  # ties: the lowest class, then the lowest prior
    found = scores >= 0
    at = torch.where(found, at, 0)
    boxes = boxes.gather(1, (at % n_priors)[..., None].expand(-1, -1, 4))
    boxes = torch.where(found[..., None], boxes, 0)
    labels = torch.where(found, at // n_priors + 1, 0)
    return boxes, labels, torch.where(found, scores, 0), found.sum(dim=1, dtype=torch.int32)


@op(fake=_fake, onnx=_in_onnx)
def postprocess_detections_plain(
    pred_offsets: Tensor, pred_logits: Tensor, priors_cxcywh: Tensor, options: DetectionOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_images, n_priors, n_classes = pred_logits.shape
    boxes = torch.zeros(n_images, options.top_k, 4, dtype=torch.float32, device=pred_logits.device)
    scores = boxes.new_zeros(n_images, options.top_k)
    labels = boxes.new_zeros((n_images, options.top_k), dtype=torch.int64)
    if 0 not in (n_images, n_priors, n_classes - 1, options.top_k):
        step = max(1, SCORES_BYTES // (4 * n_priors * n_classes))
        for i in range(0, n_images, step):
            part = slice(i, i + step)
            found = _detect(pred_offsets[part].float(), pred_logits[part], priors_cxcywh.float(), options)
            for output, values in zip((boxes, labels, scores), found, strict=True):
                output[part, : values.shape[1]] = values
    return boxes, labels, scores, (labels > 0).sum(dim=1, dtype=torch.int32)
