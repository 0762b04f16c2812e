"""Box arithmetic under the names of the tutorial, and boxes of callers, checked; boxes are (..., 4).

`xy` is (x0, y0, x1, y1), `cxcy` centre and size, in fractions of the image. `gcxgcy` are offsets from a prior with the
variances 0.1 and 0.2: Liu et al., SSD: Single Shot MultiBox Detector, equation 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssd_ext import box_iou
from ssd_ext._boxes import cxcywh_to_xyxy

__all__ = [
    "cxcy_to_gcxgcy",
    "cxcy_to_xy",
    "decimate",
    "find_intersection",
    "find_jaccard_overlap",
    "gcxgcy_to_cxcy",
    "read_boxes",
    "read_column",
    "xy_to_cxcy",
]


def xy_to_cxcy(xy: Tensor) -> Tensor:
    """Converts (..., 4) xyxy to (..., 4) cxcywh."""
    low, high = xy.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcy_to_xy(cxcy: Tensor) -> Tensor:
    """Converts (..., 4) cxcywh to (..., 4) xyxy."""
    return cxcywh_to_xyxy(cxcy)


def cxcy_to_gcxgcy(cxcy: Tensor, priors_cxcy: Tensor) -> Tensor:
    """Encodes boxes relative to priors; `ssd_ext.encode_boxes` takes xyxy boxes.

    Args:
        cxcy: (..., P, 4) cxcywh, widths and heights more than 0.
        priors_cxcy: (P, 4) cxcywh.

    Returns:
        (..., P, 4) offsets.
    """
    centre, size = cxcy.split(2, dim=-1)
    prior_centre, prior_size = priors_cxcy.split(2, dim=-1)
    return torch.cat([(centre - prior_centre) / (prior_size / 10), torch.log(size / prior_size) * 5], dim=-1)


def gcxgcy_to_cxcy(gcxgcy: Tensor, priors_cxcy: Tensor) -> Tensor:
    """Decodes offsets, the inverse of `cxcy_to_gcxgcy`; `ssd_ext.decode_boxes` returns xyxy boxes."""
    centre, size = gcxgcy.split(2, dim=-1)
    prior_centre, prior_size = priors_cxcy.split(2, dim=-1)
    return torch.cat([centre * prior_size / 10 + prior_centre, torch.exp(size / 5) * prior_size], dim=-1)


def find_intersection(set_1: Tensor, set_2: Tensor) -> Tensor:
    """The area (N, M) that each of (N, 4) xyxy boxes shares with each of (M, 4), 0 where they do not overlap."""
    low = torch.maximum(set_1[:, None, :2], set_2[None, :, :2])  # (N, M, 2)
    high = torch.minimum(set_1[:, None, 2:], set_2[None, :, 2:])  # (N, M, 2)
    return (high - low).clamp(min=0).prod(dim=2)  # (N, M)


def find_jaccard_overlap(set_1: Tensor, set_2: Tensor) -> Tensor:
    """`ssd_ext.box_iou`: (N, M) in 0..1; 0 for a box without area, where the tutorial has NaN."""
    return box_iou(set_1, set_2)


def decimate(tensor: Tensor, m: Sequence[int | None]) -> Tensor:
    """Keeps every m[d]-th entry of dimension d, starting with the first.

    Args:
        tensor: any shape and dtype.
        m: one step of at least 1 per dimension; None keeps all entries.

    Returns:
        The smaller tensor, contiguous.

    Raises:
        ValueError: m has not one step per dimension, or a step below 1.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 3.
    """
    if len(m) != tensor.ndim or any(step is not None and step < 1 for step in m):
        raise ValueError(f"m must hold one step >= 1 (or None) for each of {tensor.ndim} dimensions, got {m}")
    return tensor[tuple(slice(None, None, step) for step in m)].contiguous()


def read_boxes(boxes: Tensor, labels: Tensor, allowed: range, of: str = "") -> tuple[Tensor, np.ndarray]:
    """Boxes (k,4) in float64, so that no IoU below a threshold is rounded up to it, and labels (k,) int64.

    A shape that does not fit and a label that is not allowed are a ValueError, whose message begins with `of`.
    """
    boxes = torch.as_tensor(boxes).detach().cpu().double()
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)  # an empty list has shape (0,)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{of}boxes must have shape (k, 4), got {tuple(boxes.shape)}")
    labels = read_column(labels, f"{of}labels", len(boxes)).long().numpy()
    for wrong in labels[(labels < allowed.start) | (labels >= allowed.stop)]:
        raise ValueError(f"{of}labels must be in {allowed.start}..{allowed.stop - 1}, got {wrong}")
    return boxes, labels


def read_column(values: Tensor, name: str, n_boxes: int) -> Tensor:
    """One value for each box; more or fewer are a ValueError."""
    values = torch.as_tensor(values).detach().cpu()
    if values.shape != (n_boxes,):
        raise ValueError(f"{name} must have shape ({n_boxes},), one for each box, got {tuple(values.shape)}")
    return values
