"""Data sets in Pascal VOC layout."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_datasets import add_picture, add_split
from torchvision import tv_tensors

from ssd.data import ImageReadError, ReadOptions, VOCDataset, list_splits, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def test_pictures_and_boxes(pair):
    dataset = VOCDataset(pair)
    assert dataset.classes == ("cat", "dog")
    assert [path.name for path in dataset.pictures] == ["a.jpg", "b.jpg"]
    image, target = dataset[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.shape, image.dtype) == ((3, 40, 60), torch.uint8)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (40, 60)
    # VOC counts pixels from 1 and includes the last: 1..60 is the whole width
    assert target["boxes"].tolist() == [[0, 0, 60, 40], [10.5, 4, 20, 30]]
    assert target["labels"].tolist() == [2, 1]
    assert target["difficult"].tolist() == [False, True]


def test_a_picture_without_objects_is_kept(pair):
    image, target = VOCDataset(pair)[1]
    assert image.shape == (3, 40, 60)
    assert {name: (tuple(value.shape), value.dtype) for name, value in target.items()} == {
        "boxes": ((0, 4), torch.float32),
        "labels": ((0,), torch.int64),
        "difficult": ((0,), torch.bool),
    }


def test_splits_and_several_folders(pair, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    add_picture(other, "c", [("bird", 1, 1, 5, 5)])
    add_split(other, "train", "c")
    dataset = VOCDataset([pair, str(other)], "train")
    assert [path.name for path in dataset.pictures] == ["b.jpg", "a.jpg", "c.jpg"]
    assert dataset.classes == ("bird", "cat", "dog")
    assert len(VOCDataset(pair, "test")) == 1
    assert list_splits(pair) == ["test", "train"]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list_splits(pair / "nowhere")


@pytest.mark.parametrize("suffix", [".JPG", ".Jpeg", ".XML"])
def test_a_split_may_have_suffixes_in_any_case(pair, suffix):
    add_split(pair, "train", f"a{suffix}", f"JPEGImages/b{suffix} 1")
    assert [path.name for path in VOCDataset(pair, "train").pictures] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_and_classes_may_have_accents_in_single_characters_or_in_several(tmp_path, disk, written):
    names = [unicodedata.normalize(form, "é") for form in (disk, written)]
    for name in "ab":
        add_picture(tmp_path, name, [(form, 1, 1, 20, 20) for form in names], filename=f"{names[1]}{name}.jpg")
        for file in (tmp_path / "Annotations" / f"{name}.xml", tmp_path / "JPEGImages" / f"{name}.jpg"):
            file.rename(file.with_stem(f"{names[0]}{name}"))
    add_split(tmp_path, "train", f"{names[1]}a", f"{names[1]}b.jpg")
    dataset = open_dataset(tmp_path, "train")
    assert [path.stem for path in dataset.pictures] == [f"{names[0]}a", f"{names[0]}b"]
    assert dataset.counts == {"é": 4}
    assert open_dataset(tmp_path, classes=["x", names[1]]).counts == {"x": 0, "é": 4}
    assert open_dataset(tmp_path, options=ReadOptions(only=(names[1],))).counts == {"é": 4}


def test_a_split_may_have_a_byte_order_mark_and_more_columns(pair):
    (pair / "ImageSets" / "Main" / "dog_train.txt").write_bytes(b"\xef\xbb\xbfa  1\r\nb -1\r\n")
    assert [path.name for path in VOCDataset(pair, "dog_train").pictures] == ["a.jpg", "b.jpg"]


def test_given_classes_fix_the_labels(pair):
    assert open_dataset(pair, classes=("bird", "dog", "cow", "cat"))[0][1]["labels"].tolist() == [2, 4]


def test_difficult_objects_can_be_left_out(pair):
    dataset = VOCDataset(pair, keep_difficult=False)
    assert dataset[0][1]["labels"].tolist() == [2]
    assert dataset.dropped == []


@pytest.mark.parametrize(
    ("filename", "suffix"),
    [
        ("a.JPG", ".jpg"),
        ("", ".jpg"),
        ("gone.jpg", ".PNG"),
        ("C:\\set\\a.jpg", ".jpg"),
        ("x/a.jpg", ".jpg"),
        ("a", ".bmp"),
    ],
)
def test_finding_the_picture(tmp_path, filename, suffix):
    add_picture(tmp_path, "a", filename=filename, suffix=suffix)
    dataset = VOCDataset(tmp_path, classes=("x",))
    assert dataset.pictures == [tmp_path / "JPEGImages" / f"a{suffix}"]


@pytest.mark.parametrize("filename", ["B.JPG", "C:\\set\\b.jpg", "set/b.jpg"])
def test_the_filename_may_hold_a_path_and_differ_in_case(tmp_path, filename):
    add_picture(tmp_path, "a", filename=filename)
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "b.jpg")
    assert [path.name for path in VOCDataset(tmp_path, classes=("x",)).pictures] == ["b.jpg"]


def test_an_exact_filename_goes_before_one_in_another_case(tmp_path):
    add_picture(tmp_path, "a", filename="B.jpg")
    for name in ("b.jpg", "B.jpg", "b.JPG"):
        Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / name)
    if len(list((tmp_path / "JPEGImages").iterdir())) < 4:
        pytest.skip("this file system takes the three names for one")
    assert [path.name for path in VOCDataset(tmp_path, classes=("x",)).pictures] == ["B.jpg"]


def test_the_filename_goes_before_the_name_of_the_annotation(tmp_path):
    add_picture(tmp_path, "a", filename="b.jpg")
    add_picture(tmp_path, "b")
    assert [path.name for path in VOCDataset(tmp_path, classes=("x",)).pictures] == ["b.jpg", "b.jpg"]


def emptied(folder: Path):
    """The folders of the layout, with nothing in them."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        file.unlink()


BROKEN = [
    *["<annotation><object>", ""],
    "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>",
    "<annotation><object><name>x</name><bndbox><xmin>one</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    "</object></annotation>",
]


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (
            emptied,
            {},
            FileNotFoundError,
            r"no annotated pictures were found; the folder has nothing\. The layouts that are read:\s+Pascal VOC: \*",
        ),
        (None, {"split": "val"}, FileNotFoundError, "no such split 'val'; there are: test, train"),
        (
            lambda p: add_split(p, "train", "a", "ghost"),
            {"split": "train"},
            FileNotFoundError,
            r"train\.txt: lists 'ghost', but no XML file",
        ),
        (
            lambda p: (p / "JPEGImages/b.jpg").unlink(),
            {},
            FileNotFoundError,
            r"Annotations/b\.xml: no picture 'b\.jpg'",
        ),
        (None, {"classes": ("dog", "cow")}, ValueError, r"a\.xml: unknown class 'cat'.*'dog', 'cow'"),
        (None, {"classes": ("dog", "cat", "dog")}, ValueError, "'dog', 'cat', 'dog'"),
        (lambda p: (p / "JPEGImages/b.jpg").write_text("hello"), {}, ImageReadError, r"b\.jpg"),
        *[(lambda p, text=t: (p / "Annotations/b.xml").write_text(text), {}, ValueError, r"b\.xml") for t in BROKEN],
    ],
)
def test_errors_name_the_file(pair, damage, options, error, message):
    if damage:
        damage(pair)
    with pytest.raises(error, match=message):
        open_dataset(pair, **options)
