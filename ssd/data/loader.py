"""Batches of a dataset: in an order and with an augmentation that depend on the seed alone."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from ssd.loss import pack_targets
from ssd.runtime.packed import Packed
from ssd.runtime.processes import ALONE, Ranks


class Batch(NamedTuple):
    """B samples; their G objects lie in a row, as the loss takes them."""

    images: Tensor  # (B, 3, S, S), bytes, or float where a transform gives these
    colours: Tensor | None  # (B, 3, 4), see `ssd.data.colour.to_input`; None without changes
    boxes: Tensor  # (G, 4) float32 xyxy, fractions of the image
    labels: Tensor  # (G,) int64
    difficult: Tensor  # (G,) bool
    row_splits: Tensor  # (B + 1,) int32, rows of each image

    def to(self, device: torch.device) -> Batch:
        """On the device, by copies that the host does not wait for where memory is pinned, as that of a loader is."""
        return Batch(*(None if column is None else column.to(device, non_blocking=True) for column in self))

    def targets(self) -> Packed[dict[str, Tensor]]:
        """A copy of the objects of each image: "boxes", "labels" and "difficult".

        A view would keep the memory that a worker shares, and its open files, as long as the targets are kept.
        """
        columns = {name: getattr(self, name).clone() for name in ("boxes", "labels", "difficult")}
        return Packed(columns, self.row_splits.long())

    def parts(self, n: int) -> list[Batch]:
        """The batch in n parts of neighbouring samples, in numbers that differ by 1 at most."""
        if n == 1:
            return [self]
        rows = self.row_splits.tolist()
        parts = []
        for start, end in pairwise(len(self.images) * i // n for i in range(n + 1)):
            samples, objects = slice(start, end), slice(rows[start], rows[end])
            colours = None if self.colours is None else self.colours[samples]
            columns = self.boxes[objects], self.labels[objects], self.difficult[objects]
            parts.append(Batch(self.images[samples], colours, *columns, self.row_splits[start : end + 1] - rows[start]))
        return parts


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Batch:
    """Joins samples of images (3, S, S) of one size; in a worker, straight into the memory that it shares."""
    images, targets = zip(*samples, strict=True)
    boxes = [t["boxes"].reshape(-1, 4) for t in targets]  # an empty list has the shape (0,)
    boxes, labels, row_splits = pack_targets(boxes, [t["labels"] for t in targets], images[0].device)
    difficult = torch.cat([t.get("difficult", t["labels"] < 0) for t in targets])
    colours = [t["colour"] for t in targets if "colour" in t]
    # The colours of a pixel lie together, as decoders leave them: to part them takes a device less time than a worker.
    rows = [image.permute(1, 2, 0).contiguous() for image in images]
    try:
        rows = default_collate(rows)
    except RuntimeError:  # no shared memory is left
        rows = torch.stack(rows)
    return Batch(
        rows.permute(0, 3, 1, 2), torch.stack(colours) if colours else None, boxes, labels, difficult, row_splits
    )


def _seed_of(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


class SeededDataset(Dataset):
    """A view of a dataset whose random transforms depend on (seed, epoch, index) and on nothing else.

    So a sample is the same for any number of loader workers and after any interruption, and reading it leaves
    the global random state as it was. This holds for transforms that draw from PyTorch's CPU generator.

    Args:
        dataset: any map-style dataset.
        seed: any integer.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The sample of (epoch, index)."""
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would reseed the GPU too
            torch.random.default_generator.manual_seed(_seed_of(self.seed, epoch, index))
            return self.dataset[index]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of batches of n samples, without an incomplete last one unless it is the only one."""
    return max(1, n // batch_size)


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle 0..n-1 into batches in an order that depends on the arguments alone.

    Args:
        n: number of samples, at least 1.
        batch_size: samples per batch, at least 1.
        seed, epoch: any integers.

    Returns:
        the batches of an epoch, as many as `steps_per_epoch` says.

    Raises:
        ValueError: n or batch_size is less than 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    generator = torch.Generator().manual_seed(_seed_of(seed, epoch))
    order = torch.randperm(n, generator=generator).tolist()
    starts = range(0, steps_per_epoch(n, batch_size) * batch_size, batch_size)
    return [order[start : start + batch_size] for start in starts]


def worker_count(workers: int | None) -> int:
    """The number of loader workers asked for; by default one per core that this process may use, at most 4."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def _ignore_interrupt(worker: int) -> None:
    """For loader workers: Ctrl-C reaches all processes, but the main one decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Steps(Sampler):
    """The keys (epoch, index) of the batches of some steps of a run, as far as they are this process's."""

    def __init__(self, n: int, batch_size: int, seed: int, steps: range, ranks: Ranks):
        self.n, self.batch_size, self.seed, self.steps, self.ranks = n, batch_size, seed, steps, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches: list[list[int]] = []
        for step in self.steps:
            epoch, batch = divmod(step, steps_per_epoch(self.n, self.batch_size))
            if batch == 0 or not batches:
                batches = epoch_batches(self.n, self.batch_size, self.seed, epoch)
            yield [(epoch, index) for index in self.ranks.every(batches[batch])]


def train_loader(
    dataset: Dataset, batch_size: int, seed: int, steps: range, workers: int = 0, ranks: Ranks = ALONE
) -> DataLoader:
    """A loader of a run, or of the rest of one, that gives the same batches whenever it is started.

    Its workers live as long as its iteration, through all epochs, and read ahead from one into the next.

    Args:
        dataset: gives (image, target) with images of one size.
        batch_size: samples per batch, of all processes together; an epoch has no incomplete last batch, unless it is
            the only one.
        seed: any integer.
        steps: of the run, counted through its epochs from 0.
        workers: processes that read pictures; 0 reads them in this one. Does not change the batches.
        ranks: the processes that share each batch.

    Returns:
        loader of one `Batch` for each step.

    Raises:
        ValueError: a batch has less samples than there are processes.
    """
    if (n := min(batch_size, len(dataset))) < ranks.size:
        raise ValueError(f"a batch of {n} pictures cannot be shared by {ranks.size} processes")
    return _loader(
        SeededDataset(dataset, seed),
        workers,
        batch_sampler=_Steps(len(dataset), batch_size, seed, steps, ranks),
        generator=torch.Generator(),  # a loader would otherwise advance the global one
    )


def eval_loader(dataset: Dataset, batch_size: int, workers: int | None = None) -> DataLoader:
    """A loader of a whole dataset in its order.

    Args:
        dataset: gives (image, target) with images of one size.
        batch_size: samples per batch; the last one may hold fewer.
        workers: processes that read pictures; by default one per core, at most 4.

    Returns:
        loader of `Batch`.
    """
    return _loader(dataset, worker_count(workers), batch_size=batch_size)


def _loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    return _Loader(
        _Batches(dataset),
        num_workers=workers,
        worker_init_fn=_ignore_interrupt,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


class _Batches(Dataset):
    """What a loader's workers send: a batch, or the error of a sample that cannot be read."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Any]) -> Batch | Exception:
        try:
            batch = collate([self.dataset[key] for key in keys])
        except (OSError, ValueError) as error:  # torch would put the worker's traceback into its message
            return error
        return _to_send(batch) if get_worker_info() else batch


def _as_it_is(batch: Batch | Exception) -> Batch | Exception:
    return batch


def _to_send(batch: Batch) -> Batch:
    """The batch in shared memory, or, where that is full as soon in a container with 64 MB of it, as arrays, which go
    through a pipe. torch finds out when it sends the batch, and drops it: the run would wait for it for ever."""
    columns = [column for column in batch if column is not None]
    try:
        for column in columns:
            if column.numel():
                column.share_memory_()
    except RuntimeError:
        return Batch(*(None if column is None else column.numpy() for column in batch))
    return batch


class _Loader(DataLoader):
    """Raises the error of a sample as it was, and the death of a worker where a batch is asked for."""

    def __iter__(self) -> Iterator[Batch]:
        with _same_handler_of_sigchld():
            batches = super().__iter__()
        try:
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield Batch(*map(_as_tensor, batch))
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise ChildProcessError(
                f"a process that reads pictures was killed; where memory was short, use fewer --workers ({error})"
            ) from None


@contextmanager
def _same_handler_of_sigchld() -> Iterator[None]:
    """Keeps the handler of SIGCHLD, for which torch's loaders set one that raises an error in whatever the main thread
    is doing, such as half a step; without it the loader finds out when it is asked for a batch."""
    number = getattr(signal, "SIGCHLD", None)  # None: Windows
    handler = signal.getsignal(number) if number and threading.current_thread() is threading.main_thread() else None
    yield
    if handler is not None:
        signal.signal(number, handler)


def _as_tensor(column: Tensor | np.ndarray | None) -> Tensor | None:
    return torch.from_numpy(column) if isinstance(column, np.ndarray) else column
