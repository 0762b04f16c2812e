"""The one order of scores and losses in plain PyTorch; csrc/core/order.h is that of the kernels."""

from __future__ import annotations

import math

from torch import Tensor


def best_first(values: Tensor) -> Tensor:
    """Indices that sort the last dimension: largest first, NaN before all, equal ones by lowest index."""
    # On a GPU PyTorch sorts a NaN by its sign.
    return values.nan_to_num(math.nan, math.inf, -math.inf).argsort(dim=-1, descending=True, stable=True)
