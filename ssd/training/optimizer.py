"""The optimiser of a run, and the course of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from ssd.training.settings import Settings


def lr_factor(step: int, total: int, schedule: str, warmup: int) -> float:
    """What the learning rate is multiplied by.

    Args:
        step: in 0..total-1.
        total: steps of the run, at least 1.
        schedule: "step", "cosine" or "onecycle", see `Settings`.
        warmup: steps in which the rate rises from 0, cut to a tenth of the run; "onecycle" has its own.
    """
    if schedule == "onecycle":  # a cosine up over the first 30 %, then a cosine down to nothing
        peak = 0.3 * total
        if step < peak:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
        return max(1e-5, (1 + math.cos(math.pi * (step - peak) / (total - peak))) / 2)
    warmup = min(warmup, total // 10)
    rise = min(1.0, (step + 1) / (warmup + 1))
    if schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / total)) / 2
    return rise * (0.1 if step >= total * 2 / 3 else 1) * (0.1 if step >= total * 5 / 6 else 1)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD with two groups of parameters.

    Args:
        model: the network, all of whose parameters are trained.
        settings: `lr`, `momentum` and `weight_decay`, which holds for all parameters.

    Returns:
        the optimiser: first the biases, whose "lr_scale" is 2, as in the tutorial, then all others, with 1.
    """
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith(".bias")]
    groups = [{"params": biases, "lr_scale": 2.0}, {"params": others, "lr_scale": 1.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
