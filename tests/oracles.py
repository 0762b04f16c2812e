"""The contract once more, as slow loops over single numbers: obviously right, for tests only.

Ops without exp and log are computed in numpy scalars of the compute dtype and have to be met bit for bit; the
loss is computed in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    """numpy arrays in the compute dtype: float64 if one of the tensors is float64, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.detach().cpu().to(dtype).numpy() for t in tensors]


@np.errstate(all="ignore")
def iou(a: np.ndarray, b: np.ndarray) -> np.floating:
    """IoU of two xyxy boxes."""
    zero = a.dtype.type(0)
    inter = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = (area_a + area_b) - inter
    return inter / union if inter > 0 and union > 0 else zero


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    a, b = numbers(boxes1, boxes2)
    table = np.zeros((len(a), len(b)), a.dtype)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i, j] = iou(a[i], b[j])
    return torch.from_numpy(table)


def match_priors(boxes: Tensor, offsets: Tensor, priors_xyxy: Tensor, threshold: float, mode: str) -> Tensor:
    table = box_iou(boxes, priors_xyxy).numpy()
    offsets = offsets.tolist()
    match = np.full((len(offsets) - 1, len(priors_xyxy)), -1, np.int32)
    for image in range(len(offsets) - 1):
        _match_image(table[offsets[image] : offsets[image + 1]], table.dtype.type(threshold), mode, match[image])
    return torch.from_numpy(match)


def _match_image(ious: np.ndarray, threshold: np.floating, mode: str, match: np.ndarray) -> None:
    objects, priors = range(ious.shape[0]), range(ious.shape[1])
    for prior in priors:
        best, owner = 0, -1
        for obj in objects:
            if ious[obj, prior] > best:
                best, owner = ious[obj, prior], obj
        if owner >= 0 and best >= threshold:
            match[prior] = owner
    if mode == "per_prior":
        for obj in objects:  # upwards: the highest object has the last word
            best, place = 0, -1
            for prior in priors:
                if ious[obj, prior] > best:
                    best, place = ious[obj, prior], prior
            if place >= 0:
                match[place] = obj
        return
    pairs = sorted((-ious[o, p], o, p) for o in objects for p in priors if ious[o, p] > 0)
    done, taken = set(), set()
    for _, obj, prior in pairs:
        if obj not in done and prior not in taken:
            done.add(obj)
            taken.add(prior)
            match[prior] = obj


@np.errstate(all="ignore")
def encode_boxes(boxes: Tensor, priors_cxcywh: Tensor, center_variance: float, size_variance: float) -> Tensor:
    boxes, priors = numbers(boxes, priors_cxcywh)
    t = boxes.dtype.type
    out = np.zeros_like(boxes)
    for at in np.ndindex(boxes.shape[:-1]):
        box, prior = boxes[at], priors[at[-1]]
        for i in (0, 1):
            centre = (box[i] + box[i + 2]) * t(0.5)
            out[at][i] = (centre - prior[i]) / (prior[i + 2] * t(center_variance))
            out[at][i + 2] = np.log((box[i + 2] - box[i]) / prior[i + 2]) / t(size_variance)
    return torch.from_numpy(out)


@np.errstate(all="ignore")
def decode_boxes(
    pred_offsets: Tensor,
    priors_cxcywh: Tensor,
    center_variance: float,
    size_variance: float,
    max_log_scale: float | None,
) -> Tensor:
    pred_offsets, priors = numbers(pred_offsets, priors_cxcywh)
    t = pred_offsets.dtype.type
    out = np.zeros_like(pred_offsets)
    for at in np.ndindex(pred_offsets.shape[:-1]):
        pred, prior = pred_offsets[at], priors[at[-1]]
        for i in (0, 1):
            centre = pred[i] * (prior[i + 2] * t(center_variance)) + prior[i]
            log_scale = pred[i + 2] * t(size_variance)
            if max_log_scale is not None and log_scale > t(max_log_scale):
                log_scale = t(max_log_scale)
            size = np.exp(log_scale) * prior[i + 2]
            out[at][i] = centre - size * t(0.5)
            out[at][i + 2] = centre + size * t(0.5)
    return torch.from_numpy(out)


def _descending(values: list[float], index: int) -> tuple[bool, float, int]:
    """A sort key: NaN first, then by falling value, equal ones by rising index (-0 equals 0)."""
    value = values[index]
    return (False, 0.0, index) if math.isnan(value) else (True, -value, index)


def select_hard_negatives(loss: Tensor, positive: Tensor, ratio: float, min_negatives: int) -> Tensor:
    selected = torch.zeros(positive.shape, dtype=torch.bool)
    for image, (values, is_positive) in enumerate(zip(loss.tolist(), positive.tolist(), strict=True)):
        negatives = [p for p in range(len(values)) if not is_positive[p]]
        k = max(int(ratio * sum(is_positive)), min_negatives)
        for prior in sorted(negatives, key=lambda p: _descending(values, p))[:k]:
            selected[image, prior] = True
    return selected


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    (boxes,) = numbers(boxes)
    threshold = boxes.dtype.type(iou_threshold)
    scores, idxs, kept = scores.tolist(), idxs.tolist(), []
    for i in sorted(range(len(boxes)), key=lambda i: _descending(scores, i)):
        if not any(idxs[i] == idxs[k] and iou(boxes[k], boxes[i]) > threshold for k in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), iou_threshold)


def cross_entropy(logits: list[float], label: int) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(x - largest) for x in logits)) - logits[label]


def multibox_loss(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    priors_cxcywh: Tensor,
    threshold: float,
    neg_pos_ratio: float,
    loc_loss: str,
    matching: str,
    min_negatives: int,
    center_variance: float,
    size_variance: float,
) -> tuple[float, float, int]:
    """conf_loss, loc_loss and n_pos in float64; matching in the dtype of the inputs."""
    centre, size = priors_cxcywh.split(2, dim=-1)
    match = match_priors(
        boxes, offsets, torch.cat([centre - size * 0.5, centre + size * 0.5], dim=-1), threshold, matching
    )
    logits, predicted, starts = (
        pred_logits.double().tolist(),
        pred_offsets.double().tolist(),
        offsets.tolist(),
    )
    n_images, n_priors = match.shape
    ce = torch.zeros(n_images, n_priors, dtype=torch.float64)
    conf = loc = 0.0
    for image in range(n_images):
        for prior in range(n_priors):
            matched = int(match[image, prior])
            label = int(labels[starts[image] + matched]) if matched >= 0 else 0
            ce[image, prior] = cross_entropy(logits[image][prior], label)
            if matched < 0:
                continue
            conf += float(ce[image, prior])
            box = boxes[starts[image] + matched].double()[None]
            target = encode_boxes(box, priors_cxcywh[prior].double()[None], center_variance, size_variance)
            for wanted, got in zip(target[0].tolist(), predicted[image][prior], strict=True):
                error = abs(got - wanted)
                if loc_loss == "smooth_l1":
                    error = 0.5 * error * error if error < 1 else error - 0.5
                loc += error
    conf += float(ce[select_hard_negatives(ce, match >= 0, neg_pos_ratio, min_negatives)].sum())
    n_pos = int((match >= 0).sum())
    divisor = max(1, n_pos)
    return conf / divisor, loc / (divisor if loc_loss == "smooth_l1" else 4 * divisor), n_pos


def detections(
    boxes: Tensor, scores: Tensor, min_score: float, max_overlap: float, top_k: int, pre_nms_top_k: int | None
) -> list[tuple[int, int]]:
    """(prior, class) of one image's detections, best first, from boxes (P, 4) and probabilities (P, C)."""
    boxes, scores = numbers(boxes, scores)
    found = []
    for label in range(1, scores.shape[1]):
        passing = [p for p in range(len(boxes)) if scores[p, label] > np.float32(min_score)]
        kept = []
        for prior in sorted(passing, key=lambda p: (-scores[p, label], p))[:pre_nms_top_k]:
            if not any(iou(boxes[k], boxes[prior]) > np.float32(max_overlap) for k in kept):
                kept.append(prior)
        found += [(-scores[p, label], label, p) for p in kept]
    return [(prior, label) for _, label, prior in sorted(found)[:top_k]]
