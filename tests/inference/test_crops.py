"""`ssd detect --save crops`: a picture of each object, also after an interruption."""

import json
import re

import numpy as np
import pytest
import torch
from detect_command import contents, detect
from PIL import Image

from ssd import Detector, load_weights
from ssd.data.reading import Picture
from ssd.drawing import is_drawing
from ssd.inference import crops
from ssd.inference.detections import Detections
from ssd.inference.results import Results
from ssd.weights.checkpoint import save_checkpoint

HOW = ["--min-score", "0.1", "--top-k", "5", "--workers", "1", "--save", "crops"]


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def left_by(folder):
    return {path.relative_to(folder).as_posix(): content for path, content in contents(folder).items()}


def test_crops_are_the_pixels_of_the_boxes():
    pixels = torch.arange(3 * 40 * 60, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(3, 40, 60)
    boxes = torch.tensor([[6.4, 3.6, 30.4, 24], [0, 0, 60, 40], [59.9, 39.9, 60, 40], [5, 5, 5.2, 9]])
    found = Detections(Picture(pixels), boxes, torch.tensor([1] * 4), torch.tensor([0.9] * 4), ("a",))
    array = pixels.permute(1, 2, 0).numpy()
    expected = [array[4:24, 6:30], array, array[39:, 59:], array[5:9, 5:6]]
    for crop, part in zip(found.crops(), expected, strict=True):
        assert np.array_equal(np.asarray(crop), part)


def test_each_object_has_a_picture_in_the_folder_of_its_class(photos, weights):
    (photos / "deeper" / "a.png").write_bytes((photos / "b.jpg").read_bytes())
    assert detect(".", *HOW, weights=weights, out="found") == 0
    content = json.loads((photos / "found" / "detections.json").read_text())
    classes = {row["id"]: row["name"] for row in content["categories"]}
    stems = {"a.png": "a", "b.jpg": "b", "deeper/a.png": "a_2", "deeper/c.PNG": "c"}
    expected = {}
    for image in content["images"]:
        assert image["crops"] == stems[image["file_name"]]
        its = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        for n, row in enumerate(its, 1):
            expected[f"{classes[row['category_id']]}/{image['crops']}_{n}.png"] = row["bbox"]
    assert len(expected) == 20
    assert names_in(photos / "found") == {"detections.json", ".lock", *(f"crops/{name}" for name in expected)}
    for name, (_, _, width, height) in expected.items():
        assert is_drawing(photos / "found" / "crops" / name)
        with Image.open(photos / "found" / "crops" / name) as crop:
            assert crop.size == pytest.approx((width, height), abs=1.02)
    assert detect(".", *HOW, "--resume", weights=weights, out="found") == 0  # finds no crops as new pictures
    assert len(json.loads((photos / "found" / "detections.json").read_text())["images"]) == 4


def test_names_of_classes_are_made_safe(photos, weights, tmp_path):
    model, _ = load_weights(weights, device="cpu")
    save_checkpoint(tmp_path / "odd.pt", model, ["../up/CON", "..", "Up?"])
    assert detect("a.png", *HOW, weights=tmp_path / "odd.pt", out="found") == 0
    assert {path.name for path in (photos / "found" / "crops").iterdir()} <= {"_.._up_CON", "_", "Up_"}
    assert {path.name for path in (photos / "found").iterdir()} == {"crops", "detections.json", ".lock"}


def test_a_stopped_run_goes_on_to_the_same_crops(photos, weights, monkeypatch):
    """Whether it is killed between two pictures or between two crops; what it has left is removed."""
    assert detect(".", *HOW, "--batch-size", "1", weights=weights, out="../whole") == 0
    add, save, saved = Results.add, crops.save_png, []

    def stop_at_second_picture(results, found):
        if found.picture.path.name == "b.jpg":
            raise KeyboardInterrupt
        add(results, found)

    def stop_at_eighth_crop(picture, path):
        saved.append(path)
        if len(saved) == 8:
            raise KeyboardInterrupt
        save(picture, path)

    for name, stop in (("add", stop_at_second_picture), ("save_png", stop_at_eighth_crop)):
        out = photos.parent / name
        with monkeypatch.context() as patch:
            patch.setattr(Results if name == "add" else crops, name, stop)
            assert detect(".", *HOW, "--batch-size", "1", weights=weights, out=out) == 130
        (out / "crops" / "circle").mkdir(exist_ok=True)
        for leftover in ("b_77.png", ".c_1.png.123.tmp"):  # of a picture without a result
            (out / "crops" / "circle" / leftover).write_bytes(next((out / "crops").rglob("a_1.png")).read_bytes())
        (out / "crops" / "circle" / "b_88.png").write_bytes((photos / "a.png").read_bytes())  # of somebody
        assert detect(".", *HOW, "--batch-size", "1", "--resume", weights=weights, out=out) == 0
        (out / "crops" / "circle" / "b_88.png").unlink()
        assert left_by(out) == left_by(photos.parent / "whole")


def test_crops_that_are_asked_for_later_are_added(photos, weights):
    assert detect(".", *HOW[:-2], "--no-drawings", weights=weights, out="found") == 0
    assert detect(".", *HOW, "--resume", weights=weights, out="found") == 0
    assert len(list((photos / "found" / "crops").rglob("*.png"))) == 15
    before = contents(photos / "found")
    assert detect(".", *HOW[:-2], "--no-drawings", "--resume", weights=weights, out="found") == 0
    assert contents(photos / "found") == before


def test_crops_of_two_runs_are_not_mixed(photos, weights, capsys):
    assert detect("a.png", *HOW, weights=weights, out="found") == 0
    before = contents(photos / "found")
    assert detect("a.png", "b.jpg", *HOW, weights=weights, out="found") == 2
    assert re.search(r"crops: exists; continue its run with --resume, move it away", capsys.readouterr().err)
    assert contents(photos / "found") == before
    assert detect("a.png", "b.jpg", *HOW, "--resume", weights=weights, out="found") == 0
    assert len(list((photos / "found" / "crops").rglob("*.png"))) == 10
    (photos / "other").mkdir()
    (photos / "other" / "crops").write_text("a file")
    assert detect("a.png", *HOW, "--resume", weights=weights, out="other") == 2
    assert "crops: exists; " in capsys.readouterr().err


def test_a_file_of_somebody_is_not_replaced(photos, weights, capsys):
    (first,) = Detector(*load_weights(weights, device="cpu"))([photos / "a.png"])
    name = next(iter(first)).name
    (photos / "found" / "crops" / name).mkdir(parents=True)
    mine = photos / "found" / "crops" / name / "a_1.png"
    mine.write_bytes((photos / "a.png").read_bytes())
    assert detect("a.png", *HOW, "--resume", weights=weights, out="found") == 2
    assert "a_1.png: would be replaced, but `ssd detect` did not write it" in capsys.readouterr().err
    assert mine.read_bytes() == (photos / "a.png").read_bytes()


def test_crops_drawings_and_labels_together(photos, weights):
    options = [*HOW[:-1], "crops,drawings,labels", "--format", "coco"]
    assert detect(".", *options, weights=weights, out="found") == 0
    assert {path.name for path in (photos / "found").iterdir()} == {
        *("a.png", "b.png", "deeper", "crops", "coco", "detections.json", ".lock")
    }
