"""Every op side by side: schema, fake kernel (shapes and dtypes), gradient policy.

The plain-PyTorch function of the same name in `reference` is the kernel of every device that has none of its own; the
libraries in csrc/ add kernels for CPU and CUDA. The dispatcher picks: there is no `if device` anywhere.

Gradient policy: an op with a `backward` is differentiable once, in closed form; every other op is registered as not
differentiable, so that its outputs never claim to require a gradient that they cannot give.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel, register_autograd, register_fake

from ssd_ext import reference
from ssd_ext.reference import compute_dtype

_LIB = Library("ssd_ext", "DEF")

#: op name -> schema.
SCHEMAS: dict[str, str] = {}


def _define(schema: str, *, backward: Callable | None = None, setup: Callable | None = None):
    """Decorates the fake kernel of a new op: defines schema, fallback and gradient policy around it."""
    name = schema.partition("(")[0]
    SCHEMAS[name] = schema
    plain = getattr(reference, name)

    def register(fake: Callable) -> None:
        qualified = f"ssd_ext::{name}"
        _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        register_fake(qualified, fake, lib=_LIB)
        # Below a fallthrough, autograd would still record the fallback's own operations.
        _LIB.impl(name, plain if backward else torch.no_grad()(plain), "CompositeExplicitAutograd")
        if backward is None:
            _LIB.impl(name, fallthrough_kernel, "Autograd")
        else:
            register_autograd(qualified, backward, setup_context=setup or _save_inputs, lib=_LIB)

    return register


def _save_inputs(ctx, inputs, output) -> None:
    """Tensors through save_for_backward, numbers and strings as `ctx.rest`, both in the schema's order."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.rest = tuple(x for x in inputs if not isinstance(x, Tensor))


# ---------------------------------------------------------------------------------------------------- box_iou


def _box_iou_backward(ctx, grad):
    return reference.box_iou_backward(grad, *ctx.saved_tensors)


@_define("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor", backward=_box_iou_backward)
def _(boxes1, boxes2):
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]), dtype=compute_dtype(boxes1, boxes2))


# ----------------------------------------------------------------------------------------------- match_priors


@_define("match_priors(Tensor boxes, Tensor offsets, Tensor priors_xyxy, float threshold, str mode) -> Tensor")
def _(boxes, offsets, priors_xyxy, threshold, mode):
    return boxes.new_empty((offsets.shape[0] - 1, priors_xyxy.shape[0]), dtype=torch.int32)


# --------------------------------------------------------------------------------- encode_boxes, decode_boxes


def _encode_boxes_backward(ctx, grad):
    return reference.encode_boxes_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None


@_define(
    "encode_boxes(Tensor boxes, Tensor priors_cxcywh, float center_variance, float size_variance) -> Tensor",
    backward=_encode_boxes_backward,
)
def _(boxes, priors_cxcywh, center_variance, size_variance):
    return boxes.new_empty(boxes.shape, dtype=compute_dtype(boxes, priors_cxcywh))


def _decode_boxes_backward(ctx, grad):
    return reference.decode_boxes_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


@_define(
    "decode_boxes(Tensor pred_offsets, Tensor priors_cxcywh, float center_variance, float size_variance, "
    "float? max_log_scale) -> Tensor",
    backward=_decode_boxes_backward,
)
def _(pred_offsets, priors_cxcywh, center_variance, size_variance, max_log_scale):
    return pred_offsets.new_empty(pred_offsets.shape, dtype=compute_dtype(pred_offsets, priors_cxcywh))


# -------------------------------------------------------------------------------------- select_hard_negatives


@_define("select_hard_negatives(Tensor loss, Tensor positive, float ratio, int min_negatives) -> Tensor")
def _(loss, positive, ratio, min_negatives):
    return positive.new_empty(positive.shape)


# ------------------------------------------------------------------------------------------- nms, batched_nms


def _kept_indices(scores):
    kept = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty((kept,), dtype=torch.int64)


@_define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
def _(boxes, scores, iou_threshold):
    return _kept_indices(scores)


@_define("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor")
def _(boxes, scores, idxs, iou_threshold):
    return _kept_indices(scores)


# ---------------------------------------------------------------------------------------------- multibox_loss


def _no_double_backward(ctx, *grads):
    raise RuntimeError("ssd_ext.multibox_loss is differentiable once: double backward is not supported")


@_define(
    "multibox_loss_backward(Tensor grad_conf, Tensor grad_loc, Tensor pred_offsets, Tensor pred_logits, "
    "Tensor boxes, Tensor labels, Tensor offsets, Tensor priors_cxcywh, Tensor match, Tensor selected, "
    "Tensor n_pos, str loc_loss, float center_variance, float size_variance) "
    "-> (Tensor grad_offsets, Tensor grad_logits)",
    backward=_no_double_backward,
)
def _(grad_conf, grad_loc, pred_offsets, pred_logits, *rest):
    return pred_offsets.new_empty(pred_offsets.shape), pred_logits.new_empty(pred_logits.shape)


def _multibox_loss_setup(ctx, inputs, output) -> None:
    _, _, n_pos, match, selected = output
    tensors = inputs[:6]  # pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh
    ctx.save_for_backward(*tensors, match, selected, n_pos)
    ctx.rest = (inputs[8], *inputs[11:13])  # loc_loss, center_variance, size_variance


def _multibox_loss_backward(ctx, grad_conf, grad_loc, *_):
    grads = torch.ops.ssd_ext.multibox_loss_backward(grad_conf, grad_loc, *ctx.saved_tensors, *ctx.rest)
    return (*grads, *(None,) * 11)


@_define(
    "multibox_loss(Tensor pred_offsets, Tensor pred_logits, Tensor boxes, Tensor labels, Tensor offsets, "
    "Tensor priors_cxcywh, float threshold, float neg_pos_ratio, str loc_loss, str matching, int min_negatives, "
    "float center_variance, float size_variance) "
    "-> (Tensor conf_loss, Tensor loc_loss, Tensor n_pos, Tensor match, Tensor selected)",
    backward=_multibox_loss_backward,
    setup=_multibox_loss_setup,
)
def _(pred_offsets, pred_logits, *rest):
    dtype = compute_dtype(pred_offsets, pred_logits)
    shape = pred_logits.shape[:2]
    new = pred_logits.new_empty
    return (
        new((), dtype=dtype),
        new((), dtype=dtype),
        new((), dtype=torch.int64),
        new(shape, dtype=torch.int32),
        new(shape, dtype=torch.bool),
    )


# ------------------------------------------------------------------------------------- postprocess_detections


@_define(
    "postprocess_detections(Tensor pred_offsets, Tensor pred_logits, Tensor priors_cxcywh, float min_score, "
    "float max_overlap, int top_k, int? pre_nms_top_k, float center_variance, float size_variance) "
    "-> (Tensor boxes, Tensor scores, Tensor labels, Tensor counts)"
)
def _(pred_offsets, pred_logits, priors_cxcywh, min_score, max_overlap, top_k, *rest):
    batch = pred_logits.shape[0]
    new = pred_logits.new_empty
    return (
        new((batch, top_k, 4), dtype=torch.float32),
        new((batch, top_k), dtype=torch.float32),
        new((batch, top_k), dtype=torch.int64),
        new((batch,), dtype=torch.int32),
    )
