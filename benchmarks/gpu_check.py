"""All that has to be seen on a machine with a GPU, in pieces: `make gpu-check OUT=folder ONLY="tests" BUDGET=540`.

Works with the Python that runs this file: no virtual environment, no internet, and a step whose modules are missing
there is named and left out. Each step writes OUT/<step>.log as it goes and OUT/<step>.json when it begins and ends;
OUT/gpu_check.txt and gpu_check.json are made of these records after every step, so that calls with different --only
add up to one report, and whatever is killed leaves what it had. The exit code is 0 if every step of this call passed or
could not be tried for a reason that the report names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
SSD = ("torchvision", "PIL", "numpy", "tqdm")  # what `import ssd.train` takes
GRACE = ((signal.SIGINT, 20), (signal.SIGTERM, 5))  # pytest and `ssd train` save what they have on Ctrl-C; then SIGKILL
MACHINE = """import json, sys, torch
gpu = torch.cuda.is_available()
print(json.dumps({
    "gpu": torch.cuda.get_device_name() if gpu else None,
    "capability": "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else "9.0",
    "torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0],
}))"""


@dataclass(frozen=True)
class Step:
    group: str
    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    limit: float = 600  # seconds, if the budget allows as many
    needs: tuple[str | Path, ...] = ()  # modules, and files that other steps write
    not_tried: str = ""  # why not, where that is known beforehand

    def why_not(self) -> str:
        """The reason why the step cannot be tried, or an empty string."""
        missing = [f"{n} is not there" for n in self.needs if isinstance(n, Path) and not n.exists()]
        modules = [n for n in self.needs if isinstance(n, str) and importlib.util.find_spec(n) is None]
        return self.not_tried or ", ".join([*(f"no module {n}" for n in modules), *missing])


# ---------------------------------------------------------------------------------------------------- the steps


def all_steps(out: Path, pictures: Path | None, machine: dict) -> list[Step]:
    """Every step in the order in which they run; without a GPU, with what of it can be rehearsed."""
    gpu, arch = machine["gpu"] is not None, {"TORCH_CUDA_ARCH_LIST": machine["capability"]}
    required = {**arch, "SSD_EXT_REQUIRE": "cpu,cuda" if gpu else "cpu"}
    build = [PYTHON, "setup.py", "-q", "build_ext", "--inplace"]
    return [
        Step("build", "build", build, {**arch, "SSD_EXT_BUILD": "cuda"}, needs=("setuptools",)),
        Step("build", "info", [PYTHON, "-c", "import ssd_ext; print(ssd_ext.info())"], limit=60),
        *test_steps(gpu, required),
        *sanitizer_steps(gpu, required),
        *benchmark_steps(gpu, out),
        *training_steps(gpu, out, pictures),
    ]


def pytest(*arguments: str) -> list[str]:
    """A run of pytest that names each test before it begins, and shows where Python stands if a kernel hangs."""
    options = "-v -p no:cacheprovider --tb=short --maxfail=50 --durations=10 -o faulthandler_timeout=120"
    return [PYTHON, "-m", "pytest", *options.split(), *arguments]


def test_steps(gpu: bool, required: dict[str, str]) -> list[Step]:
    """The test files that use a GPU, each in a process of its own: after an illegal access no kernel runs any more."""
    steps = []
    for file in sorted((ROOT / "tests").glob("test_*.py"), key=lambda f: (not f.stem.startswith("test_gpu"), f.stem)):
        text = file.read_text()
        on_gpu = file.stem.startswith("test_gpu") and file.stem != "test_gpu_check"
        # The fixture of conftest.py; a file that parametrizes the name itself only compiles for a device.
        on_both = re.search(r"^def test_\w+\([^)]*\bdevice\b", text, re.MULTILINE) and '("device"' not in text
        if on_gpu or on_both or file.stem == "test_golden":
            selection = ["-k", "cuda"] if gpu and on_both and not on_gpu else []
            needs = SSD if re.search(r"^(from|import) (ssd|torchvision|PIL)\b", text, re.MULTILINE) else ()
            command = pytest(f"tests/{file.name}", *selection)
            steps.append(Step("tests", file.stem, command, required, 300, ("pytest", *needs)))
    return steps


def sanitizer_steps(gpu: bool, required: dict[str, str]) -> list[Step]:
    """Each tool on every kernel; an array out of torch's cache would have room behind it that no tool objects to."""
    places = os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    reason = "" if program or not gpu else "compute-sanitizer is not on PATH"
    steps = []
    for tool in ("memcheck", "initcheck", "racecheck", "synccheck"):
        command = [str(program), f"--tool={tool}", "--error-exitcode=9", PYTHON, "tests/compare.py", "gpu"]
        if not gpu:  # that the cases can be imported
            command = [PYTHON, "-c", "import runpy; runpy.run_path('tests/compare.py')"]
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool in ("memcheck", "initcheck") else {}
        steps.append(Step("sanitizers", tool, command, required | uncached, 240, not_tried=reason))
    return steps


def benchmark_steps(gpu: bool, out: Path) -> list[Step]:
    """Each file of benchmarks with results of its own; bench_result makes one result file of all that are there."""
    needs = ("pytest", "pytest_benchmark", *SSD)
    selection = "cuda" if gpu else "cpu-1-ssd_ext or not cpu"  # what is for a GPU only says so
    steps = []
    for file in sorted((ROOT / "benchmarks").glob("test_bench_*.py")):
        name = file.stem.removeprefix("test_")
        command = pytest(f"benchmarks/{file.name}", "-k", selection, f"--benchmark-json={out / name}.run.json")
        steps.append(Step("benchmarks", name, command, limit=480, needs=needs))
    command = [PYTHON, str(ROOT / "benchmarks" / "compact.py"), str(out), "--out", str(out)]
    return [*steps, Step("benchmarks", "bench_result", command, needs=needs)]


def training_steps(gpu: bool, out: Path, pictures: Path | None) -> list[Step]:
    """The demo, and the README's training on the BCCD pictures; a training that was cut off is resumed."""
    ssd, run = [PYTHON, "-m", "ssd"], out / "bccd"
    small = []
    if not gpu:
        few = "import sys, ssd.cli, ssd.demo; ssd.demo.N_TRAIN = ssd.demo.N_TEST = 16; sys.exit(ssd.cli.main())"
        ssd = [PYTHON, "-c", few]
        small = ["--epochs", "1", "--width", "0.01", "--no-bf16", "--workers", "0"]
    begun = (run / "last.pt").exists()
    train = ["--resume"] if begun else [str(pictures), *small]
    some = sorted(str(p) for p in pictures.glob("JPEGImages/*"))[:24] if pictures else []
    commands = {
        "demo": ["demo", "--out", str(out / "demo"), *small],
        "bccd_train": ["train", *train, "--out", str(run)],
        "bccd_eval": ["eval", str(pictures), "--weights", str(run / "best.pt"), "--split", "test"],
        "bccd_detect": ["detect", *some, "--weights", str(run / "best.pt"), "--out", str(out / "found")],
    }
    waiting = [PYTHON, str(ROOT / "benchmarks" / "training_step.py"), "--data", str(pictures), "--workers"]
    waiting += (
        ["16", "--images", "32", "--steps", "50"] if gpu else ["1", "--images", "2", "--steps", "2", "--width", "0.01"]
    )
    reason = "" if pictures else "no --bccd folder"
    steps = [Step("training", "input_waiting", waiting, limit=300, needs=("pytest", *SSD), not_tried=reason)]
    for name, command in commands.items():
        needs = [*SSD, "matplotlib", *([run / "best.pt"] if "--weights" in command else [])]
        reason = "no --bccd folder" if name != "demo" and pictures is None else ""
        steps.append(Step("training", name, [*ssd, *command], limit=480, needs=tuple(needs), not_tried=reason))
    return steps


# ------------------------------------------------------------------------------------------------ running them


def run(step: Step, limit: float, keep: Callable[[str, float], None], log: Path, stopped: list[int]) -> str:
    """Runs a step in a process group of its own, straight into its log; `keep` writes its record. Its outcome.

    A signal that comes into `stopped` ends it.
    """
    started = time.monotonic()
    keep("running", 0)
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1", **step.environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while (code := process.poll()) is None and not stopped and time.monotonic() - started < limit:
        time.sleep(0.1)
    if code is None:
        outcome = "cut off" if stopped else "timed out"
        keep(outcome, time.monotonic() - started)  # before whoever stops us loses patience
    else:
        outcome = "passed" if code == 0 else f"failed with exit code {code}"
    end(process)
    keep(outcome, time.monotonic() - started)
    return outcome


def end(process: subprocess.Popen) -> None:
    """Ends a process, and whatever it started and left behind."""
    for number, seconds in GRACE:
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a driver that hangs keeps its process
        process.wait(5)


def replace(path: Path, content: dict | str) -> None:
    """Writes a text or a JSON file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    os.replace(temporary, path)


def tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def report(out: Path, steps: list[Step], machine: str, running: str = "") -> list[str]:
    """Writes gpu_check.txt and gpu_check.json from the records of this call and of earlier ones; a line per step."""
    records = {s.name: json.loads(f.read_text()) for s in steps if (f := out / f"{s.name}.json").exists()}
    lines, outputs = [], []
    for name, record in records.items():
        if record["outcome"] == "running" and name != running:
            record["outcome"] = "cut off: gpu_check was killed"
        elsewhere = "" if record["machine"] == machine else f" [{record['machine']}]"
        lines.append(f"{name:28} {record['outcome']} ({record['seconds']} s, {record['at']}){elsewhere}")
        if output := tail(out / f"{name}.log", 20 if record["outcome"] == "passed" else 200):
            outputs.append(f"\n===== {name}\n{output}")
    lines += [f"{s.name:28} not asked for yet" for s in steps if s.name not in records]
    replace(out / "gpu_check.json", {"machine": machine, "steps": list(records.values())})
    replace(out / "gpu_check.txt", "\n".join([machine, "", *lines, *outputs]) + "\n")
    return lines


def run_all(
    steps: list[Step], chosen: list[Step], out: Path, deadline: float, limit: float | None, machine: str
) -> int:
    """Runs the chosen steps one after another; whatever becomes of one, the others follow. The exit code."""
    stopped: list[int] = []  # the signal that ends this call
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))

    def keep(step: Step, outcome: str, seconds: float) -> None:
        record = {"name": step.name, "outcome": outcome, "seconds": round(seconds), "at": time.strftime("%F %T")}
        replace(out / f"{step.name}.json", record | {"command": shlex.join(step.command), "machine": machine})
        report(out, steps, machine, step.name)

    bad, build_failed = False, False
    for step in chosen:
        if stopped:
            break
        print(f"== {step.name}: {shlex.join(step.command)}", flush=True)
        left = deadline - time.monotonic()
        reason = "the build failed" if build_failed else step.why_not() or ("budget used up" if left < 1 else "")
        log, record = out / f"{step.name}.log", out / f"{step.name}.json"
        if reason:
            outcome = f"not tried: {reason}"
            if not record.exists() or json.loads(record.read_text())["outcome"].startswith("not tried"):
                keep(step, outcome, 0)  # what an earlier call found out stands
        else:
            outcome = run(step, min(limit or step.limit, left), partial(keep, step), log, stopped)
            print(tail(log, 3 if outcome == "passed" else 40))
        print(f"-- {step.name}: {outcome}", flush=True)
        failed = not outcome.startswith(("passed", "not tried"))
        bad, build_failed = bad or failed, build_failed or (failed and step.name == "build")
    print("", machine, *report(out, steps, machine), sep="\n")
    return 128 + stopped[0] if stopped else int(bad)


def main() -> int:
    started = time.monotonic()
    nothing = {"gpu": None, "capability": ""}
    known = all_steps(Path("OUT"), None, nothing)
    groups = {s.group: [t.name for t in known if t.group == s.group] for s in known}
    names = "\n".join(f"  {group}: {' '.join(names)}" for group, names in groups.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"steps:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for logs, records and the report")
    parser.add_argument("--only", nargs="+", metavar="STEP", default=list(groups), help="steps, or groups of steps")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="for the whole call")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="for one step, instead of its own limit")
    parser.add_argument("--bccd", type=Path, help="folder of the BCCD pictures, to train on them too")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: do what needs none")
    arguments = parser.parse_args()
    if unknown := [n for n in arguments.only if n not in groups and n not in [s.name for s in known]]:
        parser.error(f"unknown step {', '.join(unknown)}; known:\n{names}")
    # In a process of its own: this one must not hold memory of the GPU.
    machine = json.loads(subprocess.run([PYTHON, "-c", MACHINE], stdout=subprocess.PIPE, check=True).stdout)
    if machine["gpu"] is None and not arguments.rehearse:
        sys.exit("gpu-check needs a GPU that torch can use: torch.cuda.is_available() is False; or --rehearse")
    text = "{gpu}, torch {torch}, CUDA {cuda}, Python {python}".format(**machine).replace("None,", "no GPU,", 1)
    out, pictures = arguments.out.resolve(), arguments.bccd and arguments.bccd.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = all_steps(out, pictures, machine)
    chosen = [s for s in steps if s.group in arguments.only or s.name in arguments.only]
    return run_all(steps, chosen, out, started + arguments.budget, arguments.limit, text)


if __name__ == "__main__":
    sys.exit(main())
