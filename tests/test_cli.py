"""The command line from end to end on a drawn set, with a network as narrow as it gets."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ssd.checkpoint import load_checkpoint, save_checkpoint
from ssd.cli import find_pictures, main
from ssd.model import SSD300
from ssd.shapes import write_shapes

MACHINE = ["--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, 4, 3)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that never trained: its scores are all near 1 / 4, so it finds plenty."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    model = SSD300(4, width=0.01)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("pred_convs"):
                p.mul_(0.01)
    save_checkpoint(path, model, classes=["circle", "square", "triangle"])
    return path


def test_train_resume_eval(shapes, tmp_path, capsys):
    run = str(tmp_path / "run")
    narrow = ["--width", "0.01", "--batch-norm", "--batch-size", "2", "--epochs", "1", "--lr", "0.002"]
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
    command = [sys.executable, "-m", "ssd.cli", "train", str(shapes), "--out", str(tmp_path / "run"), "--epochs", "400"]
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
    assert "epochs must be > 0, got -1" in error(shapes, "--epochs", "-1")
    assert "device 'toaster' cannot be used" in error(shapes, "--device", "toaster")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_classes_from_a_file(shapes, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("triangle\nsquare\n\ncircle\n")
    narrow = ["--width", "0.01", "--batch-size", "2", "--epochs", "1"]
    assert main(["train", str(shapes), "--out", str(tmp_path / "r"), "--classes", str(names), *narrow, *MACHINE]) == 0
    assert load_checkpoint(tmp_path / "r" / "best.pt")["classes"] == ["triangle", "square", "circle"]


def test_detect_draws_writes_coco_and_skips_broken_pictures(shapes, weights, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    pictures = sorted((shapes / "JPEGImages").iterdir())
    (folder / "a.jpg").write_bytes(pictures[0].read_bytes())
    (folder / "deeper" / "a.jpg").write_bytes(pictures[1].read_bytes())
    (folder / "cut.jpg").write_bytes(pictures[2].read_bytes()[:-3000])
    (folder / "text.png").write_text("not a picture")
    (folder / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    arguments = [str(folder), str(pictures[3]), "--weights", str(weights), "--out", str(out)]
    assert main(["detect", *arguments, "--min-score", "0.1", "--top-k", "5", "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "cut.jpg" in printed.err
    assert "text.png" in printed.err
    assert "2 of 5 pictures could not be read" in printed.err

    coco = json.loads((out / "detections.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["circle", "square", "triangle"]
    assert [c["id"] for c in coco["categories"]] == [1, 2, 3]
    assert [image["file_name"] for image in coco["images"]] == [
        str(folder / "a.jpg"),
        str(folder / "deeper" / "a.jpg"),
        str(pictures[3]),
    ]
    assert len(coco["annotations"]) == 15
    assert [a["id"] for a in coco["annotations"]] == list(range(1, 16))
    for a in coco["annotations"]:
        width, height = (coco["images"][a["image_id"] - 1][k] for k in ("width", "height"))
        x, y, w, h = a["bbox"]
        assert 0 <= x <= x + w <= width + 0.01
        assert 0 <= y <= y + h <= height + 0.01
        assert a["area"] == pytest.approx(w * h, rel=0.01, abs=1)
        assert 0.1 < a["score"] <= 1
    drawn = {str(p.relative_to(out)) for p in out.rglob("*.png")}
    assert drawn == {"a.png", "deeper/a.png", f"{pictures[3].stem}.png"}
    with Image.open(out / "a.png") as picture, Image.open(folder / "a.jpg") as original:
        assert picture.size == original.size
    assert not list(out.rglob("*.tmp"))


def test_detect_without_any_broken_picture_succeeds(shapes, weights, tmp_path):
    picture = str(sorted((shapes / "JPEGImages").iterdir())[0])
    arguments = ["detect", picture, "--weights", str(weights), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--min-score", "0.99"]) == 0  # and nothing to find
    assert json.loads((tmp_path / "detections.json").read_text())["annotations"] == []


def test_detect_mistakes_are_named(shapes, weights, tmp_path, capsys):
    def error(*arguments):
        assert main(["detect", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    picture = sorted((shapes / "JPEGImages").iterdir())[0]
    assert "none.jpg: no such file or folder" in error(tmp_path / "none.jpg", "--weights", weights)
    assert "none.pt: no such checkpoint" in error(picture, "--weights", tmp_path / "none.pt")
    assert "no pictures" in error(tmp_path, "--weights", weights)


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").touch()
    names = [str(name) for _, name in find_pictures([tmp_path / f for f in ("a", "b", "c")])]
    assert names == ["x.png", "x_2.png", "x_3.png"]


def test_info_lists_every_op(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "torch " in printed
    assert "postprocess_detections" in printed


@pytest.mark.parametrize("command", ["train", "eval", "detect", "demo", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: ssd" in capsys.readouterr().out
