"""The report of a data set: its numbers, its pictures, and that nothing in the data can run as a script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import (
    NAMES,
    PICTURE,
    Page,
    assert_needs_no_other_file,
    assert_nothing_runs,
    in_browser,
    needs_browser,
    write_data,
)
from small_datasets import add_picture, add_split

from ssd.cli import main
from ssd.data import BoxDataset, open_dataset
from ssd.data.findings import KINDS
from ssd.data.prior_fit import measure_fit
from ssd.networks.ssd300 import SSD300
from ssd.reports import data as data_report
from ssd.reports.data import DataOrigin, write_data_report

pytestmark = pytest.mark.usefixtures("one_thread")


def report(path, dataset, splits=None):
    """Writes a report, and reads both of its files."""
    fit = measure_fit(dataset, SSD300(2, width=0.01))
    origin = DataOrigin("ssd info x --report out.html", ["x"], "ssd300", "torchvision", ["a note"])
    write_data_report(path, dataset, splits or {}, fit, origin)
    return Page(path.read_text("utf-8")), json.loads(path.with_suffix(".json").read_text("utf-8"))


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory):
    """Pictures in two splits with one of nearly everything that can be odd."""
    root = tmp_path_factory.mktemp("odd")
    size = {"size": (160, 120)}
    for i in range(6):  # the pixels depend on the length of the name
        add_picture(root, "s" * (i + 1), [("dog", 11, 11, 60 + i, 60), ("cat", 61, 21, 100, 80 + i)], **size)
    add_picture(root, "same_twice", [("dog", 5, 6, 60, 90), ("dog", 5, 6, 60, 90)], **size)
    add_picture(root, "two_classes", [("dog", 5, 6, 60, 90), ("cat", 5, 6, 60, 90)], **size)
    add_picture(root, "whole_picture_", [("bird", 1, 1, 160, 120), ("dog", 9, 9, 9, 9)], **size)
    add_picture(root, "nothing_in_it___", **size)
    shutil.copy(root / "JPEGImages" / "s.jpg", root / "JPEGImages" / "copied.jpg")
    shutil.copy(root / "Annotations" / "ss.xml", root / "Annotations" / "copied.xml")
    xml = (root / "Annotations" / "copied.xml").read_text().replace("ss.jpg", "copied.jpg")
    (root / "Annotations" / "copied.xml").write_text(xml)
    add_split(root, "train", *("s" * (i + 1) for i in range(6)), "same_twice", "two_classes", "whole_picture_")
    add_split(root, "val", "copied", "nothing_in_it___", "ssss")
    return root


@pytest.fixture(scope="module")
def written(odd_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "out.html"
    splits = {name: open_dataset(odd_data, name) for name in ("train", "val")}
    report(path, open_dataset(odd_data), splits)
    return path


def numbers_of(path):
    return json.loads(path.with_suffix(".json").read_text("utf-8"))


def test_numbers(written, odd_data):
    numbers = numbers_of(written)
    assert list(numbers) == [
        *("made_by", "date", "command", "versions", "data", "format", "summary", "n_pictures", "n_objects", "splits"),
        *("network", "classes", "without_prior", "notes", "warnings", "findings", "duplicates", "left_out"),
        *("unreadable", "not_shown"),
    ]
    assert (numbers["made_by"], numbers["format"]) == ("ssd info --report", "Pascal VOC")
    assert (numbers["n_pictures"], numbers["n_objects"]) == (11, 19)
    assert [(s["name"], s["n_pictures"], s["n_objects"]) for s in numbers["splits"]] == [
        ("train", 9, 17),
        ("val", 3, 4),
    ]
    rows = {row["name"]: row for row in numbers["classes"]}
    assert {name: (row["n_objects"], row["n_pictures"]) for name, row in rows.items()} == {
        "bird": (1, 1),
        "cat": (8, 8),
        "dog": (10, 9),
    }
    assert rows["dog"]["splits"] == {"train": 9, "val": 2}
    assert rows["bird"]["side"]["median"] == pytest.approx(300)
    assert rows["bird"]["without_prior"] in (0, 1)
    assert set(numbers["without_prior"]) == {"tutorial", "caffe_voc", "caffe_coco", "torchvision", "auto"}
    (left_out,) = numbers["left_out"]
    assert left_out["reason"] == "no width or height"
    assert left_out["file"] == str(odd_data / "Annotations" / "whole_picture_.xml")
    assert (numbers["unreadable"], numbers["not_shown"]) == ([], [])


def test_findings_name_the_file_and_the_box(written, odd_data):
    findings = {finding["kind"]: finding for finding in numbers_of(written)["findings"]}
    assert {kind: finding["count"] for kind, finding in findings.items()} == {
        "boxes that are there twice, with the same class": 1,
        "boxes that are there twice, with different classes": 1,
        "boxes of nearly the whole picture": 1,
        "pictures without objects": 1,
    }
    place = findings["boxes that are there twice, with different classes"]["places"][0]
    assert place == {
        "file": str(odd_data / "JPEGImages" / "two_classes.jpg"),
        "annotation": str(odd_data / "Annotations" / "two_classes.xml"),
        "index": 1,
        "class": "cat",
        "box": [4, 5, 60, 90],
        "other_index": 0,
        "other_class": "dog",
    }
    whole = findings["boxes of nearly the whole picture"]["places"][0]
    assert (whole["index"], whole["class"], whole["other_index"], whole["other_class"]) == (0, "bird", None, None)
    empty = findings["pictures without objects"]["places"][0]
    assert (empty["index"], empty["class"], empty["box"]) == (None, None, None)
    page = Page(written.read_text("utf-8"))
    headings = [text for _, text in page.all("h3")]
    assert [kind.capitalize() + ": 1" for kind in findings] == [text for text in headings if text.endswith(": 1")][:4]
    assert set(findings) <= set(KINDS)


def test_the_boxes_of_all_pictures_are_divided_a_few_times_and_not_for_each_picture(odd_data, tmp_path, monkeypatch):
    divided, objects = [], BoxDataset.objects.fget
    monkeypatch.setattr(BoxDataset, "objects", property(lambda dataset: divided.append(1) or objects(dataset)))
    report(tmp_path / "out.html", open_dataset(odd_data))
    assert len(divided) < 8  # of 11 pictures


def test_copies_in_two_splits_come_first(written, odd_data):
    pictures = odd_data / "JPEGImages"
    assert numbers_of(written)["duplicates"] == [
        {"files": [str(pictures / f"{n}.jpg") for n in group], "equal_bytes": True, "splits": ["train", "val"]}
        for group in (("copied", "s"), ("ssss",))  # the last one is listed in both
    ]


def test_the_gallery_shows_odd_pictures_first_and_every_class(tmp_path, monkeypatch):
    monkeypatch.setattr(data_report, "SHOWN_PICTURES", 4)
    monkeypatch.setattr(data_report, "MOST_PICTURES", 5)
    for i in range(9):
        add_picture(tmp_path, f"p{i}", [("dog", 1, 1, 30, 30)])
    add_picture(tmp_path, "rare", [("cat", 1, 1, 30, 30), ("bird", 1, 1, 20, 30)])
    add_picture(tmp_path, "rarest", [("cow", 1, 1, 30, 30)])
    for name in ("ant", "ants"):
        add_picture(tmp_path, name, [("ant", 1, 1, 30, 30)])
    for i in range(3):
        add_picture(tmp_path, f"odd{i}", [("dog", 1, 1, 60, 40)] * (i + 1))
    dataset = open_dataset(tmp_path)
    page, numbers = report(tmp_path / "out.html", dataset)
    files = [text.rpartition("/")[2].removesuffix(".jpg") for _, text in page.all("span", "file")]
    assert files[:2] == ["odd2", "odd1"]  # half of four
    assert files[2:5] == ["rare", "rarest", "ant"]
    assert numbers["not_shown"] == []
    monkeypatch.setattr(data_report, "MOST_PICTURES", 3)
    assert report(tmp_path / "out.html", dataset)[1]["not_shown"] == ["ant", "cow"]


def test_unreadable_pictures_are_listed(tmp_path, capsys):
    for name in ("a", "bb", "ccc", "dddd"):
        add_picture(tmp_path, name, [("dog", 1, 1, 30, 30)])
    (tmp_path / "JPEGImages" / "bb.jpg").write_bytes(b"no picture")
    whole = (tmp_path / "JPEGImages" / "ccc.jpg").read_bytes()
    (tmp_path / "JPEGImages" / "ccc.jpg").write_bytes(whole[: len(whole) // 3])  # its header is there
    path = tmp_path / "out.html"
    assert main(["info", str(tmp_path), "--network", "ssd300", "--report", str(path)]) == 0
    assert f"{path}: the report, for a browser" in capsys.readouterr().out
    unreadable = numbers_of(path)["unreadable"]
    assert sorted(Path(row["file"]).name for row in unreadable) == ["bb.jpg", "ccc.jpg"]
    assert all(row["file"] in row["error"] for row in unreadable)
    assert "Pictures that cannot be read: 2" in [text for _, text in Page(path.read_text("utf-8")).all("h3")]
    assert main(["info", str(tmp_path), "--network", "ssd300"]) == 2  # without a report it is an error


def test_the_command_repeats_the_report(tmp_path, written, odd_data, capsys):
    path = tmp_path / "out.html"
    command = ["info", str(odd_data), "--network", "ssdlite", "--size", "224", "--report", str(path)]
    assert main(command) == 0
    first = numbers_of(path)
    assert first["network"] == {"name": "ssdlite", "size": 224, "priors": "auto"}
    assert main(first["command"].split()[1:]) == 0
    assert {**numbers_of(path), "date": None} == {**first, "date": None}
    assert first["duplicates"] == numbers_of(written)["duplicates"]
    assert main(["info", "--report", str(path)]) == 2
    assert "--report reads DATA: name at least one folder" in capsys.readouterr().err
    assert main(["info", str(odd_data), "--report", str(tmp_path / "out.txt")]) == 2


def test_nothing_of_the_data_runs(tmp_path):
    dataset = write_data(tmp_path / "evil")
    page, numbers = report(tmp_path / "out.html", dataset)
    assert_nothing_runs((tmp_path / "out.html").read_text("utf-8"))
    assert [row["name"] for row in numbers["classes"]] == list(NAMES)
    assert page.all("span", "file")[0][1].startswith(f"{PICTURE[0]}/")


def test_the_page_needs_no_other_file(written):
    assert_needs_no_other_file(written.read_text("utf-8"))


def test_the_size_is_bounded(tmp_path):
    """Also of noise, which JPEG compresses worst, with many classes and findings."""
    rng = np.random.default_rng(0)
    for i in range(80):
        boxes = [(f"class {(3 * i + k) % 150}", 1, 1, 1000, 800) for k in range(30)]
        add_picture(tmp_path, f"p{i}", boxes, size=(1000, 800))
        if i % 4 == 0:
            noise = rng.integers(0, 256, (800, 1000, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "JPEGImages" / f"p{i}.jpg", quality=30)
    path = tmp_path / "out.html"
    page, _ = report(path, open_dataset(tmp_path))
    assert len(page.all("image")) > 80
    assert path.stat().st_size < 8e6


def test_no_objects_and_no_splits(tmp_path):
    add_picture(tmp_path, "a", [("dog", 9, 9, 9, 9)])
    page, numbers = report(tmp_path / "out.html", open_dataset(tmp_path))
    assert numbers["n_objects"] == 0
    assert numbers["classes"][0]["side"] == {"low": None, "median": None, "high": None}
    assert not page.all("svg", "plot")


@needs_browser
def test_the_script_works_in_a_browser(written, tmp_path):
    page = in_browser(written, tmp_path)
    assert page.all("html")[0][0]["class"] == "scripted"
    assert [text for _, text in page.all("option")] == ["all classes", "bird", "cat", "dog"]
    assert "no-names" in page.all("body")[0][0]["class"]
