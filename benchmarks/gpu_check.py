"""All that has to be seen on a machine with a GPU, in one command: `make gpu-check OUT=folder`.

Builds for this machine's GPU with the Python that runs this file (no virtual environment, no internet), then runs the
tests with CUDA required, the kernels under compute-sanitizer, and the benchmarks. Every step runs, whatever became of
those before it. Writes gpu_check.json and gpu_check.txt into the folder; the exit code is 0 if every step passed or
could not be tried for a reason that the report names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TAIL = 60  # lines of a step's output in the report
SANITIZERS = ("memcheck", "racecheck", "synccheck")


@dataclass
class Step:
    name: str
    outcome: str  # "passed", "failed", "timed out" or "not tried: <reason>"
    seconds: float = 0.0
    output: str = ""


def run(name: str, command: list[str], environment: dict[str, str], limit: float) -> Step:
    """Runs one command in the project's folder."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
        )
        outcome, output = ("failed" if done.returncode else "passed"), done.stdout
    except subprocess.TimeoutExpired as error:
        outcome, output = "timed out", (error.stdout or b"").decode(errors="replace")
    step = Step(name, outcome, time.perf_counter() - started, "\n".join(output.splitlines()[-TAIL:]))
    print(f"{step.output}\n-- {name}: {outcome} after {step.seconds:.0f} s", flush=True)
    return step


def training(python: str, out: Path, pictures: Path | None, environment: dict[str, str], limit: float) -> list[Step]:
    """The demo, and the README's training on the BCCD pictures where there are some."""
    ssd = [python, "-m", "ssd.cli"]
    results = [run("demo", [*ssd, "demo", "--out", str(out / "demo")], environment, limit)]
    if pictures is None:
        return [*results, Step("BCCD", "not tried: no --bccd folder")]
    options = "--split trainval --val-split test --batch-norm --loc-loss smooth_l1 --lr 1e-2 --clip-grad 5"
    options += " --schedule onecycle --epochs 25 --flips"
    command = [*ssd, "train", str(pictures), "--out", str(out / "bccd"), *options.split()]
    results.append(run("BCCD: train", command, environment, limit))
    command = [*ssd, "eval", str(pictures), "--weights", str(out / "bccd" / "best.pt"), "--split", "test"]
    return [*results, run("BCCD: eval", command, environment, limit)]


def steps(limit: float, out: Path, pictures: Path | None) -> list[Step]:
    """Without a GPU (a rehearsal) all that needs none: the build, and the tests with the kernels run on the CPU."""
    python = sys.executable
    gpu = torch.cuda.is_available()
    capability = "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else "9.0"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    building = {**environment, "SSD_EXT_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": capability}
    required = {**environment, "SSD_EXT_REQUIRE": "cpu,cuda" if gpu else "cpu", "TORCH_CUDA_ARCH_LIST": capability}
    results = [run("build", [python, "setup.py", "-q", "build_ext", "--inplace"], building, limit)]
    if results[0].outcome != "passed":
        return results
    results.append(run("info", [python, "-c", "import ssd_ext; print(ssd_ext.info())"], environment, limit))
    results.append(
        run("tests", [python, "-m", "pytest", "-q", "--maxfail=20", "--durations=10", "tests"], required, limit)
    )
    if not gpu:
        needing = [*(f"compute-sanitizer {tool}" for tool in SANITIZERS), "benchmarks", "demo", "BCCD"]
        return results + [Step(name, "not tried: no GPU") for name in needing]
    for tool in SANITIZERS:
        name = f"compute-sanitizer {tool}"
        if shutil.which("compute-sanitizer") is None:
            results.append(Step(name, "not tried: compute-sanitizer is not on PATH"))
            continue
        command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", python, "tests/cuda_cases.py"]
        results.append(run(name, command, required, limit))
    if importlib.util.find_spec("pytest_benchmark") is None:
        results.append(Step("benchmarks", "not tried: pytest-benchmark is not installed"))
    else:
        json_file = out / "benchmarks.json"
        command = [python, "-m", "pytest", "-q", "benchmarks", "-k", "cuda", f"--benchmark-json={json_file}"]
        results.append(run("benchmarks", command, environment, 2 * limit))
        if results[-1].outcome == "passed":
            command = [python, "benchmarks/compact.py", str(json_file), str(out)]
            results.append(run("result file", command, environment, limit))
    with tempfile.TemporaryDirectory() as folder:  # runs are large; the reports keep what they printed
        results += training(python, Path(folder), pictures, environment, limit)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports")
    parser.add_argument("--bccd", type=Path, help="folder of the BCCD pictures, to train on them too")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: do what needs none")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one step (default: %(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.rehearse:
        sys.exit("gpu-check needs a GPU that torch can use: torch.cuda.is_available() is False")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = steps(arguments.limit, arguments.out.resolve(), arguments.bccd)
    report = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU (a rehearsal)",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "steps": [asdict(step) for step in results],
    }
    (arguments.out / "gpu_check.json").write_text(json.dumps(report, indent=1))
    lines = [f"{report['gpu']}, torch {report['torch']}, CUDA {report['cuda']}, Python {report['python']}", ""]
    lines += [f"{step.name:28} {step.outcome} ({step.seconds:.0f} s)" for step in results]
    lines += [f"\n===== {step.name}\n{step.output}" for step in results if step.output]
    (arguments.out / "gpu_check.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[: 2 + len(results)]))
    return int(any(step.outcome in ("failed", "timed out") for step in results))


if __name__ == "__main__":
    sys.exit(main())
