"""Work beside the thread that needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
