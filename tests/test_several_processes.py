"""Two processes of torchrun against one: the same losses, detections and files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from http_server import serving
from own_process import PATHS, TORCHRUN
from short_training import states_equal
from small_datasets import add_picture, cut

from ssd.cli import main
from ssd.data.conversion import convert_dataset
from ssd.data.loader import epoch_batches
from ssd.data.shapes import write_shapes
from ssd.weights.checkpoint import load_checkpoint

EPOCHS, PICTURES, BATCH = 5, 44, 4  # 55 steps; the losses are read after the 10th of the 11 of an epoch


def start(processes, *arguments, torchrun=()):
    """`python -m ssd`, or that in two processes."""
    launcher = [*TORCHRUN, *torchrun, "-m"] if processes == 2 else []
    command = [sys.executable, "-m", *launcher, "ssd", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ssd(processes, *arguments):
    """What it prints."""
    process = start(processes, *arguments)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    return printed


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), n_train=PICTURES, n_test=7)


@pytest.fixture(scope="module")
def training(shapes):
    options = (
        f"--recipe tutorial --width 0.05 --epochs {EPOCHS} --batch-size {BATCH} --lr 1e-4 --clip-grad 1 --warmup 5 "
        "--split train --val-split test --workers 0 --no-bf16"
    )
    return ["train", shapes, *options.split()]


@pytest.fixture(scope="module")
def alone(training, tmp_path_factory):
    """The folder of a run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    ssd(1, *training, "--out", out)
    return out


@pytest.fixture(scope="module")
def together(training, tmp_path_factory):
    """The folder of a run of two processes."""
    out = tmp_path_factory.mktemp("together") / "run"
    ssd(2, *training, "--accumulate", 2, "--out", out)
    return out


def losses(run: Path):
    return torch.tensor(load_checkpoint(run / "last.pt")["history"]["loss"], dtype=torch.float64)


def test_training_in_two_processes_takes_the_steps_of_one(alone, together):
    assert len(losses(alone)) == EPOCHS * PICTURES // BATCH
    assert losses(alone)[-10:].mean() < 0.9 * losses(alone)[:3].mean()  # it learns
    torch.testing.assert_close(losses(together), losses(alone), rtol=1e-5, atol=0)
    both = [load_checkpoint(run / "last.pt") for run in (together, alone)]
    torch.testing.assert_close(both[0]["history"]["mAP"], both[1]["history"]["mAP"], rtol=0, atol=1e-3)
    assert not [key for key in both[0]["model"] if key.startswith("module.")]
    names = {path.name for path in together.iterdir()}
    assert names == {path.name for path in alone.iterdir()}  # no file of the second process


def test_a_budget_averages_repeats_and_frozen_stages_of_two_processes(shapes, tmp_path):
    """The first process chooses the epochs. Without time it takes those that it measured, 30 steps."""
    data = shutil.copytree(shapes, tmp_path / "shapes")
    first = (data / "ImageSets" / "Main" / "train.txt").read_text().split()[0]
    rare = data / "Annotations" / f"{first}.xml"
    rare.write_text(re.sub("circle|square|triangle", "star", rare.read_text()))
    options = (
        f"--recipe tutorial --width 0.05 --minutes 1e-6 --batch-size {BATCH} --lr 1e-4 --clip-grad 1 --warmup 5 "
        "--split train --val-split test --workers 0 --no-bf16 --ema 0.9 --repeat-factor 0.9 --freeze 1 --patience 1"
    )
    printed = [ssd(n, "train", data, *options.split(), "--out", tmp_path / str(n)) for n in (1, 2)]
    ends = [load_checkpoint(tmp_path / str(n) / "last.pt") for n in (1, 2)]
    lengths = [re.search(r"an epoch has (\d+) pictures instead of 44", text).group(1) for text in printed]
    per_epoch = int(lengths[0]) // BATCH
    assert lengths[0] == lengths[1]
    epochs = -(-30 // per_epoch)
    assert all(f"minutes 1e-06: {epochs} epochs, although this takes longer" in text for text in printed)
    assert [end["step"] for end in ends] == [epochs * per_epoch] * 2
    torch.testing.assert_close(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-5, atol=0)
    for name in ("model", "trained"):
        for a, b in zip(ends[0][name].values(), ends[1][name].values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_two_processes_train_the_network_and_the_size_that_the_first_one_chooses(tmp_path):
    """Objects so small that the size is not the network's default."""
    for name in "abcd":
        dots = [("dot", x, y, x + 18, y + 18) for x in range(7, 370, 31) for y in range(5, 370, 43)]
        add_picture(tmp_path, name, dots, size=(400, 400))
    options = "--width 0.1 --epochs 1 --batch-size 4 --held-out 0 --workers 0 --no-bf16"
    printed = ssd(2, "train", tmp_path, *options.split(), "--out", tmp_path / "run")
    assert printed.count("network ssdlite at 640 pixels: ") == 1
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (state["network"], state["config"]["size"], state["step"]) == ("ssdlite", 640, 1)


def wait_for(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(process):
    """The processes of torchrun, in the order of their ranks."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not pids.exists():
        pytest.skip("the processes of torchrun are found in /proc, as Linux has it")
    return list(map(int, pids.read_text().split()))


@pytest.mark.parametrize("how", ["SIGTERM of the second", "SIGTERM of torchrun"])
def test_a_stopped_run_of_two_is_resumed_by_one(training, alone, tmp_path, how):
    out = tmp_path / "run"
    process = start(2, *training, "--out", out)
    wait_for((out / "last.pt").exists, process)  # of the first epoch
    workers = workers_of(process)
    assert len(workers) == 2
    if how == "SIGTERM of the second":
        os.kill(workers[1], signal.SIGTERM)
    else:
        process.terminate()
    printed, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "stopped at step" in printed  # by the first, which saves
    done = load_checkpoint(out / "last.pt")["step"]
    assert PICTURES // BATCH <= done < EPOCHS * PICTURES // BATCH
    ssd(1, "train", "--out", out, "--resume", "--workers", 0)
    torch.testing.assert_close(losses(out), losses(alone), rtol=1e-5, atol=0)


def test_unequal_shares_and_a_process_that_stands_still(training, tmp_path):
    """Three and two pictures of a batch; the first process waits for the second."""
    options = [*training, "--batch-size", 5, "--epochs", 2, "--save-every", 1e-5]
    ssd(1, *options, "--out", tmp_path / "alone")
    process = start(2, *options, "--out", tmp_path / "run")
    wait_for((tmp_path / "run" / "last.pt").exists, process)
    second = workers_of(process)[1]
    os.kill(second, signal.SIGSTOP)
    time.sleep(3)
    assert process.poll() is None
    os.kill(second, signal.SIGCONT)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, printed + errors
    torch.testing.assert_close(losses(tmp_path / "run"), losses(tmp_path / "alone"), rtol=1e-5, atol=0)


def test_torchrun_restarts_a_run_whose_processes_are_killed(training, together, tmp_path):
    """Before its first checkpoint, and in the middle of its first epoch."""
    out = tmp_path / "run"
    options = ["--accumulate", 2, "--resume", "auto", "--save-every", 1e-5, "--out", out]
    process = start(2, *training, *options, torchrun=["--max-restarts", "2"])
    wait_for(lambda: len(workers_of(process)) == 2 and (out / ".lock").exists(), process)
    before = workers_of(process)
    os.kill(before[0], signal.SIGKILL)
    wait_for((out / "last.pt").exists, process)
    step, workers = load_checkpoint(out / "last.pt")["step"], workers_of(process)
    os.kill(workers[1], signal.SIGKILL)
    assert step == 10
    assert len({*before, *workers}) == 4
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, printed + errors
    assert "ssd train: error: process 0 lost" in errors
    ends = [load_checkpoint(run / "last.pt") for run in (out, together)]
    assert ends[0]["history"] == ends[1]["history"]
    assert states_equal(ends[0]["model"], ends[1]["model"])


def test_archives_by_http_give_the_run_of_the_folder(shapes, training, together, tmp_path):
    """Also if a process is killed, torchrun starts both again, and the server fails for a moment."""
    convert_dataset([shapes], tmp_path / "served", "webdataset")
    out = tmp_path / "run"
    with serving(tmp_path / "served") as server:
        data = f"{server.url}/{{train,test}}-000000.tar"
        options = [*training[2:], "--workers", 1, "--accumulate", 2, "--resume", "auto", "--save-every", 1e-5]
        process = start(2, "train", data, *options, "--out", out, torchrun=["--max-restarts", "1"])
        wait_for((out / "last.pt").exists, process)
        server.failing = 1
        os.kill(workers_of(process)[1], signal.SIGKILL)
        printed, errors = process.communicate(timeout=200)
        assert process.returncode == 0, printed + errors
        assert server.requests > PICTURES * EPOCHS
    ends = [load_checkpoint(run / "last.pt") for run in (out, together)]
    assert ends[0]["settings"]["data"] == (data,)
    assert ends[0]["history"] == ends[1]["history"]
    assert states_equal(ends[0]["model"], ends[1]["model"])


def test_evaluation_in_two_processes_prints_the_table_of_one(shapes, alone, tmp_path):
    arguments = "eval", shapes, "--split", "test", "--weights", alone / "last.pt", "--workers", 0, "--report"
    assert ssd(2, *arguments, tmp_path / "2.html") == ssd(1, *arguments, tmp_path / "1.html")
    two, one = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (2, 1))
    assert {**two, "date": "", "command": ""} == {**one, "date": "", "command": ""}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.html", "1.json", "2.html", "2.json"]


def test_detection_in_two_processes_leaves_the_files_of_one(shapes, alone, tmp_path):
    pictures = sorted((shapes / "JPEGImages").iterdir())[:5]  # three and two
    (tmp_path / "broken.jpg").write_text("hello")
    for processes in (1, 2):
        out = tmp_path / str(processes)
        arguments = [*pictures, tmp_path / "broken.jpg", "--weights", alone / "last.pt", "--min-score", 0.01]
        process = start(processes, "detect", *arguments, "--out", out)
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 1, errors
        assert errors.count("skipped: ") == 1
        assert "5 pictures, " in printed
    one, two = (json.loads((tmp_path / out / "detections.json").read_text()) for out in ("1", "2"))
    assert len(one["annotations"]) > 5
    assert two["images"] == one["images"]
    for a, b in zip(two["annotations"], one["annotations"], strict=True):
        assert {**a, "bbox": 0, "area": 0, "score": 0} == {**b, "bbox": 0, "area": 0, "score": 0}
        assert a["bbox"] == pytest.approx(b["bbox"], abs=0.02)
    files = [sorted(path.name for path in (tmp_path / out).iterdir()) for out in ("1", "2")]
    assert files[0] == files[1]


def test_what_two_processes_have_left_of_which_one_was_killed_is_resumed_by_one(shapes, alone, tmp_path, capsys):
    arguments = "detect", shapes / "JPEGImages", "--weights", alone / "last.pt", "--no-drawings", "--batch-size", 1
    arguments = *arguments, "--out", tmp_path / "found"
    process = start(2, *arguments)
    part, pids = tmp_path / "found" / "detections.1.jsonl", Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not pids.exists():
        pytest.skip("the processes of torchrun are found in /proc, as Linux has it")
    deadline = time.monotonic() + 100
    while not (part.exists() and part.read_bytes().count(b"\n") > 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(pids.read_text().split()[1]), signal.SIGKILL)
    printed, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "stopped after " in printed or "ssd detect: error: process 0 lost" in errors
    parts = (tmp_path / "found").glob("detections.*.jsonl")
    done = {json.loads(line)["image"]["file_name"] for path in parts for line in path.read_text().splitlines()[1:]}
    assert main([*map(str, arguments), "--resume"]) == 0
    announced = {line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()[:-1]}
    pictures = sorted(map(str, (shapes / "JPEGImages").iterdir()))
    assert announced == set(pictures) - done
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [image["file_name"] for image in found["images"]] == pictures
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"detections.json", ".lock"}


def test_a_picture_that_the_second_process_cannot_read(shapes, training, tmp_path):
    """The first saves what is done."""
    data = shutil.copytree(shapes, tmp_path / "shapes")
    names = (data / "ImageSets" / "Main" / "train.txt").read_text().split()
    third_step = epoch_batches(PICTURES, BATCH, seed=0, epoch=0)[2]
    victim = data / "JPEGImages" / f"{names[third_step[1]]}.jpg"
    cut(victim, 0.4)
    process = start(2, "train", data, *training[2:], "--out", tmp_path / "run")
    printed, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "stopped at step 2 of " in printed
    assert f"ssd train: error: {victim}: cannot decode" in errors
    assert "rank      : 1" in errors
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_more_processes_than_pictures_in_a_batch(shapes, tmp_path):
    narrow = ["--network", "ssd300", "--width", 0.05, "--batch-size", 1]
    process = start(2, "train", shapes, "--out", tmp_path / "run", *narrow, "--workers", 0)
    assert process.wait(100) != 0
    assert "a batch of 1 pictures cannot be shared by 2 processes" in process.communicate()[1]
