"""Applying a function to many items in several threads, and reading items ahead in one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS, CHUNK = 16, 32  # threads for a slow disk, and items per task of a thread
# A disk is slow if the time spent waiting for it is more than WAITED seconds and more than SHARE times the CPU time.
WAITED, SHARE = 0.5, 2.0
POLL = 0.1  # seconds between two looks at whether to stop; a signal does not end a wait without a limit


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
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # The garbage collector ends a generator that nobody uses, maybe in a thread of its own pool.
        with suppress(RuntimeError):  # a thread cannot wait for itself
            pool.shutdown(cancel_futures=True)


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


class ReadAhead(Generic[Item]):
    """Reads items in a thread of its own, before they are needed.

    Args:
        items: read one by one in the thread, which begins at once.
        ahead: number of items, at least 1, that may wait. Limits memory.
        newest: what happens when another item is read while `ahead` items wait. True: the oldest one is dropped. False:
            the thread waits.

    Attributes:
        dropped: number of items that were dropped.
    """

    def __init__(self, items: Iterable[Item], ahead: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self._waiting: deque[Item] = deque()
        self._ahead, self._newest = ahead, newest
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        # A daemon: reading from a camera or a network may never return, and must not keep the process alive.
        self._thread = threading.Thread(target=self._read, args=(items,), daemon=True)
        self._thread.start()

    def _read(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                with self._changed:
                    while len(self._waiting) >= self._ahead and not self._newest and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    self._waiting.append(item)
                    if len(self._waiting) > self._ahead:
                        self._waiting.popleft()
                        self.dropped += 1
                    self._changed.notify_all()
                del item  # it may be large, and reading the next one may take long
        except BaseException as error:  # raised where the items are taken
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def take(self, most: int, *, full: bool = True, stopping: Sized = ()) -> list[Item]:
        """Takes the next items.

        Args:
            most: number of items to take at most, at least 1.
            full: whether to wait for so many items. False: waits only for the first one.
            stopping: once this is not empty, the method no longer waits, see `ssd.runtime.signals.stop_signals`.

        Returns:
            The items in order. The list is shorter than asked only at the end, without `full`, or when stopping.

        Raises:
            What reading the items raised, after all items before it were taken.
        """
        taken: list[Item] = []
        with self._changed:
            while len(taken) < most:
                while not (self._waiting or self._ended or stopping):
                    self._changed.wait(POLL)
                if not self._waiting or stopping:
                    break
                while self._waiting and len(taken) < most:
                    taken.append(self._waiting.popleft())
                self._changed.notify_all()
                if not full:
                    break
            if self._error and not taken and not self._waiting:
                raise self._error
        return taken

    def close(self) -> None:
        """Ends the thread. If reading an item takes longer than a second, the thread ends after that item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(1)

    def __enter__(self) -> ReadAhead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        """Takes the items one by one."""
        while taken := self.take(1):
            yield taken.pop()
