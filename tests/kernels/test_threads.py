"""No bit depends on how many threads share the work, in sizes that are worth several (csrc/core/cpu/parallel.h)."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from compare import same_bits
from ops import OPS
from own_process import printed_by

import ssd_ext

pytestmark = pytest.mark.skipif(ssd_ext._load.missing["cpu"] is not None, reason="no compiled CPU kernels")

# One image that all threads share, and images that each have a thread.
SIZES = {"one-image": ((40,), 70_000, 14_000), "five-images": ((3, 0, 40, 20, 9), 17_000, 14_000)}


@pytest.fixture
def set_threads():
    """Sets the number of threads, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def call(op, sizes):
    """The op on arguments of these sizes."""
    arguments = OPS[op].full_size(*sizes)
    if op == "box_iou":  # of all boxes it would be 4 GB
        arguments = arguments[0][:100], arguments[1]
    return partial(getattr(torch.ops.ssd_ext, op), *arguments)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_threads_change_no_bit(op, sizes, set_threads):
    run, results = call(op, sizes), []
    for n in (1, 4):
        set_threads(n)
        results.append(run())
    assert same_bits(*results)


@pytest.mark.parametrize("op", OPS)
def test_a_hundred_runs_give_the_same_bits(op, set_threads):
    """On one to four threads, of which none knows what work it gets."""
    run = call(op, ((3, 0, 40, 20, 9), 8732, 8000))
    expected = run()
    for number in range(100):
        set_threads(number % 4 + 1)
        assert same_bits(run(), expected)


MEMORY = """
import torch
import ssd_ext
from compare import as_tuple
from ops import OPS

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

torch.set_num_threads(1)
for name, op in OPS.items():
    if op.sample:
        arguments = [x.requires_grad_() if i in op.differentiable else x for i, x in enumerate(op.sample())]
        def calls(n):
            for _ in range(n):
                results = as_tuple(getattr(ssd_ext, name)(*arguments))
                if op.differentiable:
                    total = sum(x.sum() for x in results if x.requires_grad)
                    torch.autograd.grad(total, arguments[op.differentiable[0]])
        calls(500)
        before = resident()
        calls(10_000)
        print(name, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_ten_thousand_calls_leave_no_memory_behind():
    grown = {name: int(bytes) for name, bytes in map(str.split, printed_by(MEMORY).splitlines())}
    assert len(grown) == sum(op.sample is not None for op in OPS.values())
    assert max(grown.values()) < 1 << 20, grown  # 100 bytes a call


THREADS = """
import sys
import torch
from ops import OPS

torch.set_num_threads(1)
arguments = {op: OPS[op].full_size(*eval(sys.argv[1])) for op in sys.argv[2:]}
torch.set_num_threads(4)
counts = []
for op in sys.argv[2:]:
    getattr(torch.ops.ssd_ext, op)(*arguments[op])
    with open("/proc/self/status") as file:
        counts.append(next(line.split()[1] for line in file if line.startswith("Threads:")))
print(*counts)
"""


def threads_after(sizes, *ops):
    """How many threads a new process has after each of these ops; all that it had before are counted too."""
    return [int(n) for n in printed_by(THREADS, sizes, *ops).split()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_small_work_wakes_nobody():
    """Before the first parallel loop there are no worker threads."""
    small = ((8,), 8732, 1000)
    ops = ["nms", "batched_nms", "match_priors", "decode_boxes", "select_hard_negatives", "multibox_loss"]
    counts = threads_after(small, *ops)
    assert len(set(counts)) == 1
    assert threads_after(SIZES["one-image"], "multibox_loss")[0] > counts[0]


FORKED = """
import os
import sys
import torch
from ops import OPS

torch.set_num_threads(2)
arguments = {op: OPS[op].full_size(*eval(sys.argv[1])) for op in sys.argv[2:]}
for op in sys.argv[2:]:
    getattr(torch.ops.ssd_ext, op)(*arguments[op])
if not (child := os.fork()):
    for op in sys.argv[2:]:
        getattr(torch.ops.ssd_ext, op)(*arguments[op])
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not(sizes):
    ops = [op for op in OPS if op != "box_iou"]
    assert printed_by(FORKED, sizes, *ops, timeout=120) == "0\n"
