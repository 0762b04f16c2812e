"""How the benchmarks measure: cases, contenders, places, rounds, peak memory, GPU buffers and graphs.

A case is one piece of work with the same inputs for all contenders. Before a contender is timed, its result is compared
with that of `ssd_ext`, with the tolerance of the case. A contender that disagrees fails and is left out; the others are
still measured.

On the CPU a contender is timed in two ways: alone, call after call, and in turn with a peer. The second way is like a
training step: the caches hold other data, and free memory has gone back to the system.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from compact import case_name, selector
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import ssd_ext
from ssd_ext._op import plain

BUDGET = float(os.environ.get("SSD_BENCH_SECONDS", "0.3"))  # seconds of timed rounds per contender and case
HUGE = bool(os.environ.get("SSD_BENCH_HUGE"))  # whether the huge cases are measured too
SLOW = 0.5  # seconds; longer calls get three rounds
VERY_SLOW = 2.0  # seconds; longer calls get one round
QUICK = 0.02  # seconds; in shorter calls on a GPU, launches and caches matter
ALL = torch.get_num_threads()
OURS = "ssd_ext"
COMPILED = "compiled_fallback"
WITH_ALL_THREADS = ("tutorial", COMPILED)  # contenders that are not measured with one thread
IN_TURN_ROUNDS = 9


@dataclass(frozen=True)
class Place:
    """Where and how a contender runs: the device, the number of CPU threads, and whether a CUDA graph is replayed."""

    device: str
    threads: int
    graph: bool = False

    def __str__(self) -> str:
        return f"{self.device}-graph" if self.graph else "cuda" if self.device == "cuda" else f"cpu-{self.threads}"


CPU = [Place("cpu", threads) for threads in sorted({1, ALL})]
CUDA = [Place("cuda", ALL), Place("cuda", ALL, graph=True)] if torch.cuda.is_available() else []


@dataclass(frozen=True, eq=False)
class Case:
    """One comparison.

    Attributes:
        suite: the table of the case.
        op: the name of the work, for example "nms".
        sizes: the sizes of the inputs, for example {"boxes": 1000}.
        inputs: makes the inputs of every contender, on the CPU.
        contenders: name -> function of the inputs, or the reason why the contender is left out. One name is `ssd_ext`.
        check: called with (name, result, result of ssd_ext); raises an AssertionError if they disagree.
        baseline: the contender that ssd_ext is compared with, and that is called in turn with ssd_ext.
        graphs: contenders that do not synchronise, so that a CUDA graph can capture them.
        once: slow contenders, of which only a single call is timed, with all threads. That call is also checked.
        one_thread: False if the case takes too long with one thread.
        sets_up: the first call builds something, such as a network, and is not timed.
        chart_only: for the scaling charts only, and measured only with all threads.
        gpu_only: the case would take minutes on a CPU.
        facts: makes additional entries of the result file from the inputs.
    """

    suite: str
    op: str
    sizes: dict[str, int | str]
    inputs: Callable[[], NamedTuple]
    contenders: dict[str, Callable | str]
    check: Callable[[str, Any, Any], None]
    _: KW_ONLY
    baseline: str = "torchvision"
    graphs: tuple[str, ...] = (OURS,)
    once: tuple[str, ...] = ()
    one_thread: bool = True
    sets_up: bool = False
    chart_only: bool = False
    gpu_only: bool = False
    facts: Callable[[Any], dict[str, Any]] = lambda inputs: {}

    @property
    def name(self) -> str:
        return case_name(self.op, self.sizes)

    def places(self, contender: str) -> list[Place]:
        few = self.chart_only or not self.one_thread or contender in (*self.once, *WITH_ALL_THREADS)
        cpu = [] if self.gpu_only else CPU[-1:] if few else CPU
        return cpu + (CUDA if contender in self.graphs and not self.chart_only else CUDA[:1])


def each(cases: list[Case], charts: Iterable[Case] = (), huge: Iterable[Case] = ()) -> Callable:
    """A test of every (case, contender, place), ordered by case, with names that `-k` accepts.

    `charts` are cases for more points of a scaling chart, and `huge` those that take seconds or minutes, which are left
    out unless `SSD_BENCH_HUGE` is set. Only ssd_ext and the baseline are measured for them.
    """
    more = [replace(case, chart_only=True) for case in charts]
    more += [replace(case, one_thread=False) for case in huge if HUGE]
    cases = cases + [
        replace(case, contenders={name: case.contenders[name] for name in (OURS, case.baseline)}) for case in more
    ]
    rows = [
        pytest.param(case, contender, place, id=selector(f"{case.name}-{place}-{contender}"))
        for case in cases
        for place in CPU + CUDA
        for contender in case.contenders
        if place in case.places(contender)
    ]

    @pytest.mark.parametrize(("case", "contender", "place"), rows)
    def test(measure, case, contender, place):
        measure(case, contender, place)

    return test


def close(rtol: float) -> Callable[[str, Any, Any], None]:
    """A check of tensors or tuples of tensors. rtol is the relative and absolute tolerance; 0 requires equality."""

    def check(name: str, got: Any, expected: Any) -> None:
        for i, (a, b) in enumerate(zip(tree_leaves(got), tree_leaves(expected), strict=True)):
            if not (torch.equal(a, b) if rtol == 0 else torch.allclose(a, b, rtol=rtol, atol=rtol)):
                worst = float((a.double() - b.double()).abs().max()) if a.shape == b.shape else "another shape"
                raise AssertionError(f"{name}: result {i} is off by {worst}, allowed: {rtol}")

    return check


def compiled(function: Callable) -> Callable:
    """`torch.compile` of a function for the shapes of its first call, as one graph (`fullgraph=True`)."""

    @cache
    def compile_once() -> Callable:
        torch._dynamo.reset()  # else the limit on recompilations is reached, and the function runs uncompiled
        return torch.compile(function, fullgraph=True, dynamic=False)

    return lambda inputs: compile_once()(inputs)


def ours(op: str, by: Callable[[Callable], Callable]) -> dict[str, Callable]:
    """The op, plain PyTorch and compiled plain PyTorch; `by` turns each into a function of the inputs."""
    fallback = by(getattr(plain, op))
    return {OURS: by(getattr(ssd_ext, op)), "plain_pytorch": fallback, COMPILED: compiled(fallback)}


def copied(inputs: Any, device: str | torch.device) -> Any:
    """A copy of the inputs on the device; values that are no tensors stay the same objects."""

    def copy(x: Any) -> Any:
        return x.detach().to(device, copy=True).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    return tree_map(copy, inputs)


# -------------------------------------------------------------------------------------------------- measuring


class Session:
    """The state that the tests of one pytest run share.

    Attributes:
        left_out: what was not measured, with the reason; conftest.py writes it into the result file.
    """

    def __init__(self) -> None:
        self.left_out: list[dict[str, Any]] = []
        self._at_hand: tuple[Case, str] | None = None
        self._prepared: Any = None

    def measure(self, benchmark, case: Case, contender: str, place: Place) -> None:
        """Checks one contender, then times it; fails if it disagrees with ssd_ext."""
        row = {"suite": case.suite, "op": case.op, "sizes": case.sizes, "contender": contender, **asdict(place)}
        benchmark.group = f"{case.name}, {place}"
        benchmark.extra_info.update(row, baseline=case.baseline, chart_only=case.chart_only)
        before = torch.get_num_threads()
        torch.set_num_threads(place.threads)
        try:
            if isinstance(reason := case.contenders[contender], str):
                pytest.skip(reason)
            self._measure(benchmark, case, contender, place)
        except (Exception, pytest.skip.Exception) as error:
            if (reason := _why_left_out(error, contender, place)) is None:
                raise
            self.left_out.append({**row, "reason": reason})
            if isinstance(error, AssertionError):
                raise
            pytest.skip(reason)
        finally:
            torch.set_num_threads(before)

    def _measure(self, benchmark, case: Case, contender: str, place: Place) -> None:
        function, device, once = case.contenders[contender], place.device, contender in case.once
        inputs, expected, facts = self._prepare(case, device)

        def call() -> Any:
            result = function(inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        got, seconds, peak = _observe(partial(benchmark.pedantic, call) if once else call, device)
        case.check(contender, got, expected)
        del got
        benchmark.extra_info.update(facts, calls=1, peak_mb=peak)
        if once:
            return
        if seconds < SLOW or case.sets_up or contender == COMPILED:  # the first call was a warm-up
            _, seconds, benchmark.extra_info["peak_mb"] = _observe(call, device)
        calls, step = 1, call
        if device == "cuda":
            calls, step = rotating(function, inputs, graph=place.graph, quick=place.graph or seconds < QUICK)
        benchmark.extra_info["calls"] = calls
        benchmark.pedantic(step, rounds=_rounds(seconds * calls), warmup_rounds=int(seconds < SLOW))
        peer = case.contenders.get({OURS: case.baseline, case.baseline: OURS}.get(contender, ""))
        if callable(peer) and device == "cpu" and seconds < SLOW and not case.chart_only:
            benchmark.extra_info["in_turn_ms"] = _in_turn(call, partial(peer, inputs))

    def _prepare(self, case: Case, device: str) -> tuple[Any, Any, dict[str, Any]]:
        """Inputs on the device, the result of ssd_ext, and facts for the result file; kept until the next case."""
        if self._at_hand != (case, device):
            self._at_hand = self._prepared = None
            gc.collect()
            made = case.inputs()
            inputs = copied(made, device)
            expected = case.contenders[OURS](inputs)
            # Every input read once and every output written once. Lists repeat the packed objects and are not counted.
            facts = {"bytes": _bytes(inputs) + _bytes(tree_leaves(expected)), **case.facts(made)}
            if device == "cuda":
                facts["copy_ms"] = _copy_ms(facts["bytes"])
            self._prepared = inputs, expected, facts
            self._at_hand = case, device
        return self._prepared


def _why_left_out(error: BaseException, contender: str, place: Place) -> str | None:
    """The reason for the result file; None if the error is a fault of this project."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, pytest.skip.Exception):
        return text
    if isinstance(error, AssertionError):
        return f"disagrees: {text}"
    if contender == COMPILED:
        return f"torch.compile refuses: {type(error).__name__}: {text}"
    if place.graph and contender != OURS and isinstance(error, RuntimeError):
        return f"cannot be captured in a CUDA graph: {text}"
    return None


def _rounds(seconds: float) -> int:
    if seconds > SLOW:
        return 3 if seconds < VERY_SLOW else 1
    return min(200, max(5, int(BUDGET / max(seconds, 1e-6))))


def timed(call: Callable) -> tuple[Any, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def _in_turn(call: Callable, peer: Callable) -> float:
    """Median milliseconds of a call that follows one of the peer."""
    times = []
    for _ in range(IN_TURN_ROUNDS):
        peer()
        times.append(timed(call)[1])
    return statistics.median(times) * 1e3


def _bytes(values: Any) -> int:
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def _observe(call: Callable, device: str) -> tuple[Any, float, float | None]:
    """The result of a call, its seconds, and its peak memory in MB above the memory before the call, results included.

    The call must wait for the device. On the CPU the peak is the kernel's high-water mark of resident memory (VmHWM).
    It is reset before the call, after free memory has gone back to the system. The peak is None if that is impossible.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            start = _resident("VmRSS")
        except (OSError, AttributeError):
            return *timed(call), None
    result, seconds = timed(call)
    end = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    return result, seconds, max(0, end - start) / 1e6


def _resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# -------------------------------------------------------------------------------------------------------- GPU


def rotating(function: Callable, inputs: Any, *, graph: bool, quick: bool) -> tuple[int, Callable]:
    """A number of calls, and a function that makes these calls and waits for the last one.

    Quick calls rotate through copies of the inputs that together exceed twice the L2 cache, so that no call finds its
    inputs there. There are at most 64 copies: for smaller inputs, a launch takes longer than reading them.
    """
    cache_size = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(64, 1 + 2 * cache_size // max(1, _bytes(inputs))) if quick else 1
    sets = [inputs, *(copied(inputs, "cuda") for _ in range(copies - 1))]
    calls = max(10, copies) if quick else 1

    def run() -> None:
        for i in range(calls):
            function(sets[i % copies])

    play = captured(run) if graph else run

    def step(buffers: list = sets) -> None:  # keeps the buffers alive: a graph uses them but does not own them
        play()
        torch.cuda.synchronize()

    step()
    return calls, step


def captured(run: Callable) -> Callable:
    """Runs a function once, captures it in a CUDA graph, and returns the replay of the graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warms up outside the capture
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _copy_ms(n_bytes: int) -> float:
    """Milliseconds of a kernel that reads half of these bytes and writes the other half.

    The kernel is a negation: a plain copy in a graph runs on the copy engine, which has a fifth of the bandwidth.
    """
    halves = torch.zeros(2, max(1, n_bytes // 8), device="cuda")
    calls, step = rotating(lambda pair: torch.neg(pair[0], out=pair[1]), halves, graph=True, quick=True)
    return statistics.median(timed(step)[1] for _ in range(20)) / calls * 1e3
