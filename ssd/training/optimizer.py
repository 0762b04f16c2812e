"""The optimiser of a run, and the schedule of its learning rate."""

import math

import torch
from torch import nn

from ssd.training.settings import Schedule, Settings, resolved


def lr_factor(step: int, total: int, schedule: Schedule, warmup: int) -> float:
    """Returns the factor by which the learning rate is multiplied in a step.

    Args:
        step: number of the step, in 0..total-1.
        total: number of steps of the run, at least 1.
        schedule: see `Settings`.
        warmup: number of steps in which the rate rises from 0, at most a tenth of the run. "onecycle" does not use it.

    Returns:
        The factor, in 0..1.
    """
    if schedule == "onecycle":  # rises by a cosine from 0.04 over the first 30 %, then falls by a cosine to 1e-5
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
    """Creates SGD with two groups of parameters: biases learn at twice the rate of the others, as in the tutorial.

    Args:
        model: the network; all of its parameters are trained.
        settings: `lr`, which must not be None, `momentum` and `weight_decay` are used. The weight decay applies to all
            parameters.

    Returns:
        The optimiser. Its first group has the biases, with "lr_scale" 2; its second group has the other parameters,
        with "lr_scale" 1. `train_step` multiplies the learning rate by "lr_scale".
    """
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith(".bias")]
    groups = [{"params": biases, "lr_scale": 2.0}, {"params": others, "lr_scale": 1.0}]
    return torch.optim.SGD(
        groups, lr=resolved(settings.lr), momentum=settings.momentum, weight_decay=settings.weight_decay
    )
