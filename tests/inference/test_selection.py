"""Detections of some classes, and scores that differ by class: what is kept, and what is wrong in a file."""

import json
import re

import numpy as np
import pytest
import torch
from detect_command import detect, write_spread

import ssd
from ssd.export import export
from ssd.inference.selection import Selection, read_thresholds
from ssd_ext import DetectionOptions

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    return write_spread(tmp_path_factory.mktemp("weights") / "spread.pt")


@pytest.fixture(scope="module")
def pictures(shapes):
    return sorted((shapes / "JPEGImages").iterdir())


def load(spread, **options):
    return ssd.Detector.load(spread, device="cpu", bf16=False, **options)


def rows(found):
    return [(o.name, o.score, o.box) for o in found]


def test_scores_are_above_the_threshold_of_their_class():
    scores = torch.tensor([0.3, 0.3, 0.3, 0.6, 0.9, 0.9])
    scores[1] = float(np.nextafter(np.float32(0.3), np.float32(1)))
    labels = torch.tensor([1, 1, 2, 3, 3, 0])
    selection = Selection(CLASSES, 0.1, thresholds={"circle": 0.3, "triangle": 0.6})
    assert selection(labels, scores).tolist() == [False, True, True, False, True, False]  # above, not equal
    every = Selection(CLASSES, 0.3)
    assert every(labels, scores).tolist() == [False, True, False, True, True, False]
    for options, lowest in (
        ({}, 0.3),
        ({"thresholds": {"circle": 0}}, 0),
        ({"only": ["circle"], "thresholds": {"circle": 0.7}}, 0.7),
        ({"only": ["circle", "square"], "thresholds": {"circle": 0.7}}, 0.3),
    ):
        assert Selection(CLASSES, 0.3, **options).lowest == lowest


def test_a_detector_returns_only_some_classes(spread, pictures):
    every = load(spread, min_score=0.3, top_k=20)(pictures)
    assert len({name for found in every for name, *_ in rows(found)}) > 1
    some = load(spread, min_score=0.3, top_k=20, only=["triangle", "circle"])(pictures)
    for ours, theirs in zip(some, every, strict=True):
        assert rows(ours) == [row for row in rows(theirs) if row[0] != "square"]  # after top_k
        assert ours.classes == CLASSES
    assert [*map(rows, load(spread, min_score=0.3, top_k=20, only=CLASSES)(pictures))] == [*map(rows, every)]


def test_each_class_has_its_own_score(spread, pictures):
    """As if the detections of a run with the lowest score were filtered afterwards."""
    thresholds = {"circle": 0.2, "square": 0.6}
    least = {"circle": 0.2, "square": 0.6, "triangle": 0.4}
    wide = load(spread, min_score=0.1, top_k=10**5)(pictures)
    ours = load(spread, min_score=0.4, top_k=10**5, thresholds=thresholds)(pictures)
    for found, all_found in zip(ours, wide, strict=True):
        assert rows(found) == [row for row in rows(all_found) if row[1] > least[row[0]]]
    scores = {name: [o.score for found in ours for o in found if o.name == name] for name in CLASSES}
    assert {name: min(its) > least[name] for name, its in scores.items()} == dict.fromkeys(CLASSES, True)
    assert min(scores["circle"]) < 0.4  # below min_score


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"only": ["cat", "circle", "dog"]},
            "only: there is no class 'cat', 'dog'; the classes are circle, square, tri",
        ),
        ({"only": []}, "only must be a list of at least one class"),
        ({"thresholds": {"cat": 0.5}}, "thresholds: there is no class 'cat'; the classes are circle, square, triangle"),
        ({"thresholds": {"circle": 1.5}}, "thresholds: the score of 'circle' must be a number from 0 to 1, got 1.5"),
        ({"thresholds": [0.5]}, "thresholds: must be an object {class name: score}, got [0.5]"),
    ],
)
def test_wrong_choices_are_named(spread, options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        load(spread, **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "broken JSON (Expecting"),
        ("[1]", "thresholds: must be an object {class name: score}, got [1]"),
        ('{"a": "0.5"}', "thresholds: the score of 'a' must be a number from 0 to 1, got 0.5"),
        ('{"a": true}', "thresholds: the score of 'a' must be a number from 0 to 1, got True"),
        ('{"a": NaN}', "thresholds: the score of 'a' must be a number from 0 to 1, got nan"),
        ('{"a": -0.1}', "thresholds: the score of 'a' must be a number from 0 to 1, got -0.1"),
        ('{"a": 0.5, "b": 1, "a": 0.6}', "'a' has two thresholds"),
        ('{"made_by": "ssd train", "mAP": 0.5}', "has no thresholds; give the JSON file that ssd eval --report writes"),
        ('{"info": {}, "annotations": []}', "has no thresholds; give the JSON file that ssd eval --report writes"),
        ('{"a": {"score": 1}}', "thresholds: the score of 'a' must be a number"),
        (b"\xff\xfe\xff", "is not utf-16 text"),
        ('{"made_by": "ssd eval --report"}', "is not a complete report of `ssd eval`"),
        ('{"made_by": "ssd eval --report", "classes": [1]}', "is not a complete report of `ssd eval`"),
        ('{"made_by": "ssd eval --report", "classes": [{"name": "a", "min_score": -0.1}]}', "thresholds: the score"),
    ],
)
def test_wrong_files_of_thresholds_are_named(tmp_path, text, says):
    path = tmp_path / "t.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"t\.json: {re.escape(says)}"):
        read_thresholds(path)
    path.write_text('{"\u00e4": 1, "b": 0.25}', encoding="utf-8")
    assert read_thresholds(path) == {"\u00e4": 1, "b": 0.25}


def test_an_exported_program_has_a_lowest_score(spread, pictures, tmp_path):
    export(spread, tmp_path / "x.pt2", options=DetectionOptions(min_score=0.3, top_k=20), check=())
    loaded = ssd.Detector.load(tmp_path / "x.pt2", only=["circle"], thresholds={"circle": 0.5})
    every = ssd.Detector.load(tmp_path / "x.pt2")(pictures[0])
    assert rows(loaded(pictures[0])) == [row for row in rows(every) if row[0] == "circle" and row[1] > 0.5]
    with pytest.raises(ValueError, match=r"the threshold 0\.2 of 'circle' is below the min_score 0\.3 of the exported"):
        ssd.Detector.load(tmp_path / "x.pt2", thresholds={"circle": 0.2})


def test_an_exported_program_sees_mirrored_pictures_too(spread, pictures, tmp_path):
    """With its own lowest score, which must be half of that of the network."""
    export(spread, tmp_path / "x.pt2", options=DetectionOptions(min_score=0.15, top_k=20), check=())
    network = ssd.Detector.load(spread, min_score=0.3, top_k=20, flip=True, device="cpu", bf16=False)
    expected, plain = network(pictures[0]), ssd.Detector.load(tmp_path / "x.pt2")(pictures[0])
    found = ssd.Detector.load(tmp_path / "x.pt2", flip=True)(pictures[0])
    kept = found.scores > 0.3
    assert kept.sum() == len(expected) > 0
    torch.testing.assert_close(found.scores[kept], expected.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes[kept], expected.boxes, rtol=1e-3, atol=0.05)
    assert not torch.equal(found.boxes[: len(plain)], plain.boxes)


def test_the_options_of_detect(spread, photos, capsys):
    """They are part of what a resumed run must repeat."""
    arguments = [".", "--no-drawings", "--min-score", "0.4", "--top-k", "100000"]
    (photos / "t.json").write_text('{"circle": 0.2, "square": 0.6}')

    def annotations(out):
        return json.loads((photos / out / "detections.json").read_text())["annotations"]

    assert detect(*arguments, "--thresholds", "t.json", "--only", "square,circle", weights=spread, out="found") == 0
    found = annotations("found")
    assert {row["category_id"] for row in found} == {1, 2}
    assert min(row["score"] for row in found if row["category_id"] == 2) > 0.6
    assert 0.2 < min(row["score"] for row in found if row["category_id"] == 1) < 0.4
    both = [*arguments, "--thresholds", "t.json", "--only", "circle,square", "--resume"]
    assert detect(*both, weights=spread, out="found") == 0
    without = {name: [*both[: (at := both.index(f"--{name}"))], *both[at + 2 :]] for name in ("only", "thresholds")}
    for name, other in without.items():
        assert detect(*other, weights=spread, out="found") == 2
        assert f"detections.json: was made with {name} " in capsys.readouterr().err
    assert annotations("found") == found
    assert detect(*arguments, "--only", "dog", weights=spread, out="other") == 2
    assert "only: there is no class 'dog'; the classes are circle, square, triangle" in capsys.readouterr().err
    (photos / "t.json").write_text('{"circle": 2}')
    assert detect(*arguments, "--thresholds", "t.json", weights=spread, out="other") == 2
    assert "t.json: thresholds: the score of 'circle' must be a number from 0 to 1, got 2" in capsys.readouterr().err
    assert detect(*arguments, "--thresholds", "gone.json", weights=spread, out="other") == 2
    assert "gone.json" in capsys.readouterr().err
