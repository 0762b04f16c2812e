"""Memory that is freed and used again."""

import ctypes
import sys

import pytest
from own_process import printed_by

from ssd.runtime import memory

FAULTS = """
import resource
import torch
from ssd.runtime.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(4_000_000).add_(1)  # 16 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = faults()
kept = keep_freed_memory()
faults()
print(before, kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_freed_memory_is_not_asked_for_again():
    before, kept, after = printed_by(FAULTS).split()
    assert kept == "True"
    assert int(after) < 40 < int(before)  # before, it is ten times 4,000 pages of 4 KiB, or 8 pages of 2 MiB


def test_without_glibc_nothing_happens(monkeypatch):
    class Other:
        """A C library without mallopt."""

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    assert memory.keep_freed_memory() is False
