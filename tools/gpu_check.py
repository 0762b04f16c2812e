"""Tests and measures on a GPU within ten minutes: `make gpu-check OUT=folder BUDGET=560`.

Runs under the Python that starts it; needs no virtual environment and no internet. Uses the libraries in ssd_ext/ if
they load, and builds them otherwise. The most informative steps run first. A failed step does not stop the next one.
Each step is ended at its time limit, with all its processes, and the last step before the budget is used up.

All output and all measurements go into one report, OUT/gpu_check.tar.gz, which is replaced after every step and every
few seconds. If this program is killed, the report is still valid and has every step that had ended.

    python tools/gpu_check.py --read OUT/gpu_check.tar.gz      # on any machine

writes benchmarks/results/<machine>.json and prints the measurements beside the predictions.

--rehearse runs small versions of the steps without a GPU. The exit code is 0 if every step passed or was not tried for
a reason that is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import gpu_report

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# Threads for the CPU work of a step. With one thread per core, the thread that launches kernels would wait for a core.
THREADS = str(max(1, (os.cpu_count() or 1) // 4))
SSD = ("pytest", "torchvision", "PIL", "numpy", "tqdm")  # imported by the tests of ssd and by the benchmarks
GRACE = ((signal.SIGINT, 6), (signal.SIGTERM, 2))  # on SIGINT pytest saves its results; SIGKILL follows
RESERVE = 10  # seconds of the budget for ending the last step and writing the report
LEAST = 3  # seconds; with less time left, no step is started
REFRESH = 10  # seconds between two updates of the report while a step runs
LARGEST = 2 << 20  # bytes; the report has only the end of a longer file


@dataclass(frozen=True)
class Step:
    name: str
    limit: float  # seconds; less if the budget ends earlier
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # Python modules
    not_tried: str = ""  # the reason, if it is known before the step

    def why_not(self) -> str:
        """The reason why the step cannot be tried, or an empty string."""
        missing = [f"no module {name}" for name in self.needs if importlib.util.find_spec(name) is None]
        return self.not_tried or ", ".join(missing)


# ---------------------------------------------------------------------------------------------------- the steps


def pytest(*arguments: str) -> list[str]:
    """A pytest command that prints the name of each test before it runs, and the Python stack if a kernel hangs."""
    options = "-v -p no:cacheprovider --tb=short --maxfail=20 --durations=5 -o faulthandler_timeout=60"
    options += " --continue-on-collection-errors"  # a missing module skips one file only
    return [PYTHON, "-m", "pytest", *options.split(), *arguments]


def program(name: str) -> str:
    """Path of a program of the CUDA toolkit, or an empty string if it is not found."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [os.environ.get("PATH", ""), f"{toolkit}/bin", *map(str, Path("/opt/nvidia/nsight-compute").glob("*"))]
    return shutil.which(name, path=os.pathsep.join(places)) or ""


def measuring(name: str, out: Path, *options: str) -> list[str]:
    """A command of gpu_steps.py, which writes its measurements into a file."""
    return [PYTHON, "tools/gpu_steps.py", name, "--out", str(out), *options]


def look_step(folder: Path) -> Step:
    return Step("info", 45, measuring("info", folder / "info.json"))  # the first import of torch reads from disk


def build_step(gpu: bool, capability: str) -> Step:
    environment = {"SSD_EXT_BUILD": "cuda" if gpu else "cpu", "TORCH_CUDA_ARCH_LIST": capability}
    return Step("build", 240, [PYTHON, "setup.py", "-q", "build_ext", "--inplace"], environment, ("setuptools",))


def all_steps(folder: Path, gpu: bool) -> list[Step]:
    """The steps after the first, in their order; without a GPU, their small versions.

    The limits of the steps before the benchmarks add up to 565 s, but most steps need far less than their limit.
    """
    needs_gpu = "" if gpu else "needs a GPU"
    required = {"SSD_EXT_REQUIRE": "cpu,cuda" if gpu else "cpu"}
    all_threads = {"OMP_NUM_THREADS": ""}  # as in a user's run; the result file has the number

    def measure(name: str, limit: float, measured: str = "", under: list[str] | None = None, **more) -> Step:
        small = () if gpu else ("--small",)
        command = [*(under or []), *measuring(measured or name, folder / f"{name}.json", *small)]
        return Step(name, limit, command, **{"needs": SSD, **more})

    def test(name: str, limit: float, *arguments: str, **more) -> Step:
        return Step(name, limit, pytest(*arguments), required, **{"needs": SSD, **more})

    def bench(name: str, limit: float, *arguments: str, **more) -> Step:
        command = pytest(*arguments, f"--benchmark-json={folder / name}.run.json")
        environment = {"SSD_BENCH_SECONDS": "0.1", **all_threads}
        return Step(name, limit, command, environment, (*SSD, "pytest_benchmark"), **more)

    def sanitize(tool: str) -> Step:
        path = program("compute-sanitizer")
        reason = "" if path or not gpu else "needs compute-sanitizer"
        # Memory from torch's cache has old contents, and is followed by more memory of the cache: both hide errors.
        uncached = {} if tool == "synccheck" else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        under = [path, f"--tool={tool}", "--error-exitcode=9"] if gpu else None
        return measure(tool, 30, "every_case", under, environment=uncached, not_tried=reason)

    sections = [f"--section={name}" for name in ("SpeedOfLight", "SchedulerStats", "WarpStateStats")]
    metrics = ",".join(f"smsp__inst_executed.{over}" for over in ("min", "avg", "max"))  # over the schedulers
    kernels = "--kernel-name=regex:rows_kernel|walk_candidates|add_up_image|gradients"
    ncu = [program("ncu"), "--clock-control=none", "--csv", *sections, f"--metrics={metrics}", kernels]

    rooms = sorted(path.name for path in (ROOT / "csrc").iterdir())
    names = ["test_loss", "gpu/test_math", "gpu/test_sizes", "kernels/test_registry"]
    names = [f"tests/{name}.py" for name in (*(f"ops/test_{room}" for room in rooms), *names)]
    on_both = [name for name in names if (ROOT / name).exists()]
    # The README has these results, so they come first in case the time runs out.
    quoted = [f"benchmarks/test_bench_{name}.py" for name in ("loss", "detection", "nms")]
    benches = sorted(f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("test_bench_*.py"))
    benches = [*quoted, *(name for name in benches if name not in quoted)]
    whole_network = "(training-step or inference) and 21-classes and not 1-image"
    ours = f"cuda and ssd_ext and not ({whole_network})"
    golden = "tests/kernels/test_golden.py", "-k", "test_gpu" if gpu else "test_cpu"
    exported = (
        "tests/gpu/test_export.py" if gpu else "tests/export/test_torch_formats.py::test_a_file_that_takes_floats"
    )
    return [
        measure("kernels", 25),
        measure("variants", 40),
        test("test_gpu", 25, "tests/gpu/test_kernels.py", needs=("pytest",)),
        test("test_golden", 20, *golden, needs=("pytest",)),
        test("test_gpu_training", 15, "tests/gpu/test_training.py", not_tried=needs_gpu),
        test("test_ops", 20, *on_both, "-k", "cuda and not (cuda_on_cpu or on_the_cpu)", not_tried=needs_gpu),
        bench("network_and_peer", 45, "benchmarks/test_bench_gpu.py", "-k", whole_network, not_tried=needs_gpu),
        measure("network", 45),
        measure("repeat", 20),
        *map(sanitize, ("initcheck", "synccheck", "memcheck")),
        measure("counters", 60, "counted", ncu if gpu else None, not_tried="needs ncu" if gpu and not ncu[0] else ""),
        test("export", 50, exported),
        measure("demo", 30, needs=(*SSD, "matplotlib")),
        measure("options", 20),
        measure("compiled", 60),
        bench("benchmarks", 600, *benches, "-k", ours if gpu else "nms-1000-boxes-cpu-1-ssd_ext"),
    ]


# ------------------------------------------------------------------------------------------------ running them


class Report:
    """The results so far. Steps write into a working folder; `out` gets a tar of it, and a line for each step."""

    def __init__(self, out: Path, folder: Path) -> None:
        self.out, self.folder = out, folder
        self.records: dict[str, dict] = {}

    def keep(self, step: Step, outcome: str, seconds: float = 0) -> None:
        record = {"outcome": outcome, "seconds": round(seconds, 1), "at": time.strftime("%F %T")}
        self.records[step.name] = record | {"command": shlex.join(step.command)}
        self.write()

    def write(self) -> None:
        (self.folder / "steps.json").write_text(json.dumps(self.records, indent=1))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            for file in sorted(self.folder.glob("[!.]*")):
                content = file.read_bytes()[-LARGEST:]
                entry = tarfile.TarInfo(f"gpu_check/{file.name}")
                entry.size, entry.mtime = len(content), time.time()
                tar.addfile(entry, io.BytesIO(content))
        replace(self.out / "gpu_check.tar.gz", packed.getvalue())
        replace(self.out / "gpu_check.txt", "".join(f"{line}\n" for line in self.lines()).encode())

    def lines(self) -> list[str]:
        return [f"{name:20} {r['outcome']} ({r['seconds']} s)" for name, r in self.records.items()]

    def tail(self, step: Step, lines: int) -> str:
        log = self.folder / f"{step.name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def replace(path: Path, content: bytes) -> None:
    """Writes a file atomically: after a kill it has the old or the new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def run(step: Step, limit: float, report: Report, stopped: list[int]) -> str:
    """Runs a step in its own process group, with its output in the log of the step; returns the outcome.

    The step is ended when `stopped` contains a signal.
    """
    started = written = time.monotonic()
    report.keep(step, "running")
    own = {"GPU_CHECK_ENDS": str(time.time() + limit)}  # a program skips measurements that would be cut off
    environment = {"OMP_NUM_THREADS": THREADS, **os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1", **own}
    with (report.folder / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={name: value for name, value in {**environment, **step.environment}.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while (code := process.poll()) is None and not stopped and time.monotonic() - started < limit:
        time.sleep(0.05)
        if time.monotonic() - written > REFRESH:
            report.write()
            written = time.monotonic()
    outcome = ("cut off" if stopped else "timed out") if code is None else "passed"
    if code:
        outcome = f"failed with exit code {code}"
    if code is None:
        report.keep(step, outcome, time.monotonic() - started)  # in case this program is killed in end()
    end(process)
    report.keep(step, outcome, time.monotonic() - started)
    return outcome


def end(process: subprocess.Popen) -> None:
    """Ends a process and all processes that it started."""
    for number, seconds in GRACE:
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process in a driver that hangs does not end
        process.wait(1)


def check(report: Report, only: list[str], deadline: float, rehearse: bool) -> int:
    """Runs all steps, even if some fail; returns the exit code."""
    stopped: list[int] = []  # the signal that stops the run, if one has arrived
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))

    def do(step: Step, reason: str = "") -> bool:
        """Runs a step unless there is a reason not to; False if it failed."""
        if stopped:
            return True
        left = deadline - RESERVE - time.monotonic()
        reason = reason or step.why_not() or ("" if left >= LEAST else "budget used up")
        print(f"== {step.name}: {shlex.join(step.command)}", flush=True)
        outcome = f"not tried: {reason}" if reason else run(step, min(step.limit, left), report, stopped)
        if reason:
            report.keep(step, outcome)
        elif outcome != "passed":
            print(report.tail(step, 30))
        print(f"-- {step.name}: {outcome}", flush=True)
        return reason != "" or outcome == "passed"

    def look() -> dict:
        good.append(do(look_step(report.folder)))
        written = report.folder / "info.json"
        return json.loads(written.read_text()) if written.exists() else {}

    good: list[bool] = []
    machine = look()
    gpu = bool(machine.get("gpu"))
    if machine and not gpu and not rehearse:
        sys.exit("gpu-check needs a GPU that torch can use, or --rehearse: torch.cuda.is_available() is False")
    reason = "" if machine else "the step info failed"
    if any(machine.get("missing", {}).get(device) for device in ("cpu", "cuda")[: 1 + gpu]):
        good.append(do(build_step(gpu, machine["capability"])))
        missing = [device for device in ("cpu", "cuda")[: 1 + gpu] if look().get("missing", {}).get(device)]
        reason = f"no library for {' and '.join(missing)}" if missing else ""
    for step in all_steps(report.folder, gpu):
        if not only or step.name in only:
            good.append(do(step, reason))
    report.write()
    # The summary comes last, so that the end of the output shows it.
    print(gpu_report.page(report.out / "gpu_check.tar.gz"), *report.lines(), sep="\n")
    return 128 + stopped[0] if stopped else int(not all(good) or bool(reason))


def main() -> int:
    started = time.monotonic()
    names = [step.name for step in all_steps(Path("OUT"), gpu=True)]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"steps: info (always), {', '.join(names)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="run the steps, and write the report into this folder")
    what.add_argument("--read", type=Path, metavar="TAR", help="read this report")
    parser.add_argument("--only", nargs="+", metavar="STEP", default=[], choices=names, help="run only these steps")
    parser.add_argument(
        "--budget", type=float, default=560, metavar="SECONDS", help="for all steps together (default: %(default)s)"
    )
    parser.add_argument("--rehearse", action="store_true", help="run small versions of the steps, without a GPU")
    parser.add_argument("--commit", help="with --read: the tested commit, if the report does not have it")
    arguments = parser.parse_args()
    if arguments.read:
        print(gpu_report.page(arguments.read))
        print(gpu_report.write_results(arguments.read, arguments.commit))
        return 0
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        return check(Report(out, Path(folder)), arguments.only, started + arguments.budget, arguments.rehearse)


if __name__ == "__main__":
    sys.exit(main())
