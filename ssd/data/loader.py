"""Batches of a dataset: in an order and with an augmentation that depend on the seed alone."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def _seed_of(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


class SeededDataset(Dataset):
    """A view of a dataset whose random transforms depend on (seed, epoch, index) and on nothing else.

    So a sample is the same for any number of loader workers and after any interruption, and reading it leaves
    the global random state as it was. This holds for transforms that draw from PyTorch's CPU generator.

    Args:
        dataset: any map-style dataset.
        seed, epoch: any integers.
    """

    def __init__(self, dataset: Dataset, seed: int, epoch: int):
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would reseed the GPU too
            torch.random.default_generator.manual_seed(_seed_of(self.seed, self.epoch, index))
            return self.dataset[index]


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle 0..n-1 into batches in an order that depends on the arguments alone.

    Args:
        n: number of samples, at least 1.
        batch_size: samples per batch, at least 1.
        seed, epoch: any integers.

    Returns:
        list of batches, without an incomplete last one unless it is the only one; [start:] resumes an epoch.

    Raises:
        ValueError: n or batch_size is less than 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    generator = torch.Generator().manual_seed(_seed_of(seed, epoch))
    order = torch.randperm(n, generator=generator).tolist()
    batches = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    return batches[:-1] if n % batch_size and len(batches) > 1 else batches


def worker_count(workers: int | None) -> int:
    """The number of loader workers asked for; by default one per core that this process may use, at most 4."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def _ignore_interrupt(worker: int) -> None:
    """For loader workers: Ctrl-C reaches all processes, but the main one decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Stack the images of a batch and list its targets.

    Args:
        samples: B pairs of an image (3, H, W), all of one size, and a target.

    Returns:
        images (B, 3, H, W) and the B targets.
    """
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def train_loader(
    dataset: Dataset, batch_size: int, seed: int, epoch: int, start_batch: int = 0, workers: int = 0
) -> DataLoader:
    """A loader of one epoch, or of the rest of one, that gives the same batches on every run.

    Args:
        dataset: gives (image, target) with images of one size.
        batch_size: samples per batch; an incomplete last batch is left out, unless it is the only one.
        seed, epoch: any integers.
        start_batch: how many batches of the epoch to pass over.
        workers: processes that read pictures; 0 reads them in this one. Does not change the batches.

    Returns:
        loader of (images (B, 3, H, W), list of B targets).
    """
    return _loader(
        SeededDataset(dataset, seed, epoch),
        workers,
        batch_sampler=epoch_batches(len(dataset), batch_size, seed, epoch)[start_batch:],
        generator=torch.Generator(),  # a loader would otherwise advance the global one
    )


def eval_loader(dataset: Dataset, batch_size: int, workers: int | None = None) -> DataLoader:
    """A loader of a whole dataset in its order.

    Args:
        dataset: gives (image, target) with images of one size.
        batch_size: samples per batch; the last one may hold fewer.
        workers: processes that read pictures; by default one per core, at most 4.

    Returns:
        loader of (images (B, 3, H, W), list of B targets).
    """
    return _loader(dataset, worker_count(workers), batch_size=batch_size)


def _loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=_ignore_interrupt,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        **options,
    )
