"""The order of scores and losses in plain PyTorch; csrc/core/order.h defines the same order for the kernels."""

from __future__ import annotations

import math

from torch import Tensor


def best_first(values: Tensor) -> Tensor:
    """Indices that sort the last dimension: NaN first, then the largest value; ties by lowest index."""
    # All NaN become the same NaN, because on a GPU PyTorch sorts a NaN by its sign.
    return values.nan_to_num(math.nan, math.inf, -math.inf).argsort(dim=-1, descending=True, stable=True)
