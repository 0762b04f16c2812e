"""Times short calls on a busy machine.

    .venv/bin/python benchmarks/busy.py [--processes 2] [--seconds 4]

Prints the median and the 99th percentile in ms, with one thread and with all threads: first alone, then beside
processes that keep one core busy each. Contenders are called in turn.
"""

import argparse
import subprocess
import sys
import time
from contextlib import contextmanager

import torch
from harness import ALL, OURS, Case
from test_bench_detection import detection
from test_bench_match_priors import match_priors
from test_bench_nms import nms

CASES = (detection("trained", 1, 21), nms(1000), match_priors(1, 20))


@contextmanager
def busy(processes: int):
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(case: Case, seconds: float) -> dict[tuple[str, int], list[float]]:
    """Sorted milliseconds of the calls of each contender (name, threads)."""
    inputs = case.inputs()
    times = {key: [] for key in ((OURS, 1), (OURS, ALL), (case.baseline, ALL))}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for (name, threads), its in times.items():
            torch.set_num_threads(threads)
            started = time.perf_counter()
            case.contenders[name](inputs)
            its.append((time.perf_counter() - started) * 1e3)
    return {key: sorted(its[1:]) for key, its in times.items()}  # the first call warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="busy processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="for each case (default: %(default)s)")
    args = parser.parse_args()
    for processes in (0, args.processes):
        print(f"beside {processes} busy processes; ms: median / 99th percentile")
        for case in CASES:
            with busy(processes):
                results = measure(case, args.seconds)
            cells = (
                f"{who}, {threads} thread{'s' * (threads > 1)}: {t[len(t) // 2]:.3f} / {t[int(0.99 * len(t))]:.3f}"
                for (who, threads), t in results.items()
            )
            print(f"{case.name:32} " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
