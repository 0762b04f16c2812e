"""How everything here is measured: cases, contenders, places, rounds, peak memory, GPU buffers and graphs.

A case is one piece of work with the same inputs for all contenders. Before a contender is timed, what it returns is
checked against what `ssd_ext` returns, with the tolerance of the case. One that disagrees fails and is left out; the
others go on.

On the CPU a contender is timed twice: alone, call after call, and in turn with a peer, as in a training step, where the
caches hold something else and free memory has gone back to the system.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

BUDGET = float(os.environ.get("SSD_BENCH_SECONDS", "0.3"))  # of timed rounds of one contender of one case
SLOW = 0.5  # seconds of one call from which on there are three rounds
VERY_SLOW = 2.0  # ... and one
ALL = torch.get_num_threads()
WITH_ALL_THREADS = ("tutorial", "compiled_fallback")  # contenders that are not measured with one thread
IN_TURN = ("ssd_ext", "torchvision")  # contenders that are also timed one after the other
IN_TURN_ROUNDS = 9


@dataclass(frozen=True)
class Place:
    """Where and how a contender runs: the device, the threads of the CPU, and whether a CUDA graph is replayed."""

    device: str
    threads: int
    graph: bool = False

    def __str__(self) -> str:
        return f"{self.device}-graph" if self.graph else "cuda" if self.device == "cuda" else f"cpu-{self.threads}"


CPU = [Place("cpu", threads) for threads in sorted({1, ALL})]
CUDA = [Place("cuda", ALL), Place("cuda", ALL, graph=True)] if torch.cuda.is_available() else []


@dataclass
class Case:
    """One comparison.

    Attributes:
        suite: the table it belongs to.
        op: what is done, for example "nms".
        sizes: how much of it, for example {"boxes": 1000}.
        inputs: makes the arguments, on the CPU.
        contenders: name -> function of the inputs, `ssd_ext` first; or the reason why it is left out.
        check: raises an AssertionError if (name, what it returned, what ssd_ext returned) disagree.
        graphs: contenders without synchronisation, which can be captured in a CUDA graph.
        chart_only: measured only with all threads, for the scaling charts.
        every_thread_count: False for what takes too long with one thread.
        once: contenders that take so long that a single call is timed, with all threads, and then checked.
        sets_up: the first call builds something, such as a network, and is no measurement.
        extra: facts for the result file.
    """

    suite: str
    op: str
    sizes: dict[str, int | str]
    inputs: Callable[[], tuple]
    contenders: dict[str, Callable | str]
    check: Callable[[str, Any, Any], None]
    graphs: tuple[str, ...] = ("ssd_ext",)
    chart_only: bool = False
    every_thread_count: bool = True
    once: tuple[str, ...] = ()
    sets_up: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        sizes = (f"{n} {unit if n != 1 else unit.removesuffix('s')}" for unit, n in self.sizes.items())
        return ", ".join([self.op, *sizes])

    def places(self, contender: str) -> list[Place]:
        few = self.chart_only or not self.every_thread_count or contender in (*self.once, *WITH_ALL_THREADS)
        graph = contender in self.graphs and not self.chart_only
        return (CPU[-1:] if few else CPU) + (CUDA if graph else CUDA[:1])


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrizes a test over (case, contender, place), all of one case in a row, with names that `-k` can select."""
    rows = [
        pytest.param(case, contender, place, id=re.sub("[ ,]+", "-", f"{case.name}-{place}-{contender}"))
        for case in cases
        for place in CPU + CUDA
        for contender in case.contenders
        if place in case.places(contender)
    ]
    return pytest.mark.parametrize(("case", "contender", "place"), rows)


def close(rtol: float) -> Callable[[str, Any, Any], None]:
    """A check of tensors, or tuples of them, up to a relative and absolute tolerance; 0 demands equality."""

    def check(name: str, got: Any, expected: Any) -> None:
        for i, (a, b) in enumerate(zip(tree_leaves(got), tree_leaves(expected), strict=True)):
            if not (torch.equal(a, b) if rtol == 0 else torch.allclose(a, b, rtol=rtol, atol=rtol)):
                worst = float((a.double() - b.double()).abs().max()) if a.shape == b.shape else "another shape"
                raise AssertionError(f"{name}: result {i} is off by {worst}, allowed: {rtol}")

    return check


def compiled(function: Callable) -> Callable:
    """`torch.compile` of a function for the shapes at hand, as one graph without a way back into Python."""
    return partial(_call_compiled, function, [])


def _call_compiled(function: Callable, cache: list, *inputs):
    if not cache:
        torch._dynamo.reset()  # a limit on recompilations would otherwise end in eager execution
        cache.append(torch.compile(function, fullgraph=True, dynamic=False))
    return cache[0](*inputs)


# -------------------------------------------------------------------------------------------------- measuring

#: What was not measured, with the reason; goes into the result file.
left_out: list[dict[str, Any]] = []


def measure(benchmark, case: Case, contender: str, place: Place) -> None:
    """Checks one contender, then times it; called by every test."""
    function = case.contenders[contender]
    row = {"suite": case.suite, "op": case.op, "sizes": case.sizes, "contender": contender}
    row |= {"device": place.device, "threads": place.threads, "graph": place.graph}
    if isinstance(function, str):
        _leave_out(row, function)
    before = torch.get_num_threads()
    torch.set_num_threads(place.threads)
    try:
        inputs, expected, facts = _prepare(case, place.device)

        def call() -> Any:
            result = function(*inputs)
            if place.device == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.group = f"{case.name}, {place}"
        benchmark.extra_info.update(row, **facts, **case.extra, calls=1, chart_only=case.chart_only)
        if contender in case.once:
            got, _, peak = _observe(partial(benchmark.pedantic, call, rounds=1), place.device)
            benchmark.extra_info["peak_mb"] = peak
            _check(case, row, got, expected)
            return
        try:
            got, seconds, peak = _observe(call, place.device)
        except Exception as error:
            if contender != "compiled_fallback":
                raise
            _leave_out(row, f"torch.compile refuses: {type(error).__name__}: {_first_line(error)}")
        _check(case, row, got, expected)
        del got
        warm = contender == next(iter(case.contenders))  # by what the others are checked against
        if not warm and (seconds < SLOW or case.sets_up or contender == "compiled_fallback"):
            seconds, peak = _observe(call, place.device)[1:]
        calls, step = 1, call
        if place.device == "cuda":
            try:
                calls, step = _rotating(function, inputs, place.graph, seconds)
            except RuntimeError as error:
                if not place.graph or contender == "ssd_ext":
                    raise
                _leave_out(row, f"cannot be captured in a CUDA graph: {_first_line(error)}")
        benchmark.extra_info.update(calls=calls, peak_mb=peak)
        benchmark.pedantic(step, rounds=_rounds(seconds * calls), warmup_rounds=int(seconds < SLOW))
        peer = case.contenders.get(next((name for name in IN_TURN if name != contender), ""))
        if contender in IN_TURN and callable(peer) and place.device == "cpu" and seconds < SLOW and not case.chart_only:
            benchmark.extra_info["in_turn_ms"] = _in_turn(call, partial(peer, *inputs))
    finally:
        torch.set_num_threads(before)


def _check(case: Case, row: dict[str, Any], got: Any, expected: Any) -> None:
    """Fails for a contender that disagrees with ssd_ext; the result file says why it has no number."""
    try:
        case.check(row["contender"], got, expected)
    except AssertionError as error:
        left_out.append({**row, "reason": f"disagrees: {_first_line(error)}"})
        raise


def _in_turn(call: Callable, peer: Callable) -> float:
    """Median milliseconds of a call that follows one of the peer."""
    times = []
    for _ in range(IN_TURN_ROUNDS):
        peer()
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
        del result
    return statistics.median(times) * 1e3


def _leave_out(row: dict[str, Any], reason: str) -> NoReturn:
    left_out.append({**row, "reason": reason})
    pytest.skip(reason)


def _rounds(seconds: float) -> int:
    if seconds > SLOW:
        return 3 if seconds < VERY_SLOW else 1
    return min(200, max(5, int(BUDGET / max(seconds, 1e-6))))


_prepared: dict[tuple[str, str, str], tuple] = {}


def _prepare(case: Case, device: str) -> tuple[tuple, Any, dict[str, Any]]:
    """Inputs on the device, what ssd_ext returns, and the bytes that must be moved; kept for the case at hand."""
    key = case.suite, case.name, device
    if key not in _prepared:
        _prepared.clear()
        gc.collect()
        inputs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, case.inputs())
        inputs = tree_map(_copy, inputs)
        expected = next(iter(case.contenders.values()))(*inputs)
        # Every input read once and every output written once; lists hold the packed objects a second time.
        facts = {"bytes": _bytes(inputs) + _bytes(tree_leaves(expected))}
        if device == "cuda":
            facts["copy_ms"] = _copy_ms(facts["bytes"])
        _prepared[key] = inputs, expected, facts
    return _prepared[key]


def _bytes(values: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def _copy(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _observe(call: Callable, device: str) -> tuple[Any, float, float | None]:
    """What a call returns, its seconds, and the most memory in MB that it held beyond what was there, results included.

    The call waits for the device. On the CPU the peak is the kernel's high-water mark of this process's resident memory
    (VmHWM), set back before the call, after free memory went back to the system; None where that is not possible.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        start = _reset_peak()
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    if start is None:
        return result, seconds, None
    end = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    return result, seconds, max(0, end - start) / 1e6


def _reset_peak() -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _resident("VmRSS")
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


# -------------------------------------------------------------------------------------------------------- GPU


def _copies(n_bytes: int) -> int:
    """Sets of buffers of that size that together exceed twice the L2 cache, so that no call finds its own there.

    At most 64: smaller ones are below what a launch takes.
    """
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, 1 + 2 * cache // max(1, n_bytes))


def _rotating(function: Callable, inputs: tuple, graph: bool, seconds: float) -> tuple[int, Callable]:
    """A function that makes many calls in a row, each with other buffers, and waits for the last one."""
    n_bytes = _bytes(inputs)
    quick = graph or seconds < 0.02  # for slower ones neither launches nor caches matter
    sets = [inputs, *(tree_map(_copy, inputs) for _ in range(_copies(n_bytes) - 1 if quick else 0))]
    calls = max(10, len(sets)) if quick else 1

    def run() -> None:
        for i in range(calls):
            function(*sets[i % len(sets)])

    play = _captured(run) if graph else run

    def step(buffers: list = sets) -> None:  # which a graph uses and does not own
        play()
        torch.cuda.synchronize()

    step()
    return calls, step


def _captured(run: Callable) -> Callable:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up where nothing is captured
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _copy_ms(n_bytes: int) -> float:
    """Milliseconds of a copy on the device that reads half of these bytes and writes the other half."""
    half = max(1, n_bytes // 2)
    pairs = [torch.empty(2, half, dtype=torch.uint8, device="cuda") for _ in range(_copies(n_bytes))]
    calls = max(10, len(pairs))

    def run() -> None:
        for i in range(calls):
            pairs[i % len(pairs)][1].copy_(pairs[i % len(pairs)][0])

    replay = _captured(run)
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return sorted(times)[len(times) // 2]
