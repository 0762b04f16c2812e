"""Boxes with their labels and scores, as callers hand them over: read onto the host and checked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
