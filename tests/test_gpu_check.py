"""benchmarks/gpu_check.py with steps of the tests' own: what it leaves behind, whatever becomes of a step or of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# gpu_check with other steps; the machine is not looked at, which would take torch.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu_check
gpu_check.GRACE = tuple((number, 1) for number, _ in gpu_check.GRACE)
gpu_check.MACHINE = "import json; print(json.dumps(dict.fromkeys(['gpu', 'capability', 'torch', 'cuda', 'python'])))"
gpu_check.all_steps = lambda out, pictures, machine: [
    gpu_check.Step(group, name, [gpu_check.PYTHON, "-c", code], needs=tuple(needs))
    for group, name, code, *needs in STEPS
]
sys.exit(gpu_check.main())
"""
GOOD = "print('well done')"
BAD = "print('a mistake'); raise SystemExit(3)"
# Writes the time into a file for ever, in a process that a process has started, and that heeds no Ctrl-C.
BEATS = """
import os, signal, subprocess, sys, time
beat = '''
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    with open({file!r}, "w") as f:
        f.write(str(time.time()))
    time.sleep(0.05)
'''
subprocess.Popen([sys.executable, "-c", beat])
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def check(tmp_path):
    """Starts gpu_check with (group, name, code, modules needed) and options; its process, and its folder."""
    out = tmp_path / "out"

    def start(steps, *options):
        program = f"STEPS = {steps!r}\n{PROGRAM}"
        command = [sys.executable, "-c", program, "--out", str(out), "--rehearse", *map(str, options)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start, out


def outcomes(out):
    return {step["name"]: step["outcome"] for step in json.loads((out / "gpu_check.json").read_text())["steps"]}


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute")


def test_steps_follow_a_failure_and_each_has_log_and_record(check):
    start, out = check
    process = start([("a", "one", BAD), ("a", "two", GOOD), ("b", "three", GOOD, "no_such_module")])
    printed = process.communicate()[0]
    assert process.returncode == 1, printed
    reason = "not tried: no module no_such_module"
    assert outcomes(out) == {"one": "failed with exit code 3", "two": "passed", "three": reason}
    assert (out / "one.log").read_text() == "a mistake\n"
    assert json.loads((out / "two.json").read_text())["outcome"] == "passed"
    text = (out / "gpu_check.txt").read_text()
    assert all(part in text for part in ("a mistake", "well done", reason))


def test_a_failed_build_leaves_out_the_rest(check):
    start, out = check
    process = start([("build", "build", BAD), ("a", "two", GOOD)])
    process.communicate()
    assert process.returncode == 1
    assert outcomes(out) == {"build": "failed with exit code 3", "two": "not tried: the build failed"}


def test_calls_add_up_to_one_report(check):
    start, out = check
    steps = [("a", "one", GOOD), ("b", "two", GOOD), ("b", "three", BAD), ("c", "four", GOOD)]
    assert start(steps, "--only", "one").wait() == 0
    assert outcomes(out) == {"one": "passed"}
    assert start(steps, "--only", "b").wait() == 1
    assert outcomes(out) == {"one": "passed", "two": "passed", "three": "failed with exit code 3"}
    assert "four                         not asked for yet" in (out / "gpu_check.txt").read_text()


def test_a_step_that_runs_out_is_ended_with_its_grandchildren(check, tmp_path):
    start, out = check
    beat = tmp_path / "beat"
    process = start([("a", "long", BEATS.format(file=str(beat))), ("a", "next", GOOD)], "--limit", 8)
    process.communicate()
    assert process.returncode == 1
    assert outcomes(out) == {"long": "timed out", "next": "passed"}
    assert (out / "long.log").read_text().startswith("begun\n")
    last = beat.read_text()
    time.sleep(2)
    assert beat.read_text() == last


def test_budget(check):
    start, out = check
    steps = [("a", "one", GOOD), ("a", "two", "import time; time.sleep(600)"), ("a", "three", GOOD)]
    process = start(steps, "--budget", 12)
    process.communicate()
    assert process.returncode == 1
    assert outcomes(out) == {"one": "passed", "two": "timed out", "three": "not tried: budget used up"}
    # What was found out in an earlier call is not lost to one that had no time for it.
    assert start(steps, "--only", "one", "three", "--budget", 0).wait() == 0
    assert outcomes(out) == {"one": "passed", "two": "timed out", "three": "not tried: budget used up"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_the_report(check, tmp_path, number):
    start, out = check
    beat = tmp_path / "beat"
    steps = [("a", "one", GOOD), ("a", "long", BEATS.format(file=str(beat))), ("a", "never", GOOD)]
    process = start(steps)
    until(beat.exists)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number
    assert outcomes(out) == {"one": "passed", "long": "cut off"}
    assert json.loads((out / "long.json").read_text())["outcome"] == "cut off"
    assert "begun" in (out / "gpu_check.txt").read_text()
    last = beat.read_text()
    time.sleep(2)
    assert beat.read_text() == last


def test_a_killed_gpu_check_says_which_step_was_cut(check):
    start, out = check
    steps = [("a", "one", GOOD), ("a", "long", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")]
    process = start(steps)
    until(lambda: (out / "long.log").exists() and (out / "long.log").read_text().endswith("\n"))
    process.kill()
    process.communicate()
    os.kill(int((out / "long.log").read_text()), signal.SIGKILL)
    assert outcomes(out) == {"one": "passed", "long": "running"}
    assert start(steps, "--only", "one").wait() == 0
    assert outcomes(out) == {"one": "passed", "long": "cut off: gpu_check was killed"}


def test_unknown_step_is_named_beside_the_known(check):
    start, out = check
    process = start([("a", "one", GOOD), ("b", "two", GOOD)], "--only", "one", "tow")
    printed = process.communicate()[0]
    assert process.returncode == 2
    assert "unknown step tow" in printed
    assert all(name in printed for name in ("a: one", "b: two"))
    assert not out.exists()


def test_the_real_steps(tmp_path):
    """Every file of tests for the GPU and no test that needs none; a name is that of one step only."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_check
    finally:
        sys.path.remove(str(BENCHMARKS))
    steps = gpu_check.all_steps(tmp_path, None, {"gpu": "some GPU", "capability": "9.0"})
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert {"test_gpu", "test_golden", "test_nms", "test_registry", "bench_loss"} <= set(names)
    unwanted = "sanitizers", "cuda_on_cpu", "cuda_build", "build", "cli", "abi", "gpu_check", "bench_report"
    assert not {f"test_{name}" for name in unwanted} & set(names)
    for step in steps:
        assert all((gpu_check.ROOT / part).exists() for part in step.command if part.endswith(".py"))
