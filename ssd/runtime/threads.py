"""Applying a function to many items in several threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS, CHUNK = 16, 32  # threads for a slow disk, and items per task of a thread
# A disk is slow if the time spent waiting for it is more than WAITED seconds and more than SHARE times the CPU time.
WAITED, SHARE = 0.5, 2.0


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Yields the result of a function for each item, in order, while threads compute the next results.

    Args:
        function: takes one item. It should release Python's lock (GIL) most of the time, as decoders and encoders do.
        items: read one by one in the caller's thread.
        workers: number of threads, at least 1.
        ahead: number of items, at least 1, that may be in progress while the caller waits for a result. Limits memory.

    Raises:
        What the function raises, in place of the result.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_threads_if_slow(
    function: Callable[[Item], Result], items: Iterable[Item], chunk: int = CHUNK
) -> Iterator[Result]:
    """Yields the result of a function for each item, in order; uses several threads only if the disk is slow.

    It starts in the caller's thread, and continues in 16 threads once most of the time is spent waiting. On a fast
    disk threads make reading small files slower; on a network disk they save almost all of the time.

    Args:
        function: takes one item and reads files.
        items: read one by one in the caller's thread.
        chunk: number of items per task of a thread.

    Raises:
        What the function raises, in place of the result.
    """
    items = iter(items)
    chunks = iter(lambda: list(islice(items, chunk)), [])
    since, worked = time.perf_counter(), time.thread_time()
    for some in chunks:
        yield from map(function, some)
        work = time.thread_time() - worked
        if time.perf_counter() - since - work > max(WAITED, SHARE * work):
            break
    many = in_threads(lambda some: list(map(function, some)), chunks, READERS, ahead=2 * READERS)
    yield from chain.from_iterable(many)
