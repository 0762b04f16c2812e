"""One step of training, in bfloat16, float16 or float32, on a batch or on its parts in turn."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from ssd.data.colour import to_input
from ssd.data.loader import Batch
from ssd.loss import MultiBoxLoss
from ssd.runtime.device import autocast, place
from ssd.training.settings import Settings, resolved

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
    """Runs one step of the optimiser.

    With `settings.accumulate` the batch is divided into parts, whose gradients add up to the gradient of the whole
    batch. Only batch normalisation differs: it computes its statistics for each part.

    Args:
        model: the network on its device, or this network in DistributedDataParallel.
        criterion: the loss, on the same device; with or without `parts`.
        optimizer: the result of `make_optimizer`; its learning rates are set here.
        batch: the batch of this process, on the CPU; its images are uint8, or floating-point and normalised.
        settings: `lr`, `accumulate`, `bf16`, `fp16` and `clip_grad` are used; `lr` must not be None.
        factor: factor on the learning rate, see `lr_factor`.
        device: device of the network.
        scaler: scaler of the loss in float16.

    Returns:
        The loss before the step, 0-d on the device; of a criterion with `parts`, (3,): the loss, and both parts without
        their weights. In bfloat16 and float32 the host does not wait for the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = resolved(settings.lr) * group["lr_scale"] * factor
    parts = [part.to(device) for part in batch.parts(settings.accumulate)]
    divisor = None
    if len(parts) > 1:
        divisor = criterion.divisor(batch.boxes.to(device), batch.row_splits.to(device))
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for part in parts:
        # Outside of autocast: in bfloat16, colours would have 8 bits.
        images = place(to_input(part.images, part.colours), device)
        last = part is parts[-1]  # after the last part, the processes exchange their gradients
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with autocast(device, settings.bf16, settings.fp16):
                offsets, logits = model(images)
            found = criterion(offsets, logits, part.boxes, part.labels, part.row_splits, divisor)
            loss = found if isinstance(found, Tensor) else found[0].add(found[1], alpha=criterion.alpha)
            scaler.scale(loss).backward()
        losses.append((loss if isinstance(found, Tensor) else torch.stack([loss, *found])).detach())
    if settings.clip_grad:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
    scaler.step(optimizer)
    scaler.update()
    return torch.stack(losses).sum(0) if len(losses) > 1 else losses[0]
