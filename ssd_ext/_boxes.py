"""Functions of boxes that several ops share: dtypes, overlap, corners."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The variances of the offsets of centres and of sizes, as in the code of the paper.
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which ops compute: float64 if a tensor is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def floating(boxes: Tensor) -> Tensor:
    """The boxes; integer boxes are converted to float32, their compute dtype (see `compute_dtype`)."""
    return boxes if boxes.is_floating_point() else boxes.float()


def promote(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in one floating dtype, because kernels take boxes of a single dtype."""
    a, b = floating(a), floating(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def rounded_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is <= threshold.

    A number of that dtype is greater than the result if and only if it is greater than the threshold.
    """
    if dtype == torch.float64 or not math.isfinite(threshold):
        return threshold
    exponent = math.frexp(threshold)[1]
    unit = math.ldexp(1.0, max(exponent, -125) - 24)  # the step from one float32 number to the next
    return math.floor(threshold / unit) * unit


def in_range(limit: float, dtype: torch.dtype) -> float:
    """The limit, clamped to the finite range of the dtype."""
    info = torch.finfo(dtype)
    return min(max(limit, info.min), info.max)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    return corners(boxes[..., :2], boxes[..., 2:])


def corners(centre: Tensor, size: Tensor) -> Tensor:
    half = size * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """IoU and union of xyxy boxes that broadcast, then width and height of their intersection."""
    ax0, ay0, ax1, ay1 = a.unbind(-1)
    bx0, by0, bx1, by1 = b.unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    inter = width * height
    union = ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0)) - inter
    # For a degenerate, inverted, infinite or NaN box, the condition is false, or the union is infinite and the quotient
    # is 0.
    iou = torch.where((inter > 0) & (union > 0), inter / union, 0)
    return iou, union, width, height
