"""tools/gpu_check.py with steps of the tests' own: what it leaves when a step fails, hangs or is killed with it."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu_check
import gpu_report
import gpu_steps
import pytest
import torch
from benchmark_rows import bench

ROOT = gpu_check.ROOT
# gpu_check with other steps and no patience. A step's program gets the path of its result file, without the suffix.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import gpu_check
gpu_check.GRACE = tuple((number, 0.5) for number, _ in gpu_check.GRACE)
gpu_check.RESERVE, gpu_check.LEAST, gpu_check.REFRESH = 1, 0.1, REFRESH
def step(folder, name, code, limit=60, needs=()):
    return gpu_check.Step(name, limit, [gpu_check.PYTHON, "-c", code, str(folder / name)], needs=tuple(needs))
gpu_check.look_step = lambda folder: step(folder, "info", LOOK)
gpu_check.build_step = lambda gpu, capability: step(gpu_check.Path(BUILT), "build", BUILD)
gpu_check.all_steps = lambda folder, gpu: [step(folder, *described) for described in STEPS]
sys.exit(gpu_check.main())
"""
LOOK = """
import json, os, sys
json.dump({"gpu": None, "capability": "9.0", "missing": {"cpu": None if os.path.exists(BUILT) else "broken"}},
          open(sys.argv[1] + ".json", "w"))
"""
GOOD = "import sys; open(sys.argv[1] + '.json', 'w').write('{\"number\": 7}'); print('well done')"
BAD = "print('a mistake'); raise SystemExit(3)"
# Says that it has begun; then writes the time into a file for ever, in a process that it has started, which heeds no
# signal but SIGKILL.
BEATS = """
import signal, subprocess, sys, time
beat = '''
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    with open({file!r}, "w") as f:
        f.write(str(time.time()))
    time.sleep(0.02)
'''
print("begun", flush=True)
subprocess.Popen([sys.executable, "-c", beat])
time.sleep(600)
"""


@pytest.fixture
def check(tmp_path):
    """Starts gpu_check with (name, code, limit, modules needed) and options; its process, and its folder."""
    out = tmp_path / "out"

    def start(steps, *options, built=__file__, build=BAD, refresh=60):
        look = f"BUILT = {str(built)!r}\n{LOOK}"
        values = {"STEPS": steps, "BUILT": str(built), "BUILD": build, "LOOK": look, "REFRESH": refresh}
        program = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + PROGRAM
        command = [sys.executable, "-c", program, "--out", str(out), "--rehearse", *map(str, options)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}  # of the working folder, which a kill leaves behind
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    return start, out


def reported(out):
    """The files of the report, and the outcome of each step but the first."""
    files = gpu_report.read(out / "gpu_check.tar.gz")
    return files, {name: record["outcome"] for name, record in files["steps.json"].items() if name != "info"}


def until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


def has_stopped(beat):
    last = beat.read_text()
    time.sleep(0.5)
    return beat.read_text() == last


def test_steps_follow_a_failure_and_all_is_in_one_file(check):
    start, out = check
    process = start([("one", BAD), ("two", GOOD), ("three", GOOD, 60, ["no_such_module"])])
    printed = process.communicate()[0]
    assert process.returncode == 1, printed
    files, outcomes = reported(out)
    reason = "not tried: no module no_such_module"
    assert outcomes == {"one": "failed with exit code 3", "two": "passed", "three": reason}
    assert (files["one.log"], files["two.log"], files["two.json"]) == ("a mistake\n", "well done\n", {"number": 7})
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.tar.gz", "gpu_check.txt"]
    assert reason in (out / "gpu_check.txt").read_text()
    assert "* number: 7" in printed
    assert "a mistake" in printed


def test_only_the_steps_that_are_named(check):
    start, out = check
    assert start([("one", GOOD), ("two", BAD), ("three", GOOD)], "--only", "one", "three").wait() == 0
    assert reported(out)[1] == {"one": "passed", "three": "passed"}
    process = start([("one", GOOD), ("two", GOOD)], "--only", "tow")
    assert "invalid choice: 'tow' (choose from" in process.communicate()[0]
    assert process.returncode == 2


def test_the_budget_is_kept_and_grandchildren_end(check, tmp_path):
    start, out = check
    beat = tmp_path / "beat"
    steps = [("one", GOOD), ("limited", BEATS.format(file=str(beat)), 1), ("long", "import time; time.sleep(600)")]
    started = time.monotonic()
    process = start([*steps, ("late", GOOD)], "--budget", 6)
    process.communicate()
    assert process.returncode == 1
    assert 5 <= time.monotonic() - started < 60  # not 600
    files, outcomes = reported(out)
    expected = {"one": "passed", "limited": "timed out", "long": "timed out", "late": "not tried: budget used up"}
    assert outcomes == expected
    assert files["limited.log"].startswith("begun\n")
    assert has_stopped(beat)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_the_report(check, tmp_path, number):
    start, out = check
    beat = tmp_path / "beat"
    process = start([("one", GOOD), ("long", BEATS.format(file=str(beat)), 600), ("never", GOOD)])
    until(beat.exists)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    files, outcomes = reported(out)
    assert outcomes == {"one": "passed", "long": "cut off"}
    assert files["long.log"].startswith("begun\n")
    assert has_stopped(beat)


@pytest.mark.parametrize(("moment", "refresh"), [(0, 60), (1, 60), (2, 0)])
def test_a_killed_one_leaves_what_had_ended(check, tmp_path, moment, refresh):
    """In the first step, in a later one, and while the report is written again and again."""
    start, out = check
    names, marker = ["one", "two", "three"], tmp_path / "marker"
    wait = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    steps = [(name, f"{GOOD}\n{wait if i == moment else ''}") for i, name in enumerate(names)]
    process = start(steps, refresh=refresh)
    until(lambda: marker.exists() and marker.read_text())
    time.sleep(0.3)
    process.kill()
    process.communicate()
    os.kill(int(marker.read_text()), signal.SIGKILL)
    files, outcomes = reported(out)
    assert outcomes == dict.fromkeys(names[:moment], "passed") | {names[moment]: "running"}
    ended = names[:moment] if refresh else names
    assert all(files[f"{name}.json"] == {"number": 7} for name in ended)
    assert len(list(out.glob("[!.]*"))) == 2


def test_a_report_is_whole_or_not_replaced(tmp_path, monkeypatch):
    file = tmp_path / "report"
    gpu_check.replace(file, b"before")
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gpu_check.replace(file, b"after")
    assert file.read_bytes() == b"before"


@pytest.mark.parametrize("works", [True, False])
def test_libraries_are_built_where_they_do_not_load(check, tmp_path, works):
    start, out = check
    built = tmp_path / "built"
    build = f"open({str(built)!r}, 'w')" if works else BAD
    process = start([("one", GOOD)], built=built, build=build)
    assert process.wait() == (0 if works else 1)
    assert reported(out)[1] == {
        "build": "passed" if works else "failed with exit code 3",
        "one": "passed" if works else "not tried: no library for cpu",
    }


def test_the_real_steps(tmp_path):
    """Each names files and programs that are there, and has a name of its own."""
    for gpu in (True, False):
        steps = [gpu_check.look_step(tmp_path), *gpu_check.all_steps(tmp_path, gpu)]
        names = [step.name for step in steps]
        assert len(set(names)) == len(names)
        for step in steps:
            files = [part.partition("::")[0] for part in step.command if part.partition("::")[0].endswith(".py")]
            assert files
            assert all((ROOT / file).exists() for file in files)
            if "tools/gpu_steps.py" in files:
                assert step.command[step.command.index("tools/gpu_steps.py") + 1] in gpu_steps.PROGRAMS
    for prediction in gpu_report.PREDICTIONS:
        assert prediction.seen[0] in names
        assert prediction.seen[0] != "kernels" or prediction.seen[1] in gpu_steps.cases(small=False)
    made = shlex.split((ROOT / "Makefile").read_text().partition("\ngpu-check:\n")[2].partition("\n\n")[0])
    assert {"tools/gpu_check.py", "--out", "--only", "--budget", "--rehearse)"} <= {
        part.split(",")[-1] for part in made
    }


def test_what_fails_or_has_no_time_is_named_and_the_rest_measured(tmp_path, monkeypatch):
    results = gpu_steps.Results(tmp_path / "r.json")
    results.measure("wrong", lambda: 1 / 0)
    results.measure("right", lambda: {"us": 3})
    monkeypatch.setattr(gpu_steps, "ENDS", time.time() + 4)
    results.measure("late", lambda: 1)
    failed = "failed: ZeroDivisionError: division by zero"
    expected = {"wrong": failed, "right": {"us": 3}, "late": "not measured: no time was left"}
    assert json.loads((tmp_path / "r.json").read_text()) == expected


def test_where_two_runs_differ():
    state = {"weight": torch.ones(4), "bias": torch.ones(1)}
    run = [1.0, 2.0], state
    assert gpu_steps.apart(run, ([1.0, 2.0], {name: x.clone() for name, x in state.items()})) == "equal bits"
    assert "not finite" in gpu_steps.apart(run, ([1.0, math.nan], state))
    assert gpu_steps.apart(run, ([1.0, 2.5], state | {"weight": torch.tensor([1.0, 1.0, 1.0, 1.5])})) == {
        "losses differ from step": 2,
        "last losses": (2.0, 2.5),
        "tensors that differ": "1 of 2",
        "the worst, relative": {"weight": 0.25},
    }


def test_variants_are_found_in_the_library_and_run_in_turn(tmp_path, monkeypatch):
    import ssd_ext

    monkeypatch.setattr(ssd_ext, "__file__", str(tmp_path / "__init__.py"))
    results = gpu_steps.Results(tmp_path / "variants.json")
    gpu_steps.variants(results, small=True)
    assert results.values == {"variants": "no variants in this library"}

    def run(command, check, env):
        Path(command[command.index("--out") + 1]).write_text(json.dumps(env["SSD_EXT_VARIANT"]))

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "_cuda.abi3.so").write_bytes(b"\0SSD_EXT_VARIANT=wide\0SSD_EXT_VARIANT=\0SSD_EXT_VARIANT=wide\0")
    results = gpu_steps.Results(tmp_path / "variants.json")
    gpu_steps.variants(results, small=True)
    turns = {f"{name or 'without'}, turn {turn}": name for turn in (1, 2) for name in ("", "wide")}
    assert list(results.values.items()) == list(turns.items())


@pytest.fixture
def report(tmp_path):
    """A report as of a GPU, with numbers that an H200 gave, and the one of another version beside it."""
    table = [
        {"name": "void ssd_ext::(anonymous namespace)::rows_kernel<float, 6144>(...)", "launches": 1.0, "us": 14.4},
        {"name": "void ssd_ext::(anonymous namespace)::add_up_image_kernel<float>()", "launches": 1.0, "us": 6.5},
    ]
    versions = {"python": "3.12.3", "torch": "2.11.0+cu130", "torchvision": "0.26.0+cu130"}
    here = {"cores": 16, "threads": 16, "instructions": "AVX512", "gpu": "NVIDIA H200", "versions": versions}
    sizes = {"images": 32, "classes": 21}

    def run(*rows):
        return {
            "machine_info": {"cpu": {"brand_raw": "Some Xeon"}, "machine": "x86_64", "ssd_ext": here},
            "commit_info": {"id": None, "dirty": False},
            "datetime": "2026-12-31T00:00:00",
            "benchmarks": [bench("loss", "forward and backward", sizes, *row, device="cuda") for row in rows],
            "left_out": [],
        }

    files = {
        "steps.json": {
            "info": {"outcome": "passed", "seconds": 9.1},
            "kernels": {"outcome": "passed", "seconds": 21.5},
            "memcheck": {"outcome": "failed with exit code 9", "seconds": 30},
        },
        "info.json": {"gpu": "NVIDIA H200", "versions": versions},
        "kernels.json": {
            "loss 32x21": {"eager_us": 441.0, "graph_us": 81.2, "kernels": table},
            "nms 20000": "failed: RuntimeError: out of memory",
        },
        "network.json": {"training 32 bf16": {"ms": [24.6, 24.35], "loss": 45.8}},
        "memcheck.log": "Invalid __global__ read of size 4 bytes",
        "benchmarks.run.json": run(("ssd_ext", 0.441)),
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with tarfile.open(tmp_path / "report.tar.gz", "w:gz") as tar:
        tar.add(folder, "gpu_check")
    return tmp_path / "report.tar.gz", run


def test_the_page_has_measurements_beside_predictions(report):
    text = gpu_report.page(report[0])
    assert text.startswith("# Measured on NVIDIA H200\n")
    for line in (
        "| memcheck | failed with exit code 9 | 30 |",
        "| loss 32x21, in a graph | 81 | 81.2 | 13 | 43 | 40 | 1.89x |",
        "| training 32 bf16 | 24.4 | 24.4 | 15 | - | 18 | 1.35x |",
        "| nms 20000 | 631 | - | - | 245 | 170 | - |",
        "| rows_kernel | 4.4 | - | 12.4 | 14.4 | 119 | - |",
        "| gaps: the graph minus its kernels | 5 | - | 5 | 60.3 | 5 | - |",
        "* nms 20000: failed: RuntimeError: out of memory",
        "Invalid __global__ read of size 4 bytes",
    ):
        assert line in text.splitlines()


def test_results_keep_what_others_took_with_the_same_versions(report, tmp_path, monkeypatch):
    tar, run = report
    import compact

    old = compact.compact([run(("ssd_ext", 0.9), ("torchvision", 31.1), ("plain_pytorch", 8.0))])
    (out,) = (tmp_path / f"{compact.machine_name(old)}.json",)
    for versions, contenders in ((old["versions"], ["ssd_ext", "torchvision"]), ({"torch": "2.12"}, ["ssd_ext"])):
        out.write_text(compact.dumps(old | {"versions": versions}))
        assert str(out) in gpu_report.write_results(tar, "0123456789abcdef", tmp_path)
        result = json.loads(out.read_text())
        assert [row["contender"] for row in result["results"]] == contenders
        assert result["results"][0]["median_ms"] == 0.441
        assert result["commit"] == "0123456789abcdef"
