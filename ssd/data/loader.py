"""Loaders of batches; their order and augmentation depend only on the seed."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate, get_worker_info

from ssd.loss import pack_targets
from ssd.runtime.packed import Packed
from ssd.runtime.processes import ALONE, Ranks

Sample = tuple[Tensor, dict[str, Tensor]]  # an image and its target
Key = TypeVar("Key", contravariant=True)
Fetched = TypeVar("Fetched")

MOST_WORKERS, MOST_WORKERS_GPU = 4, 16  # default number of processes or threads that read pictures


class Samples(Protocol[Key]):
    """A map-style dataset: it has a length, and a sample for each key; usually the keys are 0..len-1."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: Key, /) -> Any: ...


class Batch(NamedTuple):
    """B samples with G objects in all, in the packed form that the loss takes."""

    images: Tensor  # (B, 3, S, S) uint8; float if the transform returns float images
    colours: Tensor | None  # (B, 3, 4) float32, see `ssd.data.colour.to_input`; None: no changes
    boxes: Tensor  # (G, 4) float32 xyxy, fractions of the image
    labels: Tensor  # (G,) int64
    difficult: Tensor  # (G,) bool
    row_splits: Tensor  # (B + 1,) int32, rows of each image

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device, asynchronously if its memory is pinned, as in batches of a loader."""
        return Batch._make(None if column is None else column.to(device, non_blocking=True) for column in self)

    def targets(self) -> Packed[dict[str, Tensor]]:
        """Copies the objects of each image: "boxes", "labels" and "difficult".

        Views would keep the shared memory of a worker and its open files as long as the targets exist.
        """
        columns = {name: getattr(self, name).clone() for name in ("boxes", "labels", "difficult")}
        return Packed(columns, self.row_splits.long())

    def parts(self, n: int) -> list[Batch]:
        """Splits the batch into n >= 1 parts of consecutive samples, whose sizes differ by 1 at most."""
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


def collate(samples: Sequence[Sample]) -> Batch:
    """Joins samples into a batch; in a worker of a loader, directly in shared memory.

    Args:
        samples: at least one (image, target). All images are (3, S, S) of one size and dtype. A target has "boxes"
            (n, 4) float xyxy in fractions of the image and "labels" (n,) int64, and may have "difficult" (n,) bool and
            "colour" (3, 4).

    Raises:
        ValueError: a sample has another form.
    """
    for sample in samples:
        parts = sample if isinstance(sample, (tuple, list)) else ()
        if len(parts) != 2 or not isinstance(parts[1], Mapping):
            of_what = f" of {', '.join(type(part).__name__ for part in parts)}" if parts else ""
            raise ValueError(
                'a sample must be (image, target), the target a dict with "boxes" and "labels"; got a '
                f"{type(sample).__name__}{of_what}"
            )
    images, targets = zip(*samples, strict=True)
    boxes_of = [t["boxes"].reshape(-1, 4) for t in targets]  # an empty list has the shape (0,)
    boxes, labels, row_splits = pack_targets(boxes_of, [t["labels"] for t in targets], images[0].device)
    difficult = torch.cat([t.get("difficult", t["labels"] < 0) for t in targets])
    colours = [t["colour"] for t in targets if "colour" in t]
    # Red, green and blue of a pixel stay adjacent, as decoders write them; the device separates them faster.
    rows = [image.permute(1, 2, 0).contiguous() for image in images]
    try:
        pixels: Tensor = default_collate(rows)  # (B, S, S, 3)
    except RuntimeError:  # shared memory is full
        pixels = torch.stack(rows)
    return Batch(
        pixels.permute(0, 3, 1, 2), torch.stack(colours) if colours else None, boxes, labels, difficult, row_splits
    )


def _seed_of(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


class SeededDataset(Dataset[Any]):
    """A view of a dataset whose random transforms depend only on (seed, epoch, index).

    A sample that is read again in the same epoch has a third number in its key, so that it is another one.
    So a sample is the same for any number of loader workers and after any interruption. Reading it does not change the
    global random state. This holds for transforms that take their random numbers from PyTorch's CPU generator.

    Args:
        dataset: any map-style dataset with keys 0..len-1.
        seed: any integer.
    """

    def __init__(self, dataset: Samples[int], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        """Reads the sample with the key (epoch, index), or (epoch, index, copy) with copy >= 1."""
        index = key[1]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reseed the GPUs.
            torch.random.default_generator.manual_seed(_seed_of(self.seed, *key))
            return self.dataset[index]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of batches per epoch of n samples: an incomplete last batch is left out, unless it is the only one."""
    return max(1, n // batch_size)


def epoch_length(n: int, repeats: Tensor | None = None) -> int:
    """Number of samples in an epoch of n samples, with `repeats` of `epoch_batches`."""
    return n if repeats is None else math.ceil(float(repeats.sum()))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, repeats: Tensor | None = None) -> list[list[int]]:
    """Shuffles 0..n-1 into the batches of an epoch; the order depends only on the arguments.

    Args:
        n: number of samples, at least 1.
        batch_size: samples per batch, at least 1.
        seed, epoch: any integers.
        repeats: how often each sample is in an epoch on average, (n,) float64, at least 1. In an epoch it is this
            number rounded up or down at random, see `ssd.training.sampling`. None: once.

    Returns:
        `steps_per_epoch(epoch_length(n, repeats), batch_size)` lists of indices.

    Raises:
        ValueError: n or batch_size is less than 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    generator = torch.Generator().manual_seed(_seed_of(seed, epoch))
    order = torch.randperm(n, generator=generator)
    length = epoch_length(n, repeats)
    if repeats is not None:  # samples lie side by side, as long as they repeat; points at a distance of 1 choose them
        ends = repeats[order].cumsum(0)
        points = torch.arange(length) + torch.rand(1, generator=generator, dtype=torch.float64)
        chosen = torch.searchsorted(ends * (length / ends[-1]), points, right=True).clamp(max=n - 1)
        order = order[chosen][torch.randperm(length, generator=generator)]
    indices = order.tolist()
    starts = range(0, steps_per_epoch(length, batch_size) * batch_size, batch_size)
    return [indices[start : start + batch_size] for start in starts]


def worker_count(workers: int | None, device: torch.device | None = None) -> int:
    """Number of processes or threads that read pictures, unless it is given.

    It is one per core, at most 4, or at most 16 for a GPU, which needs more pictures. Processes that torchrun started
    on this machine share its cores.

    Args:
        workers: this number; None: the one above.
        device: where the network runs; None: on a GPU if there is one.
    """
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = MOST_WORKERS if _kind(device) == "cpu" else MOST_WORKERS_GPU
    return max(1, min(most, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _kind(device: torch.device | None) -> str:
    """The type of the device that the network runs on; None: a GPU if there is one."""
    if device is not None:
        return device.type
    return "cuda" if torch.cuda.is_available() else "cpu"


def _ignore_interrupt(worker: int) -> None:
    """Makes a loader worker ignore Ctrl-C, which all processes receive: the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Steps(Sampler[list[tuple[int, ...]]]):
    """Yields, for each of the given steps of a run, the keys of this process's share of the batch."""

    def __init__(self, n: int, batch_size: int, seed: int, steps: range, ranks: Ranks, repeats: Tensor | None) -> None:
        self.n, self.batch_size, self.seed, self.steps, self.ranks = n, batch_size, seed, steps, ranks
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        batches: list[list[tuple[int, ...]]] = []
        of_epoch = steps_per_epoch(epoch_length(self.n, self.repeats), self.batch_size)
        for step in self.steps:
            epoch, batch = divmod(step, of_epoch)
            if batch == 0 or not batches:
                batches = self._keys(epoch)
            yield list(self.ranks.every(batches[batch]))

    def _keys(self, epoch: int) -> list[list[tuple[int, ...]]]:
        seen: Counter[int] = Counter()
        batches: list[list[tuple[int, ...]]] = []
        for batch in epoch_batches(self.n, self.batch_size, self.seed, epoch, self.repeats):
            batches.append([])
            for index in batch:
                batches[-1].append((epoch, index, seen[index]) if seen[index] else (epoch, index))
                seen[index] += 1
        return batches


def train_loader(
    dataset: Samples[int],
    batch_size: int,
    seed: int,
    steps: range,
    workers: int = 0,
    ranks: Ranks = ALONE,
    repeats: Tensor | None = None,
    device: torch.device | None = None,
) -> _Loader:
    """Makes a loader for the steps of a run, or for the rest of a run; a given step always has the same batch.

    Its workers live until the iteration ends or its iterator is closed. They read ahead across epochs.

    Args:
        dataset: its samples are (image, target) with images of one size.
        batch_size: samples per batch, of all processes together. An incomplete last batch of an epoch is left out,
            unless it is the only one.
        seed: any integer.
        steps: steps of the run, counted from 0 through all epochs.
        workers: number of processes that read pictures; 0: this process reads them. Does not change the batches.
        ranks: the processes that share each batch.
        repeats: see `epoch_batches`.
        device: see `worker_count`. For a GPU of CUDA, the memory of the batches is pinned.

    Returns:
        A loader that yields one `Batch` for each step. It raises OSError or ValueError for a sample that cannot be
        read, and ChildProcessError if a worker was killed.

    Raises:
        ValueError: a batch has fewer samples than there are processes.
    """
    if (n := min(batch_size, epoch_length(len(dataset), repeats))) < ranks.size:
        raise ValueError(f"a batch of {n} pictures cannot be shared by {ranks.size} processes")
    return _loader(
        SeededDataset(dataset, seed),
        workers,
        device,
        batch_sampler=_Steps(len(dataset), batch_size, seed, steps, ranks, repeats),
        generator=torch.Generator(),  # a loader would otherwise advance the global one
    )


def eval_loader(
    dataset: Samples[int], batch_size: int, workers: int | None = None, device: torch.device | None = None
) -> _Loader:
    """Makes a loader for a whole dataset in order.

    Args:
        dataset: its samples are (image, target) with images of one size.
        batch_size: samples per batch; the last batch may have fewer.
        workers: see `worker_count`.
        device: see `train_loader`.

    Returns:
        A loader that yields `Batch`es; errors as in `train_loader`.
    """
    return _loader(dataset, worker_count(workers, device), device, batch_size=batch_size)


def _loader(dataset: Samples[Any], workers: int, device: torch.device | None, **options: Any) -> _Loader:
    return _Loader(
        _Batches(dataset),
        num_workers=workers,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_ignore_interrupt,
        collate_fn=_as_it_is,
        pin_memory=_kind(device) == "cuda",  # torch takes it from a GPU that the process uses; every GPU can read it
        **options,
    )


def _context() -> str | None:
    """How workers start: on Linux they are forked, unless the program has chosen a way; None: Python's default.

    Each validation starts new workers. A forked one has the modules and the dataset at once. The default from Python
    3.14 on, a server of forks, takes seconds for both, and each worker gets a copy of the dataset.
    """
    default, *_ = torch.multiprocessing.get_all_start_methods()
    chosen = torch.multiprocessing.get_start_method(allow_none=True)
    return "fork" if sys.platform == "linux" and chosen in (None, default) else None


class _Batches(Dataset[Batch]):
    """A dataset of whole batches; a sample that cannot be read gives its error instead of the batch."""

    def __init__(self, dataset: Samples[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Any]) -> Batch | Exception:
        try:
            _read_ahead(self.dataset, keys)
            batch = collate([self.dataset[key] for key in keys])
        except (
            OSError,
            ValueError,
        ) as error:  # if it were raised, torch would add the worker's traceback to the message
            return error
        return _to_send(batch) if get_worker_info() else batch


def _read_ahead(dataset: Any, keys: Sequence[Any]) -> None:
    """Tells a data set which samples are needed next, if it has a method `read_ahead` for that."""
    while not hasattr(dataset, "read_ahead"):
        if isinstance(dataset, SeededDataset):
            dataset, keys = dataset.dataset, [key[1] for key in keys]
        elif isinstance(dataset, Subset):
            dataset, keys = dataset.dataset, [dataset.indices[key] for key in keys]
        elif hasattr(dataset, "dataset"):  # a view with the same keys
            dataset = dataset.dataset
        else:
            return
    dataset.read_ahead(keys)


def _as_it_is(batch: Fetched) -> Fetched:
    return batch


def _to_send(batch: Batch) -> Batch:
    """Moves the batch to shared memory. If shared memory is full, converts the batch to arrays.

    The loader sends arrays through a pipe. Containers often have only 64 MB of shared memory. torch itself notices that
    it is full only while sending, and then loses the batch, for which the run would wait forever.
    """
    columns = [column for column in batch if column is not None]
    try:
        for column in columns:
            if column.numel():
                column.share_memory_()
    except RuntimeError:
        return Batch._make(None if column is None else column.numpy() for column in batch)
    return batch


class _Loader(DataLoader[Batch]):
    """A loader that raises the original error of a sample, and reports a killed worker when a batch is requested."""

    def __iter__(self) -> Generator[Batch, None, None]:  # type: ignore[override]  # torch declares its own class
        with _same_handler_of_sigchld():
            batches = super().__iter__()
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (RuntimeError, ConnectionError, EOFError) as error:  # the last two occur while a worker dies
                    if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                        raise
                    raise ChildProcessError(
                        f"a process that reads pictures was killed; if memory ran out, use fewer --workers ({error!r})"
                    ) from None
                if isinstance(batch, Exception):
                    raise batch
                yield Batch._make(map(_as_tensor, batch))
        finally:
            del batches  # ends the workers, which would otherwise live as long as the traceback of an error


@contextmanager
def _same_handler_of_sigchld() -> Iterator[None]:
    """Restores the handler of SIGCHLD after a loader was started.

    torch's loaders set a handler that raises an error in the main thread at any moment, for example in the middle of a
    training step. Without it, the loader reports a dead worker when the next batch is requested.
    """
    number = getattr(signal, "SIGCHLD", None)  # None: Windows
    handler = signal.getsignal(number) if number and threading.current_thread() is threading.main_thread() else None
    yield
    if number is not None and handler is not None:
        signal.signal(number, handler)


def _as_tensor(column: Tensor | np.ndarray | None) -> Tensor | None:
    """Converts arrays to tensors, with the memory layout that `collate` gives to images; results depend on it."""
    if not isinstance(column, np.ndarray):
        return column
    tensor = torch.from_numpy(column)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
