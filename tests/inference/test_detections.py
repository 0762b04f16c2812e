"""The formats to which detections are converted."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.data import PictureFile
from ssd.data.reading import Picture
from ssd.inference.detections import Detections

CLASSES = ("circle", "square", "triangle")


def test_to_yolo_gives_fractions_and_to_voc_pixels_from_1(tmp_path):
    picture = Picture(torch.zeros(3, 40, 60, dtype=torch.uint8))
    boxes = torch.tensor([[6, 4, 30.004, 24], [0, 0, 60, 40], [5, 5, 5, 9], [5, 5, 5.5, 9]])
    found = Detections(picture, boxes, torch.tensor([3, 1, 1, 1]), torch.tensor([0.9, 0.5, 0.4, 0.3]), CLASSES)
    lines = found.to_yolo().splitlines()
    assert lines[:2] == ["2 0.3 0.35 0.4 0.5", "0 0.5 0.5 1 1"]
    assert len(lines) == 3  # the box without a width is left out
    root = ElementTree.fromstring(found.to_voc())
    assert [node.findtext("name") for node in root.iter("object")] == ["triangle", "circle"]
    assert [[edge.text for edge in box] for box in root.iter("bndbox")] == [
        ["7", "5", "30", "24"],
        ["1", "1", "60", "40"],
    ]
    assert [root.findtext(name) for name in ("folder", "filename", "size/width", "size/height")] == ["", "", "60", "40"]
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    of_file = ElementTree.fromstring(replace(found, picture=PictureFile(tmp_path / "a.png")).to_voc())
    assert [of_file.findtext(name) for name in ("folder", "filename")] == [tmp_path.name, "a.png"]
    nothing = Detections(picture, boxes[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), CLASSES)
    assert nothing.to_yolo() == ""
    assert ElementTree.fromstring(nothing.to_voc()).find("object") is None


def three_and_none():
    """Detections of three objects, and of none."""
    picture = Picture(torch.zeros(3, 40, 60, dtype=torch.uint8))
    boxes = torch.tensor([[6, 4, 30, 24], [0, 0, 60, 40], [5, 5, 5.5, 9]])
    columns = boxes, torch.tensor([3, 1, 3]), torch.tensor([0.9, 0.5, 0.4])
    return [Detections(picture, *(column[:n] for column in columns), CLASSES) for n in (3, 0)]


def test_to_supervision_gives_its_class_the_columns(monkeypatch):
    """A stand-in for the package, which takes keywords as its class does."""
    taken = []
    stand_in = SimpleNamespace(Detections=lambda **columns: taken.append(columns) or "converted")
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    found, nothing = three_and_none()
    assert found.to_supervision() == nothing.to_supervision() == "converted"
    three, none = taken
    assert three.keys() == none.keys() == {"xyxy", "confidence", "class_id", "data"}
    assert three["xyxy"].tolist() == found.boxes.tolist()
    assert three["confidence"].tolist() == found.scores.tolist()
    assert three["class_id"].tolist() == [2, 0, 2]
    assert three["data"]["class_name"].tolist() == ["triangle", "circle", "triangle"]
    assert none["xyxy"].shape == (0, 4)
    assert none["data"]["class_name"].shape == none["class_id"].shape == none["confidence"].shape == (0,)
    assert all(isinstance(column, np.ndarray) for column in (*list(three.values())[:3], three["data"]["class_name"]))


def test_supervision_takes_detections():
    supervision = pytest.importorskip("supervision", reason="the package supervision is not installed")
    found, nothing = (each.to_supervision() for each in three_and_none())
    assert isinstance(found, supervision.Detections)
    assert len(found) == 3
    assert len(nothing) == 0
    triangles = found[found["class_name"] == "triangle"]
    assert triangles.xyxy.tolist() == [[6, 4, 30, 24], [5, 5, 5.5, 9]]
    assert triangles.confidence.tolist() == pytest.approx([0.9, 0.4])
    assert [CLASSES[i] for i in triangles.class_id] == ["triangle"] * 2
    supervision.BoxAnnotator().annotate(np.zeros((40, 60, 3), np.uint8), found)
    assert len(supervision.Detections.merge([found, nothing])) == 3


def test_without_supervision_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"needs supervision .*: pip install 'ssd-ext\[supervision\]'"):
        three_and_none()[0].to_supervision()
