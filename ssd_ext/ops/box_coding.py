"""`encode_boxes` and `decode_boxes`: boxes as offsets from priors, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ext._boxes import CENTER_VARIANCE, SIZE_VARIANCE, compute_dtype, corners, in_range, promote
from ssd_ext._checks import (
    check_boxes,
    check_devices,
    check_log_scale,
    check_variances,
    describe,
    is_floating,
    is_integer,
)
from ssd_ext._op import Context, call, op

__all__ = ["decode_boxes", "encode_boxes"]


def encode_boxes(
    boxes: Tensor,
    priors_cxcywh: Tensor,
    center_variance: float = CENTER_VARIANCE,
    size_variance: float = SIZE_VARIANCE,
) -> Tensor:
    """Offsets of boxes relative to priors, as an SSD network predicts them; the inverse of `decode_boxes`.

    A box (cx, cy, w, h) and a prior (pcx, pcy, pw, ph) give the offsets
    ((cx - pcx) / (pw * cv), (cy - pcy) / (ph * cv), log(w / pw) / sv, log(h / ph) / sv) with the variances cv and sv.
    Differentiable in the boxes. The logarithm agrees with plain PyTorch to rounding, everything else to the bit.

    Args:
        boxes: (..., P, 4) xyxy, floating or integer.
        priors_cxcywh: (P, 4) cxcywh, floating or integer, in the unit of the boxes.
        center_variance: cv, by which the offsets of the centre are divided, > 0.
        size_variance: sv, by which the offsets of the size are divided, > 0.

    Returns:
        (..., P, 4) offsets; float64 if an input is float64, else float32. For a box with w <= 0 or h <= 0 the offset
        of that side is infinite or NaN.

    Raises:
        ValueError: shapes or dtypes do not fit, the devices differ, or a variance is not positive.

    Source:
        Liu et al., SSD (2016), equation 2.

    Examples:
        >>> import torch
        >>> from ssd_ext import encode_boxes
        >>> prior = torch.tensor([[50, 50, 20, 20]])  # cxcywh
        >>> encode_boxes(torch.tensor([[32, 40, 72, 60]]), prior)  # 2 to the right of the prior, and twice as wide
        tensor([[1.0000, 0.0000, 3.4657, 0.0000]])
    """
    _check_per_prior("boxes", boxes, priors_cxcywh)
    boxes, priors_cxcywh = promote(boxes, priors_cxcywh)
    check_variances(center_variance, size_variance)
    return call("encode_boxes", boxes, priors_cxcywh, center_variance, size_variance)


def decode_boxes(
    pred_offsets: Tensor,
    priors_cxcywh: Tensor,
    center_variance: float = CENTER_VARIANCE,
    size_variance: float = SIZE_VARIANCE,
    max_log_scale: float | None = None,
) -> Tensor:
    """Boxes from predicted offsets; the inverse of `encode_boxes`.

    Differentiable in the offsets. exp agrees with plain PyTorch to rounding, everything else to the bit.

    Args:
        pred_offsets: (..., P, 4) offsets in the order and scale of `encode_boxes`, floating or integer.
        priors_cxcywh: (P, 4) cxcywh, floating or integer.
        center_variance: see `encode_boxes`, > 0.
        size_variance: see `encode_boxes`, > 0.
        max_log_scale: upper limit for log(w / pw) and log(h / ph), applied before exp; None: no limit.

    Returns:
        (..., P, 4) xyxy, not clipped to the image; float64 if an input is float64, else float32.

    Raises:
        ValueError: shapes or dtypes do not fit, the devices differ, a variance is not positive, or the limit is NaN.

    Source:
        Liu et al., SSD (2016), equation 2, solved for the box.

    Examples:
        >>> import torch
        >>> from ssd_ext import decode_boxes
        >>> prior = torch.tensor([[50, 50, 20, 20]])  # cxcywh
        >>> decode_boxes(torch.tensor([[1, 0, 0, 0]]), prior)  # the prior, moved by a tenth of its width
        tensor([[42., 40., 62., 60.]])
    """
    _check_per_prior("pred_offsets", pred_offsets, priors_cxcywh)
    pred_offsets, priors_cxcywh = promote(pred_offsets, priors_cxcywh)
    check_variances(center_variance, size_variance)
    check_log_scale(max_log_scale)
    return call("decode_boxes", pred_offsets, priors_cxcywh, center_variance, size_variance, max_log_scale)


def _check_per_prior(name: str, values: Tensor, priors_cxcywh: Tensor) -> None:
    check_boxes("priors_cxcywh", priors_cxcywh)
    fits = values.dim() >= 2 and values.shape[-2:] == priors_cxcywh.shape
    if not fits or not (is_floating(values) or is_integer(values)):
        raise ValueError(f"{name} must be (..., {len(priors_cxcywh)}, 4), one row per prior, got {describe(values)}")
    check_devices(**{name: values}, priors_cxcywh=priors_cxcywh)


def _fake(values: Tensor, priors_cxcywh: Tensor, *numbers: float | None) -> Tensor:
    return values.new_empty(values.shape, dtype=compute_dtype(values, priors_cxcywh))


def _encode_backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    boxes, priors_cxcywh = ctx.saved_tensors
    center_variance, size_variance = ctx.rest
    dtype = compute_dtype(boxes, priors_cxcywh)
    low, high = boxes.to(dtype).split(2, dim=-1)
    to_centre, to_size = grad.to(dtype).split(2, dim=-1)
    centre = to_centre / (priors_cxcywh.to(dtype)[..., 2:] * center_variance) * 0.5
    size = to_size / ((high - low) * size_variance)
    return torch.cat([centre - size, centre + size], dim=-1).to(boxes.dtype), None, None, None


@op(fake=_fake, backward=_encode_backward, onnx="plain")
def encode_boxes_plain(boxes: Tensor, priors_cxcywh: Tensor, center_variance: float, size_variance: float) -> Tensor:
    dtype = compute_dtype(boxes, priors_cxcywh)
    low, high = boxes.to(dtype).split(2, dim=-1)
    prior_centre, prior_size = priors_cxcywh.to(dtype).split(2, dim=-1)
    centre = ((low + high) * 0.5 - prior_centre) / (prior_size * center_variance)
    # A 0-d tensor and not a number: on CUDA, PyTorch divides by a number by multiplying with its inverse.
    size = ((high - low) / prior_size).log() / low.new_full((), size_variance)
    return torch.cat([centre, size], dim=-1)


def _decode_backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of a size is 0 where max_log_scale limits it."""
    pred_offsets, priors_cxcywh = ctx.saved_tensors
    center_variance, size_variance, max_log_scale = ctx.rest
    dtype = compute_dtype(pred_offsets, priors_cxcywh)
    prior_size = priors_cxcywh.to(dtype)[..., 2:]
    to_low, to_high = grad.to(dtype).split(2, dim=-1)
    log_scale = pred_offsets.to(dtype)[..., 2:] * size_variance
    to_shift = (to_low + to_high) * (prior_size * center_variance)
    to_scale = (to_high - to_low) * 0.5 * (log_scale.exp() * prior_size) * size_variance
    if max_log_scale is not None:
        to_scale = torch.where(log_scale > in_range(max_log_scale, dtype), 0, to_scale)
    return torch.cat([to_shift, to_scale], dim=-1).to(pred_offsets.dtype), None, None, None, None


@op(fake=_fake, backward=_decode_backward, onnx="plain")
def decode_boxes_plain(
    pred_offsets: Tensor,
    priors_cxcywh: Tensor,
    center_variance: float,
    size_variance: float,
    max_log_scale: float | None,
) -> Tensor:
    dtype = compute_dtype(pred_offsets, priors_cxcywh)
    shift, log_scale = pred_offsets.to(dtype).split(2, dim=-1)
    prior_centre, prior_size = priors_cxcywh.to(dtype).split(2, dim=-1)
    log_scale = log_scale * size_variance
    if max_log_scale is not None:
        log_scale = log_scale.clamp(max=in_range(max_log_scale, dtype))
    centre = shift * (prior_size * center_variance) + prior_centre
    return corners(centre, log_scale.exp() * prior_size)
