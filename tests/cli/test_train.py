"""`ssd train`, with a network as narrow as it gets."""

import os
import signal
import subprocess
import sys

import pytest

from ssd.cli import main
from ssd.weights.checkpoint import load_checkpoint

MACHINE = ["--device", "cpu", "--workers", "0"]


def test_train_resume_eval(shapes, tmp_path, capsys):
    run = str(tmp_path / "run")
    narrow = ["--network", "ssd300", "--width", "0.01", "--batch-size", "2", "--epochs", "1", "--lr", "0.002"]
    narrow += ["--held-out", "0"]
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
    command += ["--network", "ssd300", "--width", "0.01", "--batch-size", "2", "--device", "cpu", "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        while b"images/s" not in process.stderr.read1():  # in the bar, after some steps
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"To continue: ssd train --out" in out
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 1


def test_train_mistakes_are_named(shapes, tmp_path, capsys):
    def error(*arguments):
        assert main(["train", *map(str, arguments), "--out", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    assert "name at least one DATA folder" in error()
    assert "leave out DATA, --lr" in error(shapes, "--resume", "--lr", "1")
    assert "leave out --epochs. To train longer, start a new run: ssd train" in error("--resume", "--epochs", "20")
    assert "run/last.pt: no such checkpoint" in error("--resume")
    assert "no such folder" in error(tmp_path / "nowhere")
    assert "the classes are ('cow',)" in (message := error(shapes, "--classes", "cow"))
    assert "unknown class" in message
    assert ".xml" in message
    assert "device 'toaster' cannot be used" in error(shapes, "--device", "toaster")
    assert "size: the network ssdlite takes 224 to 640 pixels" in error(shapes, "--network", "ssdlite", "--size", "17")
    assert not (tmp_path / "run").exists()
    assert "run/last.pt: no such checkpoint" in error("--resume")


def test_a_zero_is_not_the_default(shapes, tmp_path):
    narrow = ["--network", "ssd300", "--width", "0.01", "--batch-size", "2", "--epochs", "1", "--no-bf16"]
    zeros = ["--warmup", "0", "--momentum", "0", "--weight-decay", "0"]
    assert main(["train", str(shapes), "--out", str(tmp_path), *narrow, *zeros, *MACHINE]) == 0
    saved = load_checkpoint(tmp_path / "last.pt")
    assert [saved["settings"][name] for name in ("warmup", "momentum", "weight_decay", "bf16")] == [0, 0, 0, False]
    assert saved["optimizer"]["param_groups"][0]["momentum"] == 0


def test_classes_from_a_file(shapes, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("triangle\nsquare\n\ncircle\n")
    narrow = ["--network", "ssd300", "--width", "0.01", "--batch-size", "2", "--epochs", "1"]
    assert main(["train", str(shapes), "--out", str(tmp_path / "r"), "--classes", str(names), *narrow, *MACHINE]) == 0
    assert load_checkpoint(tmp_path / "r" / "best.pt")["classes"] == ["triangle", "square", "circle"]
