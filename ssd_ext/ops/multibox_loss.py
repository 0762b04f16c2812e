"""`multibox_loss`: the training loss of SSD, from predictions and objects to two numbers."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_ext._boxes import CENTER_VARIANCE, SIZE_VARIANCE, compute_dtype, cxcywh_to_xyxy
from ssd_ext._checks import (
    check_boxes,
    check_devices,
    check_options,
    check_predictions,
    check_row_splits,
    choices_of,
    describe,
    from_0_to_1,
    is_floating,
    not_negative,
)
from ssd_ext._op import Arguments, Context, call, op
from ssd_ext.ops.box_coding import encode_boxes_plain
from ssd_ext.ops.match_priors import Matching, match_priors_plain
from ssd_ext.ops.select_hard_negatives import select_hard_negatives_plain

__all__ = ["LossOptions", "multibox_loss"]


class LossOptions(NamedTuple):
    """The options of `multibox_loss`: matching, hard negatives, form of the loss, variances.

    The annotation of each field has its type and its meaning. `multibox_loss` checks the values.

    Examples:
        >>> from ssd_ext import LossOptions
        >>> paper = LossOptions(loc_loss="smooth_l1", matching="bipartite")
        >>> paper.threshold, paper.neg_pos_ratio
        (0.5, 3.0)
    """

    threshold: Annotated[float, "lowest IoU of a positive prior", from_0_to_1] = 0.5
    neg_pos_ratio: Annotated[float, "hard negatives per positive", not_negative] = 3.0
    loc_loss: Annotated[Literal["l1", "smooth_l1"], "l1 as in the tutorial, smooth_l1 as in the paper"] = "l1"
    matching: Annotated[Matching, "per_prior as in the tutorial, bipartite as in Caffe, see match_priors"] = "per_prior"
    min_negatives: Annotated[
        int,
        "minimum number of hard negatives per picture; if it is above 0, pictures without objects contribute to the "
        "loss too",
        not_negative,
    ] = 0
    center_variance: Annotated[float, "see encode_boxes"] = CENTER_VARIANCE
    size_variance: Annotated[float, "see encode_boxes"] = SIZE_VARIANCE


_CHOICES = choices_of(LossOptions)


def multibox_loss(
    pred_offsets: Tensor,
    pred_logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    row_splits: Tensor,
    priors_cxcywh: Tensor,
    options: LossOptions = LossOptions(),
    *,
    priors_xyxy: Tensor | None = None,
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The SSD training loss of a batch: matching, encoding, cross entropy with hard negatives, localisation.

    conf_loss = (cross entropy of the positives + of the selected hard negatives) / n_pos. The hard negatives are the
    negatives with the largest cross entropy against background. loc_loss `l1` is the mean absolute difference of
    all 4 * n_pos numbers; `smooth_l1` is the sum of smooth L1 (beta 1) / n_pos, as in the paper. Without positives both
    losses are 0 and have zero gradients; with `min_negatives` the selected negatives still count, divided by 1.
    Differentiable once, in the predictions. Sums are exact to rounding: backends agree to a relative 1e-5.

    Args:
        pred_offsets: (B, P, 4) predicted offsets, in the form that `encode_boxes` returns, floating.
        pred_logits: (B, P, C) predicted class logits, floating, class 0 = background.
        boxes: (G, 4) xyxy, floating or integer, the objects of all images, one image after another; rows from
            row_splits[B] on are padding. A degenerate object (w <= 0, h <= 0 or not finite) matches nothing.
        labels: (G,) int64 in 1..C-1, the class of each object.
        row_splits: (B + 1,) int32; image i owns the rows row_splits[i]:row_splits[i + 1].
        priors_cxcywh: (P, 4) cxcywh, in the unit of the boxes.
        options: see `LossOptions`.
        priors_xyxy: (P, 4) xyxy, floating: the exact corners of the priors, for matching. Priors of one size inside an
            object have equal IoU with it up to rounding, so the last bits of the corners can decide a match. None:
            computed from `priors_cxcywh`.
        check: also check the values of labels and row_splits on CUDA; this costs a copy to the host.

    Returns:
        conf_loss, loc_loss: 0-d, >= 0 (or NaN), float64 if a prediction is float64, else float32; n_pos: 0-d int64,
        the number of positive priors of the batch.

    Raises:
        ValueError: wrong shape, dtype, device or option; a label outside 1..C-1 (checked on CPU tensors).

    Source:
        Liu et al., SSD (2016), section 2.2, equations 1 to 3.

    Examples:
        >>> import torch
        >>> from ssd_ext import multibox_loss
        >>> priors = torch.tensor([[2, 2, 4, 4], [8, 8, 4, 4]])  # cxcywh; the object below is exactly the first one
        >>> objects = torch.tensor([[0, 0, 4, 4]]), torch.tensor([1]), torch.tensor([0, 1], dtype=torch.int32)
        >>> conf_loss, loc_loss, n_pos = multibox_loss(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2), *objects, priors)
        >>> round(conf_loss.item(), 4), loc_loss.item(), n_pos.item()  # log 2 for the positive and for the negative
        (1.3863, 0.0, 1)
    """
    check_predictions(pred_offsets, pred_logits, priors_cxcywh)
    check_boxes("boxes", boxes)
    splits = check_row_splits(row_splits, len(boxes), batch=len(pred_logits), check=check)
    _check_labels(labels, len(boxes), pred_logits.shape[-1], n_labels=splits[-1] if splits else None)
    batch = Batch(pred_offsets, pred_logits, boxes, labels, row_splits, priors_cxcywh)
    check_devices(**batch._asdict(), **({} if priors_xyxy is None else {"priors_xyxy": priors_xyxy}))
    if priors_xyxy is not None and (priors_xyxy.shape != priors_cxcywh.shape or not is_floating(priors_xyxy)):
        expected = f"{tuple(priors_cxcywh.shape)} floating to match priors_cxcywh"
        raise ValueError(f"priors_xyxy must be {expected}, got {describe(priors_xyxy)}")
    check_options(options, _CHOICES, "neg_pos_ratio", "min_negatives")
    # Boxes and priors take the compute dtype. Predictions are converted only if one of them is float64.
    dtype = compute_dtype(pred_offsets, pred_logits)
    batch = batch._replace(boxes=boxes.to(dtype), priors_cxcywh=priors_cxcywh.to(dtype))
    if dtype == torch.float64:
        batch = _in_compute_dtype(batch)
    corners = None if priors_xyxy is None else priors_xyxy.to(dtype)
    conf_loss, loc_loss, n_pos, _, _ = call("multibox_loss", *batch, *options, corners)
    return conf_loss, loc_loss, n_pos


def _check_labels(labels: Tensor, n_boxes: int, n_classes: int, n_labels: int | None) -> None:
    """Checks the labels; and the values of the first n_labels of them, unless n_labels is None."""
    if labels.shape != (n_boxes,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({n_boxes},) int64, one per box, got {describe(labels)}")
    if n_labels:
        for extreme in map(int, labels[:n_labels].aminmax()):
            if not 1 <= extreme < n_classes:
                raise ValueError(f"labels must be in 1..{n_classes - 1} (0 is background), got {extreme}")


class Batch(NamedTuple):
    """The tensor arguments of `multibox_loss`, except `priors_xyxy`."""

    pred_offsets: Tensor
    pred_logits: Tensor
    boxes: Tensor
    labels: Tensor
    row_splits: Tensor
    priors_cxcywh: Tensor


class Matched(NamedTuple):
    """The results of the forward that the backward needs."""

    match: Tensor  # (B, P) int32
    selected: Tensor  # (B, P) bool, the hard negatives
    n_pos: Tensor  # () int64


def _targets(batch: Batch, match: Tensor) -> tuple[Tensor, Tensor]:
    """The box (B, P, 4) and the class (B, P) that each prior has to predict; zeros for background."""
    row = torch.where(match >= 0, batch.row_splits[:-1, None] + match, len(batch.boxes)).long()
    # On a GPU labels are not checked by default: one out of range must not become an index out of range.
    labels = F.pad(batch.labels.long().clamp(0, batch.pred_logits.shape[-1] - 1), (0, 1))
    return F.pad(batch.boxes, (0, 0, 0, 1))[row], labels[row]


def _in_compute_dtype(batch: Batch) -> Batch:
    dtype = compute_dtype(batch.pred_offsets, batch.pred_logits)
    return Batch(*(x.to(dtype) if x.is_floating_point() else x for x in batch))


def _fake_backward(
    grad_conf: Tensor, grad_loc: Tensor, batch: Batch, *rest: tuple[object, ...]
) -> tuple[Tensor, Tensor]:
    return batch.pred_offsets.new_empty(batch.pred_offsets.shape), batch.pred_logits.new_empty(batch.pred_logits.shape)


def _no_double_backward(ctx: Context, *grads: Tensor) -> None:
    raise RuntimeError("ssd_ext.multibox_loss is differentiable once: double backward is not supported")


@op(fake=_fake_backward, backward=_no_double_backward)
def multibox_loss_backward_plain(
    grad_conf: Tensor, grad_loc: Tensor, batch: Batch, matched: Matched, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Gradients in closed form for positives and hard negatives; 0 for all other priors."""
    dtypes = batch.pred_offsets.dtype, batch.pred_logits.dtype
    batch = _in_compute_dtype(batch)
    dtype, n_classes = batch.pred_logits.dtype, batch.pred_logits.shape[-1]
    true_boxes, true_classes = _targets(batch, matched.match)
    positive = matched.match >= 0
    divisor = matched.n_pos.clamp(min=1).to(dtype)

    one_hot = (true_classes[..., None] == torch.arange(n_classes, device=positive.device)).to(dtype)
    to_logits = (batch.pred_logits.softmax(dim=-1) - one_hot) * (grad_conf.to(dtype) / divisor)
    # torch.where, not *: a gradient of 0 stays 0 even if a logit or a target is not finite.
    to_logits = torch.where((positive | matched.selected)[..., None], to_logits, 0)

    variances = options.center_variance, options.size_variance
    difference = batch.pred_offsets - encode_boxes_plain(true_boxes, batch.priors_cxcywh, *variances)
    if options.loc_loss == "smooth_l1":
        slope = difference.clamp(-1, 1)
    else:
        slope, divisor = difference.sign(), divisor * 4
    to_offsets = torch.where(positive[..., None], slope * (grad_loc.to(dtype) / divisor), 0)
    return to_offsets.to(dtypes[0]), to_logits.to(dtypes[1])


def _fake(batch: Batch, options: LossOptions, priors_xyxy: Tensor | None) -> tuple[Tensor, ...]:
    dtype, shape = compute_dtype(batch.pred_offsets, batch.pred_logits), batch.pred_logits.shape[:2]
    new = batch.pred_logits.new_empty
    n_pos, match, selected = new((), dtype=torch.int64), new(shape, dtype=torch.int32), new(shape, dtype=torch.bool)
    return new((), dtype=dtype), new((), dtype=dtype), n_pos, match, selected


def _save(ctx: Context, inputs: Arguments, output: tuple[Tensor, ...]) -> None:
    n_tensors = len(Batch._fields)
    _, _, n_pos, match, selected = output
    ctx.save_for_backward(*inputs[:n_tensors], *Matched(match, selected, n_pos))
    ctx.rest = inputs[n_tensors : n_tensors + len(LossOptions._fields)]
    ctx.set_materialize_grads(False)  # otherwise every backward makes zeros of the size of match and selected


def _backward(ctx: Context, grad_conf: Tensor | None, grad_loc: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    n_inputs = len(Batch._fields) + len(LossOptions._fields) + 1  # priors_xyxy
    used = grad_loc if grad_conf is None else grad_conf
    if used is None:
        return (None,) * n_inputs
    grad_conf, grad_loc = (torch.zeros_like(used) if grad is None else grad for grad in (grad_conf, grad_loc))
    grads = torch.ops.ssd_ext.multibox_loss_backward(grad_conf, grad_loc, *ctx.saved_tensors, *ctx.rest)  # the options
    return (*grads, *(None,) * (n_inputs - len(grads)))


@op(fake=_fake, backward=_backward, save=_save)
def multibox_loss_plain(
    batch: Batch, options: LossOptions, priors_xyxy: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """conf_loss, loc_loss and n_pos, then match and selected for the backward. Sums over the batch are in float64."""
    batch = _in_compute_dtype(batch)
    dtype, priors = batch.pred_logits.dtype, batch.priors_cxcywh
    corners = cxcywh_to_xyxy(priors) if priors_xyxy is None else priors_xyxy
    match = match_priors_plain(batch.boxes, batch.row_splits, corners, options.threshold, options.matching)
    true_boxes, true_classes = _targets(batch, match)
    positive = match >= 0
    n_pos = positive.sum()
    divisor = n_pos.clamp(min=1)

    ce = F.cross_entropy(batch.pred_logits.movedim(-1, 1), true_classes, reduction="none")  # (B, P)
    selected = select_hard_negatives_plain(ce, positive, options.neg_pos_ratio, options.min_negatives)
    conf = torch.where(positive | selected, ce, 0).sum(dtype=torch.float64) / divisor

    target = encode_boxes_plain(true_boxes, priors, options.center_variance, options.size_variance)
    error = (batch.pred_offsets - target).abs()
    if options.loc_loss == "smooth_l1":
        error = torch.where(error < 1, error * error * 0.5, error - 0.5)
    else:
        divisor = divisor * 4
    loc = torch.where(positive[..., None], error, 0).sum(dtype=torch.float64) / divisor
    return conf.to(dtype), loc.to(dtype), n_pos, match, selected
