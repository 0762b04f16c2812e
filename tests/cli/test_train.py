"""The command line from end to end on a drawn set, with a network as narrow as it gets."""

import math
import os
import re
import signal
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from ssd.cli import main
from ssd.data import AUGMENTATIONS, speed
from ssd.data.shapes import SHAPE_CLASSES, write_shapes
from ssd.networks.priors import PRESETS
from ssd.training.settings import VARIANCES, Settings
from ssd.weights.checkpoint import load_checkpoint
from ssd_ext import DetectionOptions, LossOptions

MACHINE = ["--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, 4, 3)
    return folder


def test_train_resume_eval(shapes, tmp_path, capsys):
    run = str(tmp_path / "run")
    narrow = ["--width", "0.01", "--held-out", "0", "--batch-size", "2", "--epochs", "1", "--lr", "0.002"]
    assert main(["train", str(shapes), "--out", run, *narrow, "--seed", "3", *MACHINE]) == 0
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert saved["settings"]["lr"] == 0.002
    assert saved["settings"]["seed"] == 3
    assert saved["settings"]["batch_norm"] is True
    assert saved["step"] == 2
    assert main(["train", "--out", run, "--resume", *MACHINE]) == 0  # nothing left to do
    capsys.readouterr()
    assert main(["eval", str(shapes), "--weights", f"{run}/best.pt", "--split", "test", "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("circle", "square", "triangle", "mAP@0.5 (area)"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_in_a_terminal_saves_and_resumes(shapes, tmp_path, workers):
    """The signal goes to the whole process group, loader workers included, as from a terminal."""
    command = [sys.executable, "-m", "ssd", "train", str(shapes), "--out", str(tmp_path / "run"), "--epochs", "400"]
    command += ["--width", "0.01", "--batch-size", "2", "--device", "cpu", "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        while b"images/s" not in process.stderr.read1():  # in the bar, after some steps
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"To go on: ssd train --out" in out
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 1


def test_train_mistakes_are_named(shapes, tmp_path, capsys):
    def error(*arguments):
        assert main(["train", *map(str, arguments), "--out", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    assert "name at least one DATA folder" in error()
    assert "leave out DATA, --lr" in error(shapes, "--resume", "--lr", "1")
    assert "no checkpoint to resume" in error("--resume")
    assert "no such folder" in error(tmp_path / "nowhere")
    assert "the classes are ('cow',)" in (message := error(shapes, "--classes", "cow"))
    assert "unknown class" in message
    assert ".xml" in message
    assert "device 'toaster' cannot be used" in error(shapes, "--device", "toaster")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_zero_is_not_the_default(shapes, tmp_path):
    narrow = ["--width", "0.01", "--batch-size", "2", "--epochs", "1", "--no-bf16"]
    zeros = ["--warmup", "0", "--momentum", "0", "--weight-decay", "0"]
    assert main(["train", str(shapes), "--out", str(tmp_path), *narrow, *zeros, *MACHINE]) == 0
    saved = load_checkpoint(tmp_path / "last.pt")
    assert [saved["settings"][name] for name in ("warmup", "momentum", "weight_decay", "bf16")] == [0, 0, 0, False]
    assert saved["optimizer"]["param_groups"][0]["momentum"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        *[["train", "d", "--out", "o", *flag.split()] for flag in ("--epochs 0", "--lr 0", "--width 0", "--epochs -1")],
        *[["train", "d", "--out", "o", *flag.split()] for flag in ("--batch-size 0", "--lr nan", "--warmup -1")],
        *[["train", "d", "--out", "o", *flag.split()] for flag in ("--schedule x", "--loc-loss x", "--workers -1")],
        *[["detect", "d", "--weights", "w", "--out", "o", "--batch-size", n] for n in ("-1", "0", "1.5")],
        *[["eval", "d", "--weights", "w", "--batch-size", "-1"], ["demo", "--epochs", "0"], ["demo", "--width", "-1"]],
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_named(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(wrong)
    assert stop.value.code == 2
    assert f"argument {wrong[-2]}: " in capsys.readouterr().err


def test_every_option_is_a_flag(capsys):
    """With its meaning and its default, from the one place where they stand."""
    for command, options in (("train", (Settings, LossOptions)), ("eval", (DetectionOptions,))):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for name, hint in (pair for kind in options for pair in get_type_hints(kind, include_extras=True).items()):
            flag = re.search(rf"--{name.replace('_', '-')}[ ,]", shown)
            assert bool(flag) == (name not in (*VARIANCES, "data", "loss")), name
            assert not flag or get_args(hint)[1].replace("-", "") in shown.replace("-", ""), name
        told = "(default: 0.45)" if command == "eval" else "(default: scratch 0.03; tutorial 0.001)"
        assert told in shown


def test_classes_from_a_file(shapes, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("triangle\nsquare\n\ncircle\n")
    narrow = ["--width", "0.01", "--batch-size", "2", "--epochs", "1"]
    assert main(["train", str(shapes), "--out", str(tmp_path / "r"), "--classes", str(names), *narrow, *MACHINE]) == 0
    assert load_checkpoint(tmp_path / "r" / "best.pt")["classes"] == ["triangle", "square", "circle"]


def test_info_lists_every_op(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "torch " in printed
    assert "postprocess_detections" in printed


def test_info_of_data(shapes, capsys, monkeypatch):
    assert main(["info", str(shapes)]) == 0
    printed = capsys.readouterr().out
    counts = dict(reversed(part.split()) for part in printed.splitlines()[0].split(", "))
    assert counts["pictures"] == "7"
    text = "".join(file.read_text() for file in (shapes / "Annotations").iterdir())
    assert {name: int(counts[name]) for name in SHAPE_CLASSES} == {n: text.count(f"<name>{n}<") for n in SHAPE_CLASSES}
    assert all(f"  {name}: " in printed for name in (*SHAPE_CLASSES, *PRESETS))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_info_tells_how_fast_pictures_are_read(shapes, capsys, monkeypatch, augment):
    monkeypatch.setattr(speed.measure_speed, "__kwdefaults__", {"batch_size": 2, "seconds": 0.05})
    assert main(["info", str(shapes), "--speed", "--augment", augment]) == 0
    printed = capsys.readouterr().out
    rates = {name: float(n) for name, n in re.findall(r"^(\w+(?: samples)?): (\d+) pictures/s$", printed, re.MULTILINE)}
    assert set(rates) == {"reading", "training samples", "evaluation samples"}
    assert min(rates.values()) > 0
    assert math.ceil(700 / (rates["training samples"] + 0.5)) <= int(re.search(r"at 700 .*: (\d+) cores", printed)[1])
    assert main(["info", "--speed"]) == 2
    assert "name at least one folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "eval", "detect", "export", "convert", "demo", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: ssd" in capsys.readouterr().out
