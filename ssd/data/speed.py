"""How many pictures a core of this machine prepares: what a network would have to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import torch

from ssd.data import BoxDataset
from ssd.data.augmentation import EvalTransform
from ssd.data.loader import SeededDataset, collate, epoch_batches

RATES = (100, 700, 1500)  # pictures/s of a network; a GPU trains SSD300 at 700 to 1500


class InputSpeed(NamedTuple):
    """Pictures a second of CPU time of one core, from files that the system may hold in memory."""

    reading: float  # decoded in full
    training: float
    evaluation: float

    def __str__(self) -> str:
        rows = {
            "reading": self.reading,
            "training samples": self.training,
            "evaluation samples": self.evaluation,
        }
        lines = [f"{name}: {rate:.0f} pictures/s" for name, rate in rows.items()]
        lines += [f"training at {n} pictures/s: {ceil(n / self.training)} cores" for n in RATES]
        return "\n".join(lines)


def measure_speed(
    dataset: BoxDataset,
    augment: Callable[[int], Callable[..., Any]],
    input_size: int,
    *,
    batch_size: int = 8,
    seconds: float = 3.0,
) -> InputSpeed:
    """Prepares pictures of a dataset as training and evaluation do, in this process and with one thread.

    Args:
        dataset: as `ssd.data.open_dataset` gives it; it is left as it is.
        augment: makes the transform of the training samples: a value of `ssd.data.AUGMENTATIONS`.
        input_size: of the network, in pixels.
        batch_size: pictures that are joined, which is measured too.
        seconds: of CPU time for each of the three.
    """

    def rate(transform: Callable[..., Any] | None) -> float:
        view = dataset.view(transform)
        samples_of = SeededDataset(view, seed=0)
        pictures, since, epoch = 0, time.process_time(), 0
        while True:
            for batch in epoch_batches(len(view), batch_size, 0, epoch):
                samples = [samples_of[epoch, index] for index in batch]
                if transform:
                    collate(samples)
                pictures += len(batch)
                if (spent := time.process_time() - since) > seconds:
                    return pictures / spent
            epoch += 1

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return InputSpeed(*map(rate, (None, augment(input_size), EvalTransform(input_size))))
    finally:
        torch.set_num_threads(before)
