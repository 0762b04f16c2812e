"""Time and memory of calls, for the tutorial. `benchmarks/` has the measurements that the documents quote."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

SECONDS = 0.5  # for the repeated calls of one kind


def compare(**calls: Callable[[], object]) -> None:
    """Prints for each call the median time of repeated calls, and the memory at its peak, results included.

    The memory is measured on Linux only: the peak of the resident memory of the process, above the one before the call.
    Small amounts are uncertain, since the process may have free memory that it uses again.
    """
    lines = [f"torch {torch.__version__}, CPU threads: {torch.get_num_threads()}"]
    for name, call in calls.items():
        call()  # the first call sets things up
        peak = _peak_megabytes(call)
        times: list[float] = []
        while sum(times) < SECONDS or len(times) < 3:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        memory = "memory not measured" if peak is None else f"{peak:.1f} MB"
        lines.append(f"{name}: {statistics.median(times) * 1e3:.2f} ms, {memory}")
    print("\n".join(lines))


def _peak_megabytes(call: Callable[[], object]) -> float | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # returns free memory to the system
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, to the present size
    except (OSError, AttributeError, TypeError):  # another system than Linux with glibc
        return None
    before = _resident("VmRSS")
    call()
    return max(0.0, _resident("VmHWM") - before) / 1e6


def _resident(field: str) -> float:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))
