"""Box arithmetic with the names of sgrvinod's tutorial, and checks of boxes that callers pass. Boxes are (..., 4).

`xy` means the corners (x0, y0, x1, y1); `cxcy` means centre and size (cx, cy, w, h), in fractions of the image.
`gcxgcy` means offsets from a prior, with the variances 0.1 and 0.2: Liu et al., SSD: Single Shot MultiBox Detector,
equation 2.
"""

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
    """Converts corners to centres and sizes.

    Args:
        xy: (..., 4) xyxy, floating.

    Returns:
        (..., 4) cxcywh, of the same dtype.

    Examples:
        >>> import torch
        >>> from ssd.boxes import xy_to_cxcy
        >>> xy_to_cxcy(torch.tensor([[0.0, 0.0, 0.5, 0.25]]))
        tensor([[0.2500, 0.1250, 0.5000, 0.2500]])
    """
    low, high = xy.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcy_to_xy(cxcy: Tensor) -> Tensor:
    """Converts centres and sizes to corners.

    Args:
        cxcy: (..., 4) cxcywh, floating.

    Returns:
        (..., 4) xyxy, of the same dtype.

    Examples:
        >>> import torch
        >>> from ssd.boxes import cxcy_to_xy
        >>> cxcy_to_xy(torch.tensor([[0.25, 0.125, 0.5, 0.25]]))
        tensor([[0.0000, 0.0000, 0.5000, 0.2500]])
    """
    return cxcywh_to_xyxy(cxcy)


def cxcy_to_gcxgcy(cxcy: Tensor, priors_cxcy: Tensor) -> Tensor:
    """Encodes boxes as offsets from priors; `ssd_ext.encode_boxes` does this for xyxy boxes.

    Args:
        cxcy: (..., P, 4) cxcywh, with widths and heights greater than 0.
        priors_cxcy: (P, 4) cxcywh.

    Returns:
        (..., P, 4) offsets.

    Examples:
        >>> import torch
        >>> from ssd.boxes import cxcy_to_gcxgcy
        >>> prior = torch.tensor([[0.5, 0.5, 0.25, 0.25]])
        >>> cxcy_to_gcxgcy(torch.tensor([[0.75, 0.5, 0.5, 0.25]]), prior)  # one width to the right, and twice as wide
        tensor([[10.0000,  0.0000,  3.4657,  0.0000]])
    """
    centre, size = cxcy.split(2, dim=-1)
    prior_centre, prior_size = priors_cxcy.split(2, dim=-1)
    return torch.cat([(centre - prior_centre) / (prior_size / 10), torch.log(size / prior_size) * 5], dim=-1)


def gcxgcy_to_cxcy(gcxgcy: Tensor, priors_cxcy: Tensor) -> Tensor:
    """Decodes offsets from priors into boxes, the inverse of `cxcy_to_gcxgcy`; `ssd_ext.decode_boxes` returns xyxy.

    Args:
        gcxgcy: (..., P, 4) offsets.
        priors_cxcy: (P, 4) cxcywh.

    Returns:
        (..., P, 4) cxcywh.

    Examples:
        >>> import torch
        >>> from ssd.boxes import gcxgcy_to_cxcy
        >>> gcxgcy_to_cxcy(torch.tensor([[10.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.25, 0.25]]))
        tensor([[0.7500, 0.5000, 0.2500, 0.2500]])
    """
    centre, size = gcxgcy.split(2, dim=-1)
    prior_centre, prior_size = priors_cxcy.split(2, dim=-1)
    return torch.cat([centre * prior_size / 10 + prior_centre, torch.exp(size / 5) * prior_size], dim=-1)


def find_intersection(set_1: Tensor, set_2: Tensor) -> Tensor:
    """Computes the area of the intersection of each pair of boxes.

    Args:
        set_1: (N, 4) xyxy.
        set_2: (M, 4) xyxy, in the same unit.

    Returns:
        (N, M), in the unit squared; 0 without overlap.

    Examples:
        >>> import torch
        >>> from ssd.boxes import find_intersection
        >>> boxes = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2]])
        >>> find_intersection(boxes, boxes)
        tensor([[4, 2],
                [2, 4]])
    """
    low = torch.maximum(set_1[:, None, :2], set_2[None, :, :2])  # (N, M, 2)
    high = torch.minimum(set_1[:, None, 2:], set_2[None, :, 2:])  # (N, M, 2)
    return (high - low).clamp(min=0).prod(dim=2)  # (N, M)


def find_jaccard_overlap(set_1: Tensor, set_2: Tensor) -> Tensor:
    """Computes the IoU of each pair of boxes, by `ssd_ext.box_iou`.

    Args:
        set_1: (N, 4) xyxy.
        set_2: (M, 4) xyxy, in the same unit.

    Returns:
        (N, M), in 0..1. It is 0 for a box without area; the tutorial's function returns NaN there.

    Raises:
        ValueError: a shape is not (n, 4), or the devices differ.

    Examples:
        >>> import torch
        >>> from ssd.boxes import find_jaccard_overlap
        >>> boxes = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2], [1, 1, 1, 1]])
        >>> find_jaccard_overlap(boxes, boxes)
        tensor([[1.0000, 0.3333, 0.0000],
                [0.3333, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    return box_iou(set_1, set_2)


def decimate(tensor: Tensor, m: Sequence[int | None]) -> Tensor:
    """Keeps every m[d]-th entry of dimension d, beginning with the first entry.

    Args:
        tensor: any shape and dtype.
        m: for each dimension a step of at least 1, or None to keep all entries.

    Returns:
        The smaller tensor, contiguous.

    Raises:
        ValueError: the length of m is not the number of dimensions, or a step is less than 1.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 3.

    Examples:
        >>> import torch
        >>> from ssd.boxes import decimate
        >>> decimate(torch.arange(20).view(2, 10), m=[None, 4])
        tensor([[ 0,  4,  8],
                [10, 14, 18]])
    """
    if len(m) != tensor.ndim or any(step is not None and step < 1 for step in m):
        raise ValueError(f"m must hold one step >= 1 (or None) for each of {tensor.ndim} dimensions, got {m}")
    return tensor[tuple(slice(None, None, step) for step in m)].contiguous()


def read_boxes(boxes: Tensor, labels: Tensor, allowed: range, of: str = "") -> tuple[Tensor, np.ndarray]:
    """Checks boxes and their labels, and copies them to the host.

    Args:
        boxes: (k, 4), or empty in any shape.
        labels: (k,) integer.
        allowed: the labels that are valid.
        of: text that begins every error message, such as "targets[3]: ".

    Returns:
        The boxes (k, 4), in float64 so that rounding does not lift an IoU to a threshold, and the labels (k,) int64.

    Raises:
        ValueError: a shape does not fit, or a label is not allowed.

    Examples:
        >>> import torch
        >>> from ssd.boxes import read_boxes
        >>> read_boxes(torch.tensor([[0, 0, 10, 20]]), torch.tensor([2]), allowed=range(1, 3))
        (tensor([[ 0.,  0., 10., 20.]], dtype=torch.float64), array([2]))
        >>> read_boxes(torch.tensor([[0, 0, 10, 20]]), torch.tensor([3]), allowed=range(1, 3), of="targets[0]: ")
        Traceback (most recent call last):
        ValueError: targets[0]: labels must be in 1..2, got 3
    """
    boxes = torch.as_tensor(boxes).detach().cpu().double()
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)  # an empty list has shape (0,)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{of}boxes must have shape (k, 4), got {tuple(boxes.shape)}")
    numbers: np.ndarray = read_column(labels, f"{of}labels", len(boxes)).long().numpy()
    for wrong in numbers[(numbers < allowed.start) | (numbers >= allowed.stop)]:
        raise ValueError(f"{of}labels must be in {allowed.start}..{allowed.stop - 1}, got {wrong}")
    return boxes, numbers


def read_column(values: Tensor, name: str, n_boxes: int) -> Tensor:
    """Checks that there is one value for each box, and copies the values to the host.

    Args:
        values: (n_boxes,).
        name: name of the values in the error message.
        n_boxes: number of boxes.

    Returns:
        (n_boxes,) of the same dtype, on the CPU.

    Raises:
        ValueError: there are more or fewer values.

    Examples:
        >>> import torch
        >>> from ssd.boxes import read_column
        >>> read_column(torch.tensor([0.5, 0.25]), "scores", n_boxes=3)
        Traceback (most recent call last):
        ValueError: scores must have shape (3,), one for each box, got (2,)
    """
    values = torch.as_tensor(values).detach().cpu()
    if values.shape != (n_boxes,):
        raise ValueError(f"{name} must have shape ({n_boxes},), one for each box, got {tuple(values.shape)}")
    return values
