"""`ssd info`: of the installation and of data."""

import json
import math
import re
from collections import Counter

import pytest
import torch
from small_datasets import add_picture, add_split, cut

import ssd_ext._info
from ssd.cli import main
from ssd.data import AUGMENTATIONS, annotations, findings, speed
from ssd.data.duplicates import equal_files
from ssd.data.reading import read_header
from ssd.data.shapes import SHAPE_CLASSES
from ssd.networks.priors import PRESETS
from ssd.training.choice import choose_network, open_chosen
from ssd.training.settings import Settings


def test_info_lists_every_op(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "torch " in printed
    assert "postprocess_detections" in printed


@pytest.mark.parametrize("gpus", [[], ["NVIDIA H200"]])
def test_kernels_for_gpus_are_not_used_without_one(gpus):
    """The table lists them also there, because they are built."""
    installed = ssd_ext._info.Info({}, "auto", gpus, {"nms": ["cpu", "cuda"]}, {"cpu": None, "cuda": None})
    _, _, cpu, cuda, _, head, nms = str(installed).splitlines()
    assert cpu == "cpu library  loaded"
    assert cuda == "cuda library loaded" + ", but not used without a GPU" * (not gpus)
    assert head.split(maxsplit=2) == ["op", "cpu", "cuda" if gpus else "cuda (no GPU here)"]
    assert nms.split() == ["nms", "C++", "CUDA"]


def test_info_of_data(shapes, capsys, monkeypatch):
    assert main(["info", str(shapes), "--network", "ssd300"]) == 0
    printed = capsys.readouterr().out
    found, objects, *_ = printed.splitlines()
    assert found.startswith("7 pictures in JPEGImages, with annotations in the format of Pascal VOC in Annotations; 3 ")
    counts = dict(reversed(part.split()) for part in objects.removeprefix("objects: ").split(", "))
    text = "".join(file.read_text() for file in (shapes / "Annotations").iterdir())
    assert {name: int(counts[name]) for name in SHAPE_CLASSES} == {n: text.count(f"<name>{n}<") for n in SHAPE_CLASSES}
    assert all(f"  {name}: " in printed for name in (*SHAPE_CLASSES, *PRESETS))


@pytest.mark.parametrize("splits", [{}, {"train": "012345678", "test": "9"}, {"train": "012345678", "val": "9"}])
def test_info_opens_each_split_once_and_chooses_what_training_chooses(tmp_path, capsys, monkeypatch, splits):
    """Of the pictures that are not held out, and of the classes that have objects: here the last picture is odd."""
    for number in range(10):
        side = 4 if number == 9 else 20 + number
        add_picture(tmp_path, str(number), [("dot", 1, 1, 1 + side, 1 + side)])
    for name, numbers in splits.items():
        add_split(tmp_path, name, *numbers)
    choice, _ = choose_network(Settings((str(tmp_path),)), torch.device("cpu"))
    _, choice = open_chosen(choice)
    read, compared = [], []
    monkeypatch.setattr(annotations, "read_header", lambda path: read.append(str(path)) or read_header(path))
    monkeypatch.setattr(findings, "equal_files", lambda files, of: compared.extend(files) or equal_files(files, of))
    monkeypatch.setattr("ssd.runtime.device.pick_device", lambda: torch.device("cpu"))
    assert main(["info", str(tmp_path)]) == 0
    assert "\n".join(choice.notes) in capsys.readouterr().out
    assert set(Counter(read).values()) == {2 if splits else 1}
    assert len(compared) == sum(map(len, splits.values()))


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


def test_info_decodes_all_pictures(tmp_path, capsys):
    for name in "abc":
        add_picture(tmp_path, name, [("x", 1, 1, 30, 30)])
    folder = tmp_path / "JPEGImages"
    assert main(["info", str(tmp_path), "--pixels"]) == 0
    assert "pictures that cannot be read: 0 of 3" in capsys.readouterr().out
    cut(folder / "a.jpg", 0.9)
    cut(folder / "b.jpg", 0.4)
    assert main(["info", str(tmp_path), "--pixels"]) == 1
    *_, unreadable, error, few, path = capsys.readouterr().out.splitlines()
    assert (unreadable, few) == (
        "pictures that cannot be read: 1 of 3",
        "pictures that lack their last bytes, and are read: 1 of 3",
    )
    assert error.startswith(f"  {folder}/b.jpg: cannot decode")
    assert path == f"  {folder}/a.jpg"
    assert main(["info", str(tmp_path), "--pixels", "--skip-unreadable"]) == 2
    assert "1 of 3 pictures cannot be read, and the share that may be left out is 0.01" in capsys.readouterr().err
    assert main(["info", str(tmp_path), "--pixels", "--skip-unreadable", "0.4"]) == 0
    assert main(["info", "--pixels"]) == 2


def test_info_of_some_classes(tmp_path, capsys):
    """A class need not be in each split."""
    for number in range(4):
        add_picture(tmp_path, str(number), [("cat", 1, 1, 30, 30), ("dog" if number else "cow", 5, 5, 30, 30)])
    add_split(tmp_path, "train", *"123")
    add_split(tmp_path, "test", "0")
    report = tmp_path / "report.html"
    assert main(["info", str(tmp_path), "--only", "cow,dog", "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "2 classes, 4 objects\nobjects: 1 cow, 3 dog\n" in printed
    assert "split train: 3 pictures, 3 objects; rarest class: 0 cow\n" in printed
    assert "split test: 1 picture, 1 object; rarest class: 0 dog\n" in printed
    assert "objects of other classes, which are left out: 4\n" in printed
    by_class = {row["name"]: row["splits"] for row in json.loads(report.with_suffix(".json").read_text())["classes"]}
    assert by_class == {"cow": {"train": 0, "test": 1}, "dog": {"train": 3, "test": 0}}
    assert main(["info", str(tmp_path), "--only", "cow,bird"]) == 2
    assert f"{tmp_path}: only: there is no class 'bird'; the classes are cat, cow, dog" in capsys.readouterr().err
