"""Signals that stop a run after the current step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[list[int | Exception]]:
    """Passes a list to the `with` block; the list is empty until Ctrl-C or SIGTERM is received.

    A second Ctrl-C interrupts at once. Schedulers send SIGTERM before they end a job. On Ctrl-C, a process receives
    SIGINT from the terminal and SIGTERM from torchrun. The block may append an exception to the list, to stop in the
    same way. Outside of the main thread no signal is handled.
    """
    received: list[int | Exception] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signum in received:
            raise KeyboardInterrupt
        received.append(signum)

    previous = {}
    with suppress(ValueError):  # Python allows handlers in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
