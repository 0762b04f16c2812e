"""Measures how many pictures per second a core of this machine prepares for a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

from ssd.data import BoxDataset
from ssd.data.augmentation import EvalTransform
from ssd.data.loader import SeededDataset, collate, epoch_batches
from ssd.runtime.device import one_thread

RATES = (100, 700, 1500)  # pictures/s that a network may process; a GPU trains SSD300 at 700 to 1500


class InputSpeed(NamedTuple):
    """Pictures per second of CPU time of one core. The files may come from the system's cache in memory."""

    reading: float  # whole pictures decoded
    training: float  # training samples
    evaluation: float  # evaluation samples

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
    """Measures how fast pictures of a dataset are prepared for training and evaluation, in one thread.

    Args:
        dataset: a dataset of `ssd.data.open_dataset`; it is not changed.
        augment: makes the transform of the training samples: a value of `ssd.data.AUGMENTATIONS`.
        input_size: side of the network's input in pixels.
        batch_size: pictures per batch; joining them into a batch is measured too.
        seconds: CPU time in seconds for each of the three measurements.
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

    with one_thread():
        return InputSpeed(*map(rate, (None, augment(input_size), EvalTransform(input_size))))
