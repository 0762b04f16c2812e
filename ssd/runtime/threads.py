"""Work beside the thread that needs it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS, CHUNK = 16, 32  # threads for a slow disk, and the items that one takes at a time
WAITED, SHARE = 0.5, 2.0  # a disk is slow where it lets one wait for seconds, and so many times as long as one works


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """The result for each item, in order; threads work on those that come next meanwhile.

    Args:
        function: of one item; it should spend its time outside of Python, as decoders and encoders do.
        items: taken one by one, by the caller's thread.
        workers: threads, at least 1.
        ahead: how many items, at least 1, are taken before the first result is waited for; bounds the memory.

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


def in_threads_if_slow(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The result for each item, in order: in this thread, or in several as soon as it waits more than it works.

    Threads that read small files from a fast disk would only be in each other's way; from a network disk they spare
    almost all of the time.

    Args:
        function: of one item; it reads files.
        items: taken one by one, by the caller's thread.
    """
    items = iter(items)
    chunks = iter(lambda: list(islice(items, CHUNK)), [])
    since, worked = time.perf_counter(), time.thread_time()
    for chunk in chunks:
        yield from map(function, chunk)
        work = time.thread_time() - worked
        if time.perf_counter() - since - work > max(WAITED, SHARE * work):
            break
    many = in_threads(lambda chunk: list(map(function, chunk)), chunks, READERS, ahead=2 * READERS)
    yield from chain.from_iterable(many)
