"""Signals that end a run after the work at hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[list[int | Exception]]:
    """A list that is empty until Ctrl-C or SIGTERM, a scheduler's notice; a second Ctrl-C interrupts at once.

    torchrun passes Ctrl-C on as SIGTERM, beside the one that the terminal sends. Whoever runs the block may append an
    error that is to stop it in the same way.
    """
    received: list[int | Exception] = []

    def handler(signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and signum in received:
            raise KeyboardInterrupt
        received.append(signum)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread, where Python allows no handler
        yield received
        return
    try:
        yield received
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
