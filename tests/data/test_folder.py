"""The files of a folder."""

import os
from pathlib import Path

import pytest

from ssd.data.folder import Folder, is_split, split_of
from ssd.data.members import text_of


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "train/b.PNG", "train/c.xml", ".hidden/d.jpg", "__MACOSX/._e.jpg", "._f.jpg", "x/y/b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_what_is_listed(folder):
    os.symlink(folder, folder / "x" / "loop")
    listed = Folder(folder)
    assert listed.pictures == ["a.jpg", "train/b.PNG", "x/y/b.jpg"]
    assert listed.files(".xml") == ["train/c.xml"]
    assert Folder(folder / "train" / "c.xml").files(".xml", ".txt") == ["c.xml"]


@pytest.mark.parametrize("root", [".", "x", "x/..", "/"])
def test_the_text_of_a_file_is_that_of_its_path(root):
    assert Folder(Path(root)).text("y/b.jpg") == text_of(Folder(Path(root)).root / "y/b.jpg")


@pytest.mark.parametrize(
    ("names", "hint", "found"),
    [
        (["b.jpg"], "", "x/y/b.jpg"),
        (["B.png"], "", "train/b.PNG"),
        (["", "b.tif"], "", "train/b.PNG"),  # nearest to the annotation
        (["b.tif"], "y", "x/y/b.jpg"),
        (["C:\\set\\y\\b.jpg"], "", "x/y/b.jpg"),
        (["gone", "a"], "", "a.jpg"),
        (["http://host/%61.jpg"], "", "a.jpg"),
    ],
)
def test_a_picture_is_found_by_its_name(folder, names, hint, found):
    assert Folder(folder).find(names, "train/c.xml", hint) == found


def test_names_of_splits():
    assert all(map(is_split, ("train", "Val", "valid", "test", "train2017", "val_1", "trainval")))
    assert not any(map(is_split, ("training_data", "images", "tests", "train_test", "", "2017")))
    assert [split_of(path) for path in ("images/train/a.jpg", "val2017/x/a.jpg", "train.jpg")] == [
        "train",
        "val2017",
        "",
    ]
