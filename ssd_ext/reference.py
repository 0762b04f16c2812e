"""Every op of the library in plain PyTorch: the fallback on any device, and what kernels are tested against.

One function per op, with the name and the argument order of its schema. Inputs are never modified; float64
is computed in float64, every other dtype in float32. Formulas are written as single + - * / max min steps
(no addcmul, no lerp, no add with alpha): a kernel that takes the same steps in the same order has to return
the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A band of candidates costs a (band, band) matrix of IoUs: large enough to hide the cost of a call, small
# enough for a cache. The chunk bounds the memory for any number of boxes: band * chunk IoUs, 16 MiB in
# float32.
_NMS_BAND = 256
_NMS_CHUNK = 16384
# Images of one detection sub-batch: as many as have this many bytes of scores together.
_DETECT_BYTES = 16 << 20


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size * 0.5, centre + size * 0.5], dim=-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """IoU and union of xyxy boxes that broadcast against each other; width and height of the intersection."""
    ax0, ay0, ax1, ay1 = a.unbind(-1)
    bx0, by0, bx1, by1 = b.unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    inter = width * height
    union = ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0)) - inter
    # A degenerate, inverted, infinite or NaN box fails the condition, or divides by infinity.
    iou = torch.where((inter > 0) & (union > 0), inter / union, 0)
    return iou, union, width, height


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every pair of boxes; 0 for a degenerate, inverted, infinite or NaN box, also with itself.

    Args:
        boxes1: (N, 4) xyxy, any float or integer dtype.
        boxes2: (M, 4) xyxy.

    Returns:
        (N, M) in [0, 1], float64 if an input is float64, else float32.
    """
    dtype = compute_dtype(boxes1, boxes2)
    return _overlap(boxes1.to(dtype)[:, None], boxes2.to(dtype))[0]


def box_iou_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `box_iou` in both inputs: 0 where the IoU is 0, shared equally where two sides coincide.

    Args:
        grad: (N, M), the gradient in the IoU.
        boxes1: (N, 4) xyxy.
        boxes2: (M, 4) xyxy.

    Returns:
        The gradients (N, 4) and (M, 4), in the dtypes of the boxes.
    """
    dtype = compute_dtype(boxes1, boxes2)
    a, b = boxes1.to(dtype)[:, None], boxes2.to(dtype)
    iou, union, width, height = _overlap(a, b)
    touching = iou > 0
    # where, not *: a box that overlaps nothing may have infinite or NaN sides, and its gradient is 0.
    per_union = torch.where(touching, grad / union, 0)
    to_inter = per_union * (1 + iou)  # the union shrinks as the intersection grows
    to_area = -per_union * iou
    to_width = torch.where(touching, to_inter * height, 0)
    to_height = torch.where(touching, to_inter * width, 0)
    columns_a, columns_b = [], []
    for i, (to_side, sign) in enumerate(((to_width, -1), (to_height, -1), (to_width, 1), (to_height, 1))):
        # The side of the intersection is the larger of the lower and the smaller of the upper coordinates.
        limits = (sign * a[..., i] < sign * b[..., i]).to(dtype) + (a[..., i] == b[..., i]).to(dtype) * 0.5
        columns_a.append((to_side * limits).sum(1) * sign)
        columns_b.append((to_side * (1 - limits)).sum(0) * sign)
    grads = []
    for boxes, columns, area in ((boxes1, columns_a, to_area.sum(1)), (boxes2, columns_b, to_area.sum(0))):
        x0, y0, x1, y1 = boxes.to(dtype).unbind(-1)
        by_width = torch.where(area != 0, area * (y1 - y0), 0)
        by_height = torch.where(area != 0, area * (x1 - x0), 0)
        from_area = torch.stack([-by_width, -by_height, by_width, by_height], dim=-1)
        grads.append((torch.stack(columns, dim=-1) + from_area).to(boxes.dtype))
    return grads[0], grads[1]


def _best_object(iou: Tensor, image: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """Of every image and prior the highest IoU (B, P), and the lowest row that has it."""
    n_objects, n_priors = iou.shape
    index = image[:, None].expand_as(iou)
    row = torch.arange(n_objects, device=iou.device)[:, None]
    best = iou.new_zeros(n_images, n_priors).scatter_reduce(0, index, iou, "amax")
    tied = torch.where(iou == best[image], row, n_objects)
    first = tied.new_full((n_images, n_priors), n_objects).scatter_reduce(0, index, tied, "amin")
    return best, first


def match_priors(boxes: Tensor, offsets: Tensor, priors_xyxy: Tensor, threshold: float, mode: str) -> Tensor:
    """Gives every prior of every image its object, or background.

    1. A prior takes the object with the highest IoU (ties: the lowest object) if that IoU is >= threshold.
    2. An object then forces its best prior (ties: the lowest prior), whatever the IoU.
    3. Of two objects that force one prior the highest wins.

    With mode "bipartite" the highest IoU of all (object, free prior) pairs fixes that pair, again and again,
    until every object with an overlapping free prior has one of its own (ties: the lowest object, then the
    lowest prior); this replaces 2 and 3. A match always has IoU > 0, whatever the threshold: a degenerate
    object matches nothing.

    Args:
        boxes: (G, 4) xyxy, the objects of all images packed one after another.
        offsets: (B + 1,) int32; image i owns the rows offsets[i]:offsets[i + 1], rows past offsets[B] are
            padding.
        priors_xyxy: (P, 4) xyxy, in the units of the boxes.
        threshold: IoU.
        mode: "per_prior" or "bipartite".

    Returns:
        (B, P) int32, the index of the object within its image, -1 for background.

    Source: SSD (arXiv 1512.02325), section 2.2, "Matching strategy".
    """
    n_images, n_objects, n_priors = len(offsets) - 1, len(boxes), len(priors_xyxy)
    if 0 in (n_images, n_objects, n_priors):
        return torch.full((n_images, n_priors), -1, dtype=torch.int32, device=boxes.device)
    row = torch.arange(n_objects, device=boxes.device)
    image = torch.bucketize(row, offsets.long(), right=True) - 1
    image = torch.where(image < 0, n_images, image)  # padding belongs to one image more, the last
    iou = box_iou(boxes, priors_xyxy)
    best, first = _best_object(iou, image, n_images + 1)
    match = torch.where((best >= threshold) & (best > 0), first, -1)

    forced = match.new_full(((n_images + 1) * n_priors,), -1)
    free = iou
    while True:
        best, prior = free.max(dim=1)  # the first index of several
        claims = best > 0
        if mode == "bipartite":
            # A pair that is the best of its object and of its prior comes before all that could take either
            # from it, so all such pairs are fixed at once. The best pair of all is always one of them.
            claims &= _best_object(free, image, n_images + 1)[1][image, prior] == row
        # amax and not an assignment: which of two writes to one place survives would be undefined.
        forced = forced.scatter_reduce(0, image * n_priors + prior, torch.where(claims, row, -1), "amax")
        if mode != "bipartite" or not claims.any():
            break
        taken = (forced >= 0).view(n_images + 1, n_priors)
        free = free.masked_fill(claims[:, None] | taken[image], 0)
    forced = forced.view(n_images + 1, n_priors)
    match = torch.where(forced >= 0, forced, match)[:n_images]
    return torch.where(match >= 0, match - offsets[:-1, None], -1).to(torch.int32)


def encode_boxes(boxes: Tensor, priors_cxcywh: Tensor, center_variance: float, size_variance: float) -> Tensor:
    """Offsets of boxes from priors.

    gx = (cx - pcx) / (pw * cv), gw = log(w / pw) / sv, y and h alike, with cx = (x0 + x1) * 0.5 and
    w = x1 - x0, in this order; cv and sv are rounded to the compute dtype first.

    Args:
        boxes: (..., P, 4) xyxy.
        priors_cxcywh: (P, 4), in the units of the boxes.
        center_variance: cv.
        size_variance: sv.

    Returns:
        (..., P, 4), float64 if an input is float64, else float32; not finite for a box without positive area.

    Source: SSD (arXiv 1512.02325), equation 2, with the variances of its published code.
    """
    dtype = compute_dtype(boxes, priors_cxcywh)
    low, high = boxes.to(dtype).split(2, dim=-1)
    prior_centre, prior_size = priors_cxcywh.to(dtype).split(2, dim=-1)
    centre = ((low + high) * 0.5 - prior_centre) / (prior_size * center_variance)
    # A 0-d tensor and not a number: on CUDA PyTorch divides by a number as a multiplication with its inverse.
    size = ((high - low) / prior_size).log() / low.new_full((), size_variance)
    return torch.cat([centre, size], dim=-1)


def encode_boxes_backward(
    grad: Tensor, boxes: Tensor, priors_cxcywh: Tensor, center_variance: float, size_variance: float
) -> Tensor:
    """Gradient of `encode_boxes` in the boxes.

    Args:
        grad: (..., P, 4), the gradient in the offsets.
        boxes: (..., P, 4) xyxy.
        priors_cxcywh: (P, 4).
        center_variance: cv.
        size_variance: sv.

    Returns:
        (..., P, 4), in the dtype of the boxes.
    """
    dtype = compute_dtype(boxes, priors_cxcywh)
    low, high = boxes.to(dtype).split(2, dim=-1)
    to_centre, to_size = grad.to(dtype).split(2, dim=-1)
    centre = to_centre / (priors_cxcywh.to(dtype)[..., 2:] * center_variance) * 0.5
    size = to_size / ((high - low) * size_variance)
    return torch.cat([centre - size, centre + size], dim=-1).to(boxes.dtype)


def decode_boxes(
    pred_offsets: Tensor,
    priors_cxcywh: Tensor,
    center_variance: float,
    size_variance: float,
    max_log_scale: float | None,
) -> Tensor:
    """Boxes from offsets and priors, the inverse of `encode_boxes`.

    cx = gx * (pw * cv) + pcx, w = exp(gw * sv) * pw, x0 = cx - w * 0.5, x1 = cx + w * 0.5, in this order;
    cv and sv are rounded to the compute dtype first.

    Args:
        pred_offsets: (..., P, 4).
        priors_cxcywh: (P, 4).
        center_variance: cv.
        size_variance: sv.
        max_log_scale: upper limit of gw * sv and gh * sv, so that exp cannot overflow; None for no limit.

    Returns:
        (..., P, 4) xyxy in the units of the priors, not clipped; float64 if an input is float64, else
        float32.

    Source: SSD (arXiv 1512.02325), equation 2 solved for the box.
    """
    dtype = compute_dtype(pred_offsets, priors_cxcywh)
    shift, log_scale = pred_offsets.to(dtype).split(2, dim=-1)
    prior_centre, prior_size = priors_cxcywh.to(dtype).split(2, dim=-1)
    log_scale = log_scale * size_variance
    if max_log_scale is not None:
        log_scale = log_scale.clamp(max=max_log_scale)
    centre = shift * (prior_size * center_variance) + prior_centre
    return _cxcywh_to_xyxy(torch.cat([centre, log_scale.exp() * prior_size], dim=-1))


def decode_boxes_backward(
    grad: Tensor,
    pred_offsets: Tensor,
    priors_cxcywh: Tensor,
    center_variance: float,
    size_variance: float,
    max_log_scale: float | None,
) -> Tensor:
    """Gradient of `decode_boxes` in the offsets; 0 in a size that max_log_scale limits.

    Args:
        grad: (..., P, 4), the gradient in the boxes.
        pred_offsets: (..., P, 4).
        priors_cxcywh: (P, 4).
        center_variance: cv.
        size_variance: sv.
        max_log_scale: as in `decode_boxes`.

    Returns:
        (..., P, 4), in the dtype of pred_offsets.
    """
    dtype = compute_dtype(pred_offsets, priors_cxcywh)
    prior_size = priors_cxcywh.to(dtype)[..., 2:]
    to_low, to_high = grad.to(dtype).split(2, dim=-1)
    log_scale = pred_offsets.to(dtype)[..., 2:] * size_variance
    to_shift = (to_low + to_high) * (prior_size * center_variance)
    to_scale = (to_high - to_low) * 0.5 * (log_scale.exp() * prior_size) * size_variance
    if max_log_scale is not None:
        to_scale = torch.where(log_scale > max_log_scale, 0, to_scale)
    return torch.cat([to_shift, to_scale], dim=-1).to(pred_offsets.dtype)


def select_hard_negatives(loss: Tensor, positive: Tensor, ratio: float, min_negatives: int) -> Tensor:
    """Of every image the k negatives with the largest losses.

    k = min(max(int(ratio * n_pos), min_negatives), n_neg), counted in the image. Ties go to the lowest
    prior, NaN is the largest loss, -0 equals 0.

    Args:
        loss: (B, P).
        positive: (B, P) bool.
        ratio: negatives for each positive; the product is computed in float64 and truncated.
        min_negatives: the least k, also for an image without positives.

    Returns:
        (B, P) bool.

    Source: SSD (arXiv 1512.02325), section 2.2, "Hard negative mining".
    """
    n_pos = positive.sum(dim=1, keepdim=True)
    k = (n_pos.double() * ratio).clamp(max=loss.shape[1]).long().clamp(min=min_negatives)
    order = loss.sort(dim=1, descending=True, stable=True).indices
    negative = ~positive.gather(1, order)
    hardest = negative & (negative.cumsum(dim=1) <= k)
    return torch.zeros_like(positive).scatter(1, order, hardest)


def _suppresses(boxes1: Tensor, idxs1: Tensor, boxes2: Tensor, idxs2: Tensor, iou_threshold: float) -> Tensor:
    """(..., N, M) bool: box n, if kept, suppresses box m."""
    iou = _overlap(boxes1[..., :, None, :], boxes2[..., None, :, :])[0]
    return (idxs1[..., :, None] == idxs2[..., None, :]) & (iou > iou_threshold)


def _greedy(suppresses: Tensor, alive: Tensor) -> Tensor:
    """(..., N) bool: which boxes, best first, greedy NMS keeps, given who suppresses whom and who takes part.

    A box is kept if no kept box before it suppresses it. Applied to all boxes at once, this rule settles the
    first box, then all that depend on the first only, and so on; once nothing changes, all are settled.
    """
    suppresses = suppresses.triu(diagonal=1)
    keep, before = alive, None
    while before is None or not torch.equal(keep, before):
        before = keep
        keep = alive & ~(suppresses & before[..., :, None]).any(dim=-2)
    return keep


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: a box goes if its IoU with a kept box before it is > iou_threshold.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,); a NaN is the highest score.
        iou_threshold: IoU.

    Returns:
        (K,) int64, the kept boxes by descending score (ties: the lowest index).
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression among the boxes of one class each.

    Args:
        boxes: (N, 4) xyxy, any coordinates.
        scores: (N,); a NaN is the highest score.
        idxs: (N,), the class of each box, any integers.
        iou_threshold: IoU.

    Returns:
        (K,) int64, the kept boxes of all classes by descending score (ties: the lowest index).
    """
    best_first = scores.argsort(descending=True, stable=True)
    # Class after class, so that a band concerns only the rest of its last class: linear in the classes.
    order = best_first[idxs[best_first].argsort(stable=True)]
    boxes, idxs = boxes.to(compute_dtype(boxes))[order], idxs[order]
    ends = torch.searchsorted(idxs, idxs, right=True)  # where the class of each box ends
    alive = torch.ones_like(idxs, dtype=torch.bool)
    for start in range(0, len(order), _NMS_BAND):
        band = slice(start, start + _NMS_BAND)
        suppresses = _suppresses(boxes[band], idxs[band], boxes[band], idxs[band], iou_threshold)
        alive[band] = _greedy(suppresses, alive[band])
        kept = start + alive[band].nonzero()[:, 0]
        end = int(ends[band][-1])
        for chunk_start in range(start + _NMS_BAND, end, _NMS_CHUNK):
            rest = slice(chunk_start, min(chunk_start + _NMS_CHUNK, end))
            suppressed = _suppresses(boxes[kept], idxs[kept], boxes[rest], idxs[rest], iou_threshold)
            alive[rest] &= ~suppressed.any(dim=0)
    keep = torch.zeros_like(alive)
    keep[order[alive]] = True
    return best_first[keep[best_first]]


def _targets(boxes: Tensor, labels: Tensor, offsets: Tensor, match: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """The box (B, P, 4) and the class (B, P) that each prior has to predict; zeros for background."""
    row = torch.where(match >= 0, offsets[:-1, None] + match, len(boxes)).long()
    # On a GPU nobody has checked the labels: one out of range may not become an index out of range.
    labels = F.pad(labels.long().clamp(0, n_classes - 1), (0, 1))
    return F.pad(boxes, (0, 0, 0, 1))[row], labels[row]


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both parts of the SSD loss of a batch.

    conf_loss: cross entropy of the positives and of the selected hard negatives, summed, / n_pos. Negatives
    are selected by their cross entropy against background. loc_loss of the positives: "l1" is the mean of
    |difference| over all 4 * n_pos numbers; "smooth_l1" is the paper's sum of smooth L1 (beta 1) over all of
    them / n_pos. n_pos counts the whole batch, and a divisor of 0 is taken as 1: without positives both
    parts are exactly 0, unless min_negatives lets images of pure background teach.

    Everything, boxes and priors too, is computed in float64 if a prediction is float64, else in float32; the
    sums over the batch in float64.

    Args:
        pred_offsets: (B, P, 4), predicted offsets.
        pred_logits: (B, P, C), predicted logits, class 0 is background.
        boxes: (G, 4) xyxy, the objects of all images packed one after another, in the units of the priors.
        labels: (G,) int in 1..C-1.
        offsets: (B + 1,) int32, see `match_priors`.
        priors_cxcywh: (P, 4).
        threshold: IoU from which a prior is positive.
        neg_pos_ratio: hard negatives for each positive.
        loc_loss: "l1" or "smooth_l1".
        matching: the mode of `match_priors`.
        min_negatives: hard negatives that every image has at least.
        center_variance: see `encode_boxes`.
        size_variance: see `encode_boxes`.

    Returns:
        conf_loss and loc_loss, 0-d, float64 or float32; n_pos, 0-d int64; for the backward match (B, P)
        int32 and selected (B, P) bool, the hard negatives.

    Source: SSD (arXiv 1512.02325), equations 1 to 3.
    """
    dtype = compute_dtype(pred_offsets, pred_logits)
    boxes, priors_cxcywh = boxes.to(dtype), priors_cxcywh.to(dtype)
    match = match_priors(boxes, offsets, _cxcywh_to_xyxy(priors_cxcywh), threshold, matching)
    true_boxes, true_classes = _targets(boxes, labels, offsets, match, pred_logits.shape[-1])
    positive = match >= 0
    n_pos = positive.sum()
    divisor = n_pos.clamp(min=1)

    ce = F.cross_entropy(pred_logits.to(dtype).movedim(-1, 1), true_classes, reduction="none")  # (B, P)
    selected = select_hard_negatives(ce, positive, neg_pos_ratio, min_negatives)
    conf = torch.where(positive | selected, ce, 0).sum(dtype=torch.float64) / divisor

    target = encode_boxes(true_boxes, priors_cxcywh, center_variance, size_variance)
    error = (pred_offsets.to(dtype) - target).abs()
    if loc_loss == "smooth_l1":
        error = torch.where(error < 1, error * error * 0.5, error - 0.5)
    else:
        divisor = divisor * 4
    loc = torch.where(positive[..., None], error, 0).sum(dtype=torch.float64) / divisor
    return conf.to(dtype), loc.to(dtype), n_pos, match, selected


def multibox_loss_backward(
    grad_conf: Tensor,
    grad_loc: Tensor,
    pred_offsets: Tensor,
    pred_logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    priors_cxcywh: Tensor,
    match: Tensor,
    selected: Tensor,
    n_pos: Tensor,
    loc_loss: str,
    center_variance: float,
    size_variance: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `multibox_loss` in closed form, for the priors that count; 0 for all others.

    Args:
        grad_conf: 0-d, the gradient in conf_loss.
        grad_loc: 0-d, the gradient in loc_loss.
        pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh: as in `multibox_loss`.
        match, selected, n_pos: what `multibox_loss` returned.
        loc_loss, center_variance, size_variance: as in `multibox_loss`.

    Returns:
        The gradients in pred_offsets (B, P, 4) and pred_logits (B, P, C), in their dtypes.
    """
    dtype = compute_dtype(pred_offsets, pred_logits)
    n_classes = pred_logits.shape[-1]
    true_boxes, true_classes = _targets(boxes.to(dtype), labels, offsets, match, n_classes)
    positive = match >= 0
    divisor = n_pos.clamp(min=1).to(dtype)

    one_hot = (true_classes[..., None] == torch.arange(n_classes, device=match.device)).to(dtype)
    to_logits = (pred_logits.to(dtype).softmax(dim=-1) - one_hot) * (grad_conf.to(dtype) / divisor)
    # where, not *: a gradient of 0 stays 0 next to a logit or a target that is not finite.
    to_logits = torch.where((positive | selected)[..., None], to_logits, 0)

    target = encode_boxes(true_boxes, priors_cxcywh.to(dtype), center_variance, size_variance)
    difference = pred_offsets.to(dtype) - target
    if loc_loss == "smooth_l1":
        slope = difference.clamp(-1, 1)
    else:
        slope, divisor = difference.sign(), divisor * 4
    to_offsets = torch.where(positive[..., None], slope * (grad_loc.to(dtype) / divisor), 0)
    return to_offsets.to(pred_offsets.dtype), to_logits.to(pred_logits.dtype)


def _is_best(scores: Tensor, n: int) -> Tensor:
    """Mask of the n largest of the last dimension (ties: the lowest index)."""
    smallest = scores.topk(min(max(n, 1), scores.shape[-1])).values[..., -1:]
    above, tied = scores > smallest, scores == smallest
    return above | (tied & (tied.cumsum(dim=-1) <= n - above.sum(dim=-1, keepdim=True)))


def _detect(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    priors_cxcywh: Tensor,
    min_score: float,
    max_overlap: float,
    top_k: int,
    pre_nms_top_k: int | None,
    center_variance: float,
    size_variance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (b, k, 4), scores (b, k) and labels (b, k) of a few images, k <= top_k; label 0 fills up."""
    scores = pred_logits.float().softmax(dim=-1)[..., 1:].transpose(1, 2)  # (b, C - 1, P)
    passing = scores > min_score
    if pre_nms_top_k is not None:
        passing = passing & _is_best(torch.where(passing, scores, -1), pre_nms_top_k)
    # In the order of image, class and prior: the stable sorts break ties by it.
    image, label, prior = passing.nonzero(as_tuple=True)
    score = scores[image, label, prior]
    order = score.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    count = passing.sum(dim=(1, 2))
    first = count.cumsum(0) - count
    band = min(_NMS_BAND, int(count.max()))
    each = torch.arange(len(scores), device=scores.device)[:, None]

    boxes, kept_scores = scores.new_zeros(len(scores), 0, 4), scores.new_zeros(len(scores), 0)
    labels = label.new_zeros(len(scores), 0)
    start = 0
    # Only better boxes of its own class decide over a box, so all classes are walked together, best first,
    # and the walk ends as soon as every image has its top_k: this equals NMS of every class followed by the
    # cut, and is far less work.
    while bool((((labels > 0).sum(dim=1) < top_k) & (start < count)).any()):
        rank = start + torch.arange(band, device=scores.device)
        alive = rank < count[:, None]  # (b, band)
        at = order[(first[:, None] + rank).clamp(max=len(order) - 1)]
        band_boxes = decode_boxes(
            pred_offsets[each, prior[at]], priors_cxcywh[prior[at]], center_variance, size_variance, None
        )
        band_labels = label[at] + 1
        alive &= ~_suppresses(boxes, labels, band_boxes, band_labels, max_overlap).any(dim=1)
        keep = _greedy(_suppresses(band_boxes, band_labels, band_boxes, band_labels, max_overlap), alive)

        labels = torch.cat([labels, torch.where(keep, band_labels, 0)], dim=1)
        front = (labels == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :top_k]
        labels = labels[each, front]
        boxes = torch.cat([boxes, torch.where(keep[..., None], band_boxes, 0)], dim=1)[each, front]
        kept_scores = torch.cat([kept_scores, torch.where(keep, score[at], 0)], dim=1)[each, front]
        start += band
    return boxes, kept_scores, labels


def postprocess_detections(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    priors_cxcywh: Tensor,
    min_score: float,
    max_overlap: float,
    top_k: int,
    pre_nms_top_k: int | None,
    center_variance: float,
    size_variance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detections of a batch: softmax, threshold, decoding, greedy NMS in each class, the best of each image.

    A candidate is a prior and a class c >= 1 with score > min_score (a NaN is none). It goes if its IoU with
    a kept, better one of its class is > max_overlap. The order everywhere is: score descending, class
    ascending, prior ascending. All inputs are computed in float32, float64 too.

    Args:
        pred_offsets: (B, P, 4), predicted offsets.
        pred_logits: (B, P, C), predicted logits, class 0 is background.
        priors_cxcywh: (P, 4).
        min_score: probability.
        max_overlap: IoU.
        top_k: K, the most detections of an image.
        pre_nms_top_k: the most candidates of a class of an image, the best ones; None for no limit.
        center_variance: see `encode_boxes`.
        size_variance: see `encode_boxes`.

    Returns:
        boxes (B, K, 4) float32 xyxy in the units of the priors, not clipped; scores (B, K) float32; labels
        (B, K) int64; counts (B,) int32. What lies past the count of an image is 0.

    Source: SSD (arXiv 1512.02325), section 3.1 (inference: 0.01, 0.45 and 200).
    """
    n_images, n_priors, n_classes = pred_logits.shape
    boxes = torch.zeros(n_images, top_k, 4, device=pred_logits.device)
    scores = boxes.new_zeros(n_images, top_k)
    labels = boxes.new_zeros((n_images, top_k), dtype=torch.int64)
    if 0 not in (n_images, n_priors, n_classes - 1, top_k):
        settings = min_score, max_overlap, top_k, pre_nms_top_k, center_variance, size_variance
        step = max(1, _DETECT_BYTES // (4 * n_priors * n_classes))
        for i in range(0, n_images, step):
            part = slice(i, i + step)
            found = _detect(pred_offsets[part].float(), pred_logits[part], priors_cxcywh.float(), *settings)
            for output, values in zip((boxes, scores, labels), found, strict=True):
                output[part, : values.shape[1]] = values
    return boxes, scores, labels, (labels > 0).sum(dim=1, dtype=torch.int32)
