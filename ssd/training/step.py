"""One step of training: the gradient of a batch, in whatever precision and in however many parts, and its use."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from ssd.data.colour import to_input
from ssd.data.loader import Batch
from ssd.loss import MultiBoxLoss
from ssd.runtime.device import autocast, place
from ssd.training.settings import Settings

UNSCALED = GradScaler("cpu", enabled=False)


def train_step(
    model: nn.Module,
    criterion: MultiBoxLoss,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: Settings,
    factor: float,
    device: torch.device,
    scaler: GradScaler = UNSCALED,
) -> Tensor:
    """One step of the optimiser.

    With `settings.accumulate` the batch runs in parts, whose gradients add up to that of the whole; only batch
    normalisation takes its statistics from each part.

    Args:
        model: the network on its device, or that network in DistributedDataParallel.
        criterion: the loss, on the same device.
        optimizer: of `make_optimizer`; its rates are set here.
        batch: on the CPU, of this process; its images are bytes, or floats that are normalised.
        settings: `lr`, `accumulate`, `bf16`, `fp16` and `clip_grad` are used.
        factor: of the learning rate, see `lr_factor`.
        device: where the network is.
        scaler: of the loss in float16.

    Returns:
        the loss before the step, 0-d on the device; in bfloat16 and float32 nothing waits for the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * group["lr_scale"] * factor
    parts = [part.to(device) for part in batch.parts(settings.accumulate)]
    divisor = None
    if len(parts) > 1:
        divisor = criterion.divisor(batch.boxes.to(device), batch.row_splits.to(device))
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for part in parts:
        images = place(to_input(part.images, part.colours), device)  # not in autocast: colours would have 8 bits
        unfinished = isinstance(model, DistributedDataParallel) and part is not parts[-1]
        with model.no_sync() if unfinished else nullcontext():
            with autocast(device, settings.bf16, settings.fp16):
                offsets, logits = model(images)
            loss = criterion(offsets, logits, part.boxes, part.labels, part.row_splits, divisor)
            scaler.scale(loss).backward()
        losses.append(loss.detach())
    if settings.clip_grad:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
    scaler.step(optimizer)
    scaler.update()
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]
