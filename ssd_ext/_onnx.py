"""What ops need to be exported by torch.onnx; `ssd_ext._op.op` registers how each op is exported.

Both exporters of torch.onnx write an operator of torch named `onnx::<name>` as the ONNX operator of that name.
NonMaxSuppression is defined here as such an operator.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ssd_ext._boxes import rounded_down


def is_exporting() -> bool:
    """Whether torch.onnx exports a model in this moment. It does not import torch.onnx, which is slow to import."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def non_max_suppression(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int = 2**63 - 1
) -> Tensor:
    """ONNX's NonMaxSuppression with its result in torch's form, for models that are being exported.

    ONNX Runtime computes in float32, keeps scores > `score_threshold`, drops IoUs > `iou_threshold`, and takes the
    lowest index first if scores are equal.

    Args:
        boxes: (B, P, 4) xyxy.
        scores: (B, C, P): the score of each box for each class.
        iou_threshold: compared exactly, as in `ssd_ext.nms`.
        score_threshold: rounded to float32.
        most: maximum number of boxes per image and class.

    Returns:
        (n, 3) int64: image, class and index of each kept box.

    Raises:
        ValueError: the IoU threshold is negative or NaN, which ONNX does not allow.
    """
    if not iou_threshold >= 0:
        raise ValueError(f"the IoU threshold must be at least 0 for ONNX, got {iou_threshold}")
    low, high = boxes.float().split(2, dim=-1)
    boxes = torch.cat([low, torch.maximum(low, high)], dim=-1)  # ONNX would swap the corners of inverted boxes
    # new_full, because a constant of torch.tensor cannot be traced here.
    numbers = (rounded_down(iou_threshold, torch.float32), score_threshold)
    limits = [boxes.new_full((1,), number) for number in numbers]
    return _operator()(boxes, scores.float(), boxes.new_full((1,), most, dtype=torch.int64), *limits)


@functools.cache
def _operator() -> Callable[..., Tensor]:
    """The operator `onnx::NonMaxSuppression`; defined at the first use, because a definition takes time."""
    operator = torch.library.custom_op("onnx::NonMaxSuppression.opset11", _suppress, mutates_args=())
    operator.register_fake(_fake)
    return operator


def _suppress(boxes: Tensor, scores: Tensor, most: Tensor, iou_threshold: Tensor, score_threshold: Tensor) -> Tensor:
    """Runs when the TorchScript exporter traces a model. The graph of the model gets only the operator."""
    image, label, box = (scores > score_threshold).nonzero(as_tuple=True)
    row = image * scores.shape[1] + label
    order = torch.ops.ssd_ext.batched_nms(boxes[image, box], scores[image, label, box], row, float(iou_threshold))
    order = order[row[order].argsort(stable=True)]
    row = row[order]
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    order = order[rank < most]
    return torch.stack([image[order], label[order], box[order]], dim=1)


def _fake(boxes: Tensor, *rest: Tensor) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)
