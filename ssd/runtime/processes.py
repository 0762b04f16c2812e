"""One run in several processes, as `torchrun` starts them: which one this is, and what all of them agree on.

Without torchrun there is one, which waits for nobody.
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
HEARTBEAT = 1.0  # seconds between two collective calls of processes that wait for the first
LOST = "Connection closed", "Connection reset", "Broken pipe", "remote process exited"  # of gloo and NCCL
LATE = "Timed out", "timed out", "timeout"  # of both, too
UNLIMITED = timedelta(days=365)  # to wait for a process that lives; one that dies is noticed at once


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; all must make the same calls of those methods that exchange anything, in the same
    order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def every(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process, dealt out one by one: of each batch every process gets its share."""
        return items[self.rank :: self.size]

    def block(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process, a run of neighbours: those of all processes in a row are the whole."""
        n = len(items)
        return items[self.rank * n // self.size : (self.rank + 1) * n // self.size]

    def any(self, flag: Any) -> bool:
        """Whether it is true in any process; does not wait for a GPU."""
        if self.size == 1:
            return bool(flag)
        count = torch.tensor(int(bool(flag)))
        dist.all_reduce(count)
        return bool(count)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def to_first(self, value: Item) -> list[Item]:
        """What each process has, in the order of their ranks, in the first; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def from_first(self, function: Callable[[], Item]) -> Item:
        """What the function gives, or raises, in the first process: for all. The others wait as long as it takes."""
        if self.size == 1:
            return function()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(function) if self.first else None
            done = False
            while not done:  # the collective calls of all meet often, whose time to wait has an end
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
        """Gives the buffers of the first process, such as statistics of batch normalisation, to the module of each."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wait(self, stopping: Sequence[Any]) -> bool:
        """Waits for all processes, under the limit of `joined`, or until `stopping` is no longer empty.

        Returns:
            whether all have come here.
        """
        if self.size == 1:
            return True
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not (stopping or work.is_completed()):  # a call that blocks would hold up Ctrl-C
            time.sleep(0.1)
        if not stopping:
            work.wait()
        return not stopping


ALONE = Ranks()


@contextmanager
def joined(limit: timedelta | None = None) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, or is alone; leaves them when the block ends.

    Args:
        limit: how long one may wait for another; by default as long as torch has it, 10 minutes on GPUs, else 30.

    Raises:
        ConnectionError: another of them has died, or let this one wait for longer than the limit.
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
    except RuntimeError as error:  # of gloo, or DistBackendError of NCCL, which is one too
        me, reason = f"process {os.environ.get('RANK', '?')}", str(error).splitlines()[0]
        if any(sign in str(error) for sign in LOST):
            raise ConnectionError(f"{me} lost another, whose end torchrun reports ({reason})") from None
        if any(sign in reason for sign in LATE):
            raise ConnectionError(
                f"{me} timed out waiting for another process ({reason}), which hangs or is too slow, as on a slow disk "
                "or an overloaded machine; mend that and run the command again, with --resume where it has that option"
            ) from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _own_store(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The part of a store that only the processes started together share.

    After a restart by `torchrun --max-restarts` the store still has what the processes before it wrote, such as
    addresses where nobody answers (torch 2.14). So the first process draws a name for this start, and gives it to each
    other that asks under a name that is as new.
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
                raise dist.DistStoreError(f"timed out: process {other} has not come")
            store.wait([f"asks {other}"])
            store.set(store.get(f"asks {other}"), name)  # maybe to one before the restart, which takes it no more
            time.sleep(0.01)
    return dist.PrefixStore(name, store)


def local_rank() -> int:
    """Which of the processes on this machine this is, hence its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
