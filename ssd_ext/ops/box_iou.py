"""`box_iou`: intersection over union of every pair of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ext._boxes import compute_dtype, cxcywh_to_xyxy, overlap, promote
from ssd_ext._checks import check_boxes, check_choice, check_devices, describe
from ssd_ext._op import Context, call, op

__all__ = ["box_iou"]

BACKWARD_PAIRS = 1 << 20  # pairs whose gradients are computed at once
# The op takes one image. For many small ones its calls take most of the time, so the formula is then applied to all of
# them at once. It is slower per pair: on a CPU it takes less time than one call per image if there are at least about
# 10 images of at most about 1000 pairs, and with gradients up to about 10,000 pairs.
MANY_IMAGES, SMALL, SMALL_WITH_GRADIENT = 10, 1024, 8192
SMALL_PAIRS = 1 << 16  # pairs of small images to which the formula is applied at once; more do not fit in the cache
FORMS = ("xyxy", "xywh", "cxcywh")


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union of every pair of boxes, as `torchvision.ops.box_iou`.

    A degenerate, inverted, infinite or NaN box has IoU 0 with every box, itself included.
    Differentiable where the IoU is positive; elsewhere the gradient is 0.

    Args:
        boxes1: (..., N, 4), floating or integer.
        boxes2: (..., M, 4), floating or integer, on the same device; leading dimensions broadcast.
        fmt: form of the boxes: "xyxy", "xywh" (corner and size) or "cxcywh". Rotated boxes are not supported.

    Returns:
        (..., N, M) in [0, 1]; float64 if a box tensor is float64, else float32.

    Raises:
        ValueError: a shape is not (..., n, 4), a dtype is neither floating nor integer, leading dimensions do not
            broadcast, fmt is unknown, or the devices differ.

    Source:
        Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.2 (the overlap of two
        boxes). docs/semantics.md, "IoU", has the rule.

    Examples:
        >>> import torch
        >>> from ssd_ext import box_iou
        >>> boxes = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2]])
        >>> box_iou(boxes, torch.tensor([[0, 0, 2, 2], [5, 5, 6, 6]]))
        tensor([[1.0000, 0.0000],
                [0.3333, 0.0000]])
    """
    check_choice("fmt", fmt, FORMS)
    both = {"boxes1": boxes1, "boxes2": boxes2}
    for name, boxes in both.items():
        check_boxes(name, boxes.flatten(0, -2) if boxes.dim() > 2 else boxes)
    check_devices(**both)
    boxes1, boxes2 = (_corners(boxes, fmt) for boxes in promote(boxes1, boxes2))
    if boxes1.dim() == boxes2.dim() == 2:
        return call("box_iou", boxes1, boxes2)
    try:
        batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    except RuntimeError:
        raise ValueError(f"batches do not fit: boxes1 is {describe(boxes1)}, boxes2 is {describe(boxes2)}") from None
    a, b = (boxes.expand(*batch, *boxes.shape[-2:]).flatten(0, -3) for boxes in (boxes1, boxes2))
    shape = *batch, boxes1.shape[-2], boxes2.shape[-2]
    if _is_small(a, b):
        step = max(1, SMALL_PAIRS // max(1, shape[-2] * shape[-1]))
        run = _Small.apply if _needs_gradient(a, b) else box_iou_plain
        return torch.cat([run(*part) for part in zip(a.split(step), b.split(step), strict=True)]).view(shape)
    each = [call("box_iou", *pair) for pair in zip(a, b, strict=True)]
    return torch.stack(each).view(shape) if each else boxes1.new_empty(shape, dtype=compute_dtype(boxes1))


def _needs_gradient(boxes1: Tensor, boxes2: Tensor) -> bool:
    return torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad)


def _is_small(boxes1: Tensor, boxes2: Tensor) -> bool:
    """Whether the formula for all images (B, N, 4) and (B, M, 4) at once takes less time than one call per image."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False  # in a graph only the op is sure to keep its bits, because a compiler may round the formula less
    pairs = boxes1.shape[1] * boxes2.shape[1]
    if _needs_gradient(boxes1, boxes2):
        return pairs <= SMALL_WITH_GRADIENT
    return len(boxes1) >= MANY_IMAGES and pairs <= SMALL


def _corners(boxes: Tensor, fmt: str) -> Tensor:
    if fmt == "xyxy":
        return boxes
    boxes = boxes.to(compute_dtype(boxes))  # half precision would round the corners
    return (
        cxcywh_to_xyxy(boxes) if fmt == "cxcywh" else torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)
    )


def _fake(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]), dtype=compute_dtype(boxes1, boxes2))


def _backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Takes boxes1 in parts, because each pair needs about 20 numbers."""
    boxes1, boxes2 = ctx.saved_tensors
    step = max(1, BACKWARD_PAIRS // max(1, len(boxes2)))
    parts = [_backward_of(a, boxes2, g) for a, g in zip(boxes1.split(step), grad.split(step), strict=True)]
    grads1, grads2 = zip(*parts, strict=True)
    return torch.cat(grads1).to(boxes1.dtype), sum(grads2).to(boxes2.dtype)


def _backward_of(boxes1: Tensor, boxes2: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient is 0 where the IoU is 0, and shared equally where two sides coincide.

    Args:
        boxes1, boxes2: (..., N, 4) and (..., M, 4) with the same leading dimensions.
        grad: (..., N, M).

    Returns:
        The gradients of the boxes, in the compute dtype.
    """
    dtype = compute_dtype(boxes1, boxes2)
    a, b = boxes1.to(dtype).unsqueeze(-2), boxes2.to(dtype).unsqueeze(-3)
    iou, union, width, height = overlap(a, b)
    touching = iou > 0
    # torch.where, not *: a box that overlaps nothing may have infinite or NaN sides, and its gradient has to be 0.
    per_union = torch.where(touching, grad / union, 0)
    to_inter = per_union * (1 + iou)  # the union shrinks as the intersection grows
    to_area = -per_union * iou
    to_width = torch.where(touching, to_inter * height, 0)
    to_height = torch.where(touching, to_inter * width, 0)
    columns_a, columns_b = [], []
    for i, (to_side, sign) in enumerate(((to_width, -1), (to_height, -1), (to_width, 1), (to_height, 1))):
        # The lower sides of the intersection are the larger of two coordinates, the upper sides the smaller.
        limits = (sign * a[..., i] < sign * b[..., i]).to(dtype) + (a[..., i] == b[..., i]).to(dtype) * 0.5
        columns_a.append((to_side * limits).sum(-1) * sign)
        columns_b.append((to_side * (1 - limits)).sum(-2) * sign)
    grads = []
    for boxes, columns, area in ((boxes1, columns_a, to_area.sum(-1)), (boxes2, columns_b, to_area.sum(-2))):
        x0, y0, x1, y1 = boxes.to(dtype).unbind(-1)
        by_width = torch.where(area != 0, area * (y1 - y0), 0)
        by_height = torch.where(area != 0, area * (x1 - x0), 0)
        from_area = torch.stack([-by_width, -by_height, by_width, by_height], dim=-1)
        grads.append(torch.stack(columns, dim=-1) + from_area)
    return grads[0], grads[1]


@op(fake=_fake, backward=_backward, onnx="plain")
def box_iou_plain(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    dtype = compute_dtype(boxes1, boxes2)
    return overlap(boxes1.to(dtype).unsqueeze(-2), boxes2.to(dtype).unsqueeze(-3))[0]


class _Small(torch.autograd.Function):  # type: ignore[misc]  # torch declares no types of this class
    """The formula for images (B, N, 4) and (B, M, 4), with the gradient of the op."""

    @staticmethod
    def forward(ctx: Context, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        ctx.save_for_backward(boxes1, boxes2)
        return box_iou_plain(boxes1, boxes2)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        boxes1, boxes2 = ctx.saved_tensors
        grad1, grad2 = _backward_of(boxes1, boxes2, grad)
        return grad1.to(boxes1.dtype), grad2.to(boxes2.dtype)
