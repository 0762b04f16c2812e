"""The optimiser of a run, and the schedule of its learning rate."""

import math

import torch
from torch import nn

from ssd.networks import Network
from ssd.training.settings import Schedule, Settings, resolved

# Devices on which AdamW updates all parameters in one call. With hundreds of small tensors, as in `ssdlite`, it then
# takes a fifth of the time on a CPU. SGD does not: if float16 overflows in its first step, torch's fused kernel goes on
# with a momentum that nothing has initialised.
FUSED = ("cpu", "cuda")


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


def make_optimizer(model: Network, settings: Settings) -> torch.optim.SGD | torch.optim.AdamW:
    """Creates the optimiser, with a group of parameters for each learning rate.

    With SGD, biases learn at twice the rate of the other parameters, as in the tutorial. The rate of the backbone is
    multiplied by `lr_backbone`, that of its biases too.

    Args:
        model: the network. Parameters that require no gradient are left out.
        settings: `optimizer`, `lr`, `weight_decay` (which must not be None), `lr_backbone` and `momentum` are used. The
            weight decay applies to all parameters of the optimiser.

    Returns:
        The optimiser. Each group has a "lr_scale", by which `train_step` multiplies the learning rate. SGD's
        first two groups have "lr_scale" 2 (biases) and 1, and AdamW's first group has 1. Others are of the backbone.

    Source: for AdamW, Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.
    """
    slow = {id(p) for stage in model.stages() for p in stage} if settings.lr_backbone != 1 else set()
    bias_scale = 2.0 if settings.optimizer == "sgd" else 1.0
    groups: dict[float, list[nn.Parameter]] = {bias_scale: [], 1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = bias_scale if name.endswith(".bias") else 1.0
            scale *= settings.lr_backbone if id(parameter) in slow else 1.0
            groups.setdefault(scale, []).append(parameter)
    scaled = [{"params": parameters, "lr_scale": scale} for scale, parameters in groups.items()]
    common = {"lr": resolved(settings.lr), "weight_decay": resolved(settings.weight_decay)}
    if settings.optimizer == "adamw":
        fused = all(parameter.device.type in FUSED for parameter in model.parameters())
        return torch.optim.AdamW(scaled, betas=(settings.momentum, 0.999), fused=fused, **common)
    return torch.optim.SGD(scaled, momentum=settings.momentum, **common)
