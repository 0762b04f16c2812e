"""`select_hard_negatives`: the negatives with the largest losses, from which the network learns most."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ext._checks import check_devices, check_not_negative, describe, is_floating
from ssd_ext._op import op
from ssd_ext._order import best_first

__all__ = ["select_hard_negatives"]


def select_hard_negatives(loss: Tensor, positive: Tensor, ratio: float = 3, min_negatives: int = 0) -> Tensor:
    """Selects the negatives with the largest losses, a given number per positive.

    Each image gets k = ceil(ratio * positives) of them, or `min_negatives` if that is more, at most all its negatives.
    Ties go to the lowest prior index; NaN counts as the largest loss, -0 equals 0.

    Args:
        loss: (B, P) floating, the loss of each prior.
        positive: (B, P) bool; positives are never selected.
        ratio: negatives per positive, >= 0.
        min_negatives: minimum number of negatives per image, >= 0.

    Returns:
        (B, P) bool: whether a prior is selected; empty for empty inputs.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a number is negative.

    Source:
        Liu et al., SSD (2016), section 2.2 "Hard negative mining".

    Examples:
        >>> import torch
        >>> from ssd_ext import select_hard_negatives
        >>> loss = torch.tensor([[0.9, 0.1, 0.5, 0.4]])
        >>> select_hard_negatives(loss, positive=torch.tensor([[True, False, False, False]]), ratio=2)
        tensor([[False, False,  True,  True]])
    """
    if loss.dim() != 2 or not is_floating(loss):
        raise ValueError(f"loss must be (B, P) floating, got {describe(loss)}")
    if positive.shape != loss.shape or positive.dtype != torch.bool:
        raise ValueError(f"positive must be {tuple(loss.shape)} bool to match loss, got {describe(positive)}")
    check_devices(loss=loss, positive=positive)
    check_not_negative(ratio=ratio, min_negatives=min_negatives)
    return torch.ops.ssd_ext.select_hard_negatives(loss, positive, ratio, min_negatives)


def _fake(loss: Tensor, positive: Tensor, ratio: float, min_negatives: int) -> Tensor:
    return positive.new_empty(positive.shape)


@op(fake=_fake)
def select_hard_negatives_plain(loss: Tensor, positive: Tensor, ratio: float, min_negatives: int) -> Tensor:
    n_pos = positive.sum(dim=1, keepdim=True)
    k = (n_pos.float() * ratio).ceil().double().clamp(max=loss.shape[1]).long().clamp(min=min_negatives)
    order = best_first(loss)
    negative = ~positive.gather(1, order)
    hardest = negative & (negative.cumsum(dim=1) <= k)
    return torch.zeros_like(positive).scatter(1, order, hardest)
