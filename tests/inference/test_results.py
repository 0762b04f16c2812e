"""The results of `ssd detect`: whole files of JSON, and runs that are stopped and go on."""

import json
import signal

import pytest
import torch
from detect_command import contents, detect

from ssd import load_weights
from ssd.data.shapes import write_shapes
from ssd.inference import results
from ssd.runtime.files import locked
from ssd.weights.checkpoint import save_checkpoint
from ssd_ext import DetectionOptions


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Seven pictures and a damaged one in the working folder, and what a run that is never stopped leaves of them."""
    monkeypatch.chdir(tmp_path)
    pictures = sorted((write_shapes(tmp_path / "shapes", 7, 0) / "JPEGImages").iterdir())
    (tmp_path / "in").mkdir()
    for i, picture in enumerate(pictures):
        picture.rename(tmp_path / "in" / f"{i}.jpg")
    (tmp_path / "in" / "3a.jpg").write_bytes((tmp_path / "in" / "3.jpg").read_bytes()[:2000])
    return tmp_path


HOW = ["in", "--min-score", "0.1", "--top-k", "9", "--batch-size", "2", "--workers", "1"]


def left_by(folder):
    """The files of a folder by their names."""
    return {str(path.relative_to(folder)): content for path, content in contents(folder).items()}


@pytest.fixture
def at_picture(monkeypatch):
    def at(number, action):
        """Does something before the results of this picture are added, counted from 1."""
        original, calls = results.Results.add, []

        def add(self, found):
            calls.append(found.picture.path.name)
            if len(calls) == number:
                action()
            original(self, found)

        monkeypatch.setattr(results.Results, "add", add)
        return calls

    return at


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("action", "kept"),
    [
        (lambda: signal.raise_signal(signal.SIGTERM), 4),  # ends the batch
        (lambda: signal.raise_signal(signal.SIGINT), 4),
        (lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)), 2),  # ends at once
    ],
)
def test_a_stopped_detection_goes_on(many, weights, at_picture, capsys, action, kept):
    assert detect(*HOW, weights=weights, out="whole") == 1
    at_picture(3, action)
    assert detect(*HOW, weights=weights, out="found") == 130
    if kept == 4:
        assert "stopped after 4 of 8 pictures; to continue, add --resume to the same command" in capsys.readouterr().out
    stopped = left_by(many / "found")
    assert stopped["detections.0.jsonl"].count(b"\n") == 1 + kept
    assert "detections.json" not in stopped
    for other, error in (
        ([], f"found: has unfinished results of {kept} pictures; continue with --resume"),
        (["--resume", "--top-k", "8"], "detections.0.jsonl: was made with top_k 9, and this run has 8"),
    ):
        assert detect(*HOW, *other, weights=weights, out="found") == 2
        assert error in capsys.readouterr().err
        assert left_by(many / "found") == stopped
    added = at_picture(0, None)
    assert detect(*HOW, "--resume", weights=weights, out="found") == 1
    assert len(added) == 7 - kept
    printed = capsys.readouterr()
    assert f"resuming: {kept} of 8 pictures already have a result" in printed.err
    assert "1 of 8 pictures could not be read" in printed.err
    assert left_by(many / "found") == left_by(many / "whole")


def test_what_a_kill_has_cut_is_done_again(many, weights, at_picture):
    """And what several processes have left is put together, whoever of them it was."""
    assert detect(*HOW, weights=weights, out="whole") == 1
    at_picture(6, interrupt)
    assert detect(*HOW, weights=weights, out="found") == 130
    part = many / "found" / "detections.0.jsonl"
    head, *lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(head + lines[4] + lines[1][:-1])  # cut before the line's end
    (many / "found" / "detections.12.jsonl").write_bytes(head + lines[3] + lines[0] + lines[2][:20])
    for name in (".detections.json.123.tmp", ".5.png.123.tmp"):
        (many / "found" / name).write_text("left by a kill")
    added = at_picture(0, None)
    assert detect(*HOW, "--resume", weights=weights, out="found") == 1
    assert added == ["1.jpg", "2.jpg", "5.jpg", "6.jpg"]
    assert left_by(many / "found") == left_by(many / "whole")


def test_a_full_disk_ends_detection_and_it_goes_on(many, weights, at_picture, capsys):
    resource = pytest.importorskip("resource")
    assert detect(*HOW, "--no-drawings", weights=weights, out="whole") == 1
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_picture(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4500, limits[1])))
    try:
        assert detect(*HOW, "--no-drawings", weights=weights, out="found") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed, part = capsys.readouterr(), (many / "found" / "detections.0.jsonl").read_bytes()
    assert "File too large: 'found/detections.0.jsonl'" in printed.err
    assert not part.endswith(b"\n")
    assert printed.out.count(".jpg: ") == part.count(b"\n") - 1  # what was announced is there
    assert detect(*HOW, "--no-drawings", "--resume", weights=weights, out="found") == 1
    assert left_by(many / "found") == left_by(many / "whole")


def test_pictures_that_are_added_later_are_done_alone(many, weights, at_picture, capsys):
    """Also where one takes the name that the drawing of another had."""
    (many / "in" / "3a.jpg").unlink()
    (many / "later").mkdir()
    for name in ("0", "4", "6"):
        (many / "in" / f"{name}.jpg").rename(many / "later" / f"{name}.jpg")
    assert detect(*HOW, "--resume", weights=weights, out="found") == 0
    assert not list((many / "found").glob("*.jsonl"))
    (many / "later" / "4.jpg").rename(many / "in" / "2.gif")  # before 2.jpg, which was drawn as 2.png
    (many / "later" / "6.jpg").rename(many / "in" / "6.jpg")
    added = at_picture(0, None)
    assert detect(*HOW, "--resume", weights=weights, out="found") == 0
    assert added == ["2.gif", "2.jpg", "6.jpg"]
    assert detect(*HOW, weights=weights, out="whole") == 0
    assert left_by(many / "found") == left_by(many / "whole")

    before = left_by(many / "found")
    assert detect("later", "in/1.jpg", "--resume", *HOW[1:], weights=weights, out="found") == 2
    assert "has results of 5 pictures that this run does not name, such as in/2.gif" in capsys.readouterr().err
    (many / "in").rename(many / "moved")
    assert detect("moved", "--resume", *HOW[1:], weights=weights, out="found") == 2
    assert "has results of 6 pictures that this run does not name, such as in/1.jpg" in capsys.readouterr().err
    assert left_by(many / "found") == before
    (many / "moved").rename(many / "in")
    (many / "in" / "5.jpg").rename(many / "5.jpg")
    assert detect(*HOW, "--resume", weights=weights, out="found") == 0
    assert "results left out, because their pictures no longer exist: 1, such as in/5.jpg" in capsys.readouterr().err
    assert len(json.loads((many / "found" / "detections.json").read_text())["images"]) == 5
    assert json.loads(before["detections.json"])["images"][3]["drawing"] == "3.png"


def test_detection_without_resume_begins_anew(photos, weights, at_picture, capsys):
    """Older results are there until the new ones are whole, and another run cannot come between."""
    assert detect(".", weights=weights, out="found") == 0
    before = contents(photos)
    at_picture(2, interrupt)
    assert detect(".", "--no-drawings", "--top-k", "1", weights=weights, out="found") == 130
    part = photos / "found" / "detections.0.jsonl"
    assert contents(photos) == before | {part: part.read_bytes()}
    with locked(photos / "found"):
        assert detect(".", "--resume", weights=weights, out="found") == 2
    assert "another run is writing there" in capsys.readouterr().err
    part.write_text("of somebody else")
    assert detect(".", "--resume", weights=weights, out="found") == 2
    assert "detections.0.jsonl: would be replaced, but `ssd detect` did not write it" in capsys.readouterr().err


def test_a_network_with_nan_writes_strict_json(photos, weights, tmp_path):
    model, classes = load_weights(weights, device="cpu")
    with torch.no_grad():
        for name, parameter in model.pred_convs.named_parameters():
            if name.startswith("loc_") and name.endswith("bias"):
                parameter[2] = torch.nan  # the width of the first box of each cell
    save_checkpoint(tmp_path / "nan.pt", model, classes)
    assert detect(".", "--min-score", "0.1", weights=tmp_path / "nan.pt", out="found") == 0
    text = (photos / "found" / "detections.json").read_text()
    assert len(json.loads(text, parse_constant=pytest.fail)["annotations"]) > 0
    with pytest.raises(ValueError, match="not JSON compliant"), results.coco_results(tmp_path, classes) as rows:
        rows.annotations.add(score=float("nan"))


def test_options_of_thousands_of_classes_are_read_back(tmp_path):
    names = [f"class number {i}" for i in range(20_000)]
    info = results.made_by("w.pt", DetectionOptions(), names, dict.fromkeys(names, 0.25))
    with results.coco_results(tmp_path, names, info):
        pass
    assert results.info_of(tmp_path / results.JSON_NAME) == {"description": results.MARK, **info}
