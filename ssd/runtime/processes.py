"""A run in several processes that `torchrun` started: rank and size, sharing of items, and collective calls.

Without torchrun there is one process, and no call communicates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")
HEARTBEAT = 1.0  # seconds between two collective calls while the other processes wait for the first process
LOST = "Connection closed", "Connection reset", "Broken pipe", "remote process exited"  # in errors of gloo and NCCL
LATE = "Timed out", "timed out", "timeout"  # in errors of gloo and NCCL
UNLIMITED = timedelta(days=365)  # for waiting on a live process; the death of a process is noticed at once


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    The methods that communicate are `any`, `mean`, `to_first`, `from_first`, `synchronise` and `wait`. All processes
    must call them in the same order.

    Attributes:
        rank: number of this process, 0..size-1.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes files and prints."""
        return self.rank == 0

    def every(self, items: Sequence[Item]) -> Sequence[Item]:
        """Takes the share of this process: every `size`-th of the items, starting at `rank`."""
        return items[self.rank :: self.size]

    def block(self, items: Sequence[Item]) -> Sequence[Item]:
        """Takes the share of this process: a contiguous block of the items. The blocks follow in the order of ranks."""
        n = len(items)
        return items[self.rank * n // self.size : (self.rank + 1) * n // self.size]

    def any(self, flag: object) -> bool:
        """Whether the flag is true in any process. Does not wait for a GPU."""
        if self.size == 1:
            return bool(flag)
        count = torch.tensor(int(bool(flag)))
        dist.all_reduce(count)
        return bool(count)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a floating-point tensor over the processes, element by element."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def to_first(self, value: Item) -> list[Item]:
        """Collects a value from each process.

        Args:
            value: any value that can be pickled.

        Returns:
            In the first process, the values in the order of the ranks; in the others, an empty list.
        """
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def from_first(self, function: Callable[[], Item]) -> Item:
        """Calls a function in the first process, and returns its result in all processes.

        The others wait as long as the call takes, even longer than the limit of `joined`.

        Args:
            function: its result or exception must be picklable.

        Raises:
            What the function raises, in all processes.
        """
        if self.size == 1:
            return function()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(function) if self.first else None
            done = False
            while not done:  # many short collective calls, because one long call would exceed the limit
                done = self.any(future and wait([future], HEARTBEAT).done)
            answer: list[Any] = [None]
            if future:
                answer = [(future.exception(), None if future.exception() else future.result())]
            dist.broadcast_object_list(answer)
        error, value = answer[0]
        if error is not None:
            raise error
        return value

    def synchronise(self, module: nn.Module) -> None:
        """Copies the buffers of the first process, such as batch norm statistics, to the module of each process."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wait(self, stopping: Sequence[object]) -> bool:
        """Waits until all processes have called this, at most for the limit of `joined`.

        Args:
            stopping: see `ssd.runtime.signals.stop_signals`; the wait ends when it is no longer empty.

        Returns:
            Whether all processes have arrived.
        """
        if self.size == 1:
            return True
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not (stopping or work.is_completed()):  # a blocking call would delay Ctrl-C
            time.sleep(0.1)
        if not stopping:
            work.wait()
        return not stopping


ALONE = Ranks()


@contextmanager
def joined(limit: timedelta | None = None) -> Iterator[Ranks]:
    """Joins the processes that torchrun started until the block ends; without torchrun, gives `ALONE`.

    Args:
        limit: how long a process may wait for another; by default torch's limit, 10 minutes for NCCL and 30 for gloo.

    Raises:
        ConnectionError: another process has died, or this one has waited for longer than the limit.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, _ = next(dist.rendezvous("env://", **({"timeout": limit} if limit else {})))
        own = _own_store(store, rank, size)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=limit)
        yield Ranks(rank, size)
    except RuntimeError as error:  # raised by gloo; DistBackendError of NCCL is a subclass
        me, reason = f"process {os.environ.get('RANK', '?')}", str(error).splitlines()[0]
        if any(sign in str(error) for sign in LOST):
            raise ConnectionError(
                f"{me} lost the connection to another process ({reason}); torchrun reports why that one ended"
            ) from None
        if any(sign in reason for sign in LATE):
            raise ConnectionError(
                f"{me} timed out waiting for another process ({reason}), which hangs or is too slow, for example "
                "because of a slow disk or an overloaded machine; solve that and run the command again, with --resume "
                "if it has that option"
            ) from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _own_store(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Returns a part of the store that is shared only by the processes of this launch.

    After a restart by `torchrun --max-restarts` the store still holds the entries of the previous processes, such as
    addresses that no longer answer (torch 2.14). So the first process draws a random prefix for this launch. Each other
    process draws a random key, writes it to the store, and receives the prefix under that key.
    """
    if rank:
        asks = uuid4().hex
        store.set(f"asks {rank}", asks)
        name = store.get(asks).decode()
        store.set(f"{name} {rank}", "")
        return dist.PrefixStore(name, store)
    name, end = uuid4().hex, time.monotonic() + store.timeout.total_seconds()
    for other in range(1, size):
        while not store.check([f"{name} {other}"]):
            if time.monotonic() > end:
                raise dist.DistStoreError(f"timed out: process {other} has not joined")
            store.wait([f"asks {other}"])
            store.set(store.get(f"asks {other}"), name)  # this may still be the key of a process before the restart
            time.sleep(0.01)
    return dist.PrefixStore(name, store)


def local_rank() -> int:
    """The number of this process among those on this machine, from 0; also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
