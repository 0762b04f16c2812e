"""What processes of torchrun do together."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from own_process import PATHS, TORCHRUN

from ssd.runtime.processes import ALONE, Ranks, _own_store

LATE = """
import time
from datetime import timedelta
from ssd.runtime.processes import joined

with joined(timedelta(seconds=1)) as ranks:
    time.sleep(3 * ranks.rank)
    ranks.wait([])
"""


def test_a_process_that_comes_too_late_is_told_of(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    command = [sys.executable, "-m", *TORCHRUN, str(tmp_path / "late.py")]
    env = {**os.environ, "PYTHONPATH": PATHS, "CUDA_VISIBLE_DEVICES": ""}
    errors = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100).stderr
    assert "ConnectionError: process 0 timed out waiting for another process" in errors
    assert "Timed out waiting 1000ms" in errors


def test_a_start_has_nothing_of_the_one_before():
    """Of which some processes died before they had joined."""
    store = dist.HashStore()
    store.set("asks 1", "x")
    store.set("x", "name of the start before")
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(_own_store, store, 0, 3)
            time.sleep(0.1)
            own = [pool.submit(_own_store, store, rank, 3) for rank in (2, 1)]
            own = [future.result(20) for future in (first, *own)]
        assert not own[0].check(["key"])
        own[0].set("key", "value")
        assert all(other.check(["key"]) for other in own)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 7])
def test_shares_are_the_whole(n):
    parts = [Ranks(rank, 3) for rank in range(3)]
    items = list(range(n))
    assert sorted(x for part in parts for x in part.every(items)) == items
    assert [x for part in parts for x in part.block(items)] == items
    assert max(len(p.block(items)) for p in parts) - min(len(p.block(items)) for p in parts) <= 1
    assert ALONE.every(items) == ALONE.block(items) == items


WAITS = """
import sys, time
from datetime import timedelta
import torch
from ssd.runtime import processes as ranks

ranks.HEARTBEAT = 0.2

def slow():
    time.sleep(5)
    return ["done"]

def wrong():
    raise FileNotFoundError(2, "No such file", "gone")

with ranks.joined(timedelta(seconds=2)) as its:
    assert its.from_first(slow) == ["done"]
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean += its.rank
    its.synchronise(norm)
    assert norm.running_mean.tolist() == [0, 0]
    try:
        its.from_first(wrong)
    except FileNotFoundError as error:
        assert error.filename == "gone"
        assert its.to_first(its.rank) == ([0, 1] if its.first else [])
        print("told", flush=True)
"""


def test_the_first_may_take_longer_than_a_collective_call_may(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    command = [sys.executable, "-m", *TORCHRUN, str(tmp_path / "waits.py")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True, text=True, timeout=200)
    assert done.stdout.count("told") == 2, done.stdout + done.stderr
