"""The files of a folder."""

import os
import time
import unicodedata
from collections import defaultdict
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


@pytest.mark.parametrize(("disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_and_syllables_are_found_in_single_characters_and_in_several(tmp_path, disk, written):
    """macOS writes several characters for one."""
    for path in ("강아지/사진.jpg", "고양이/사진.jpg", "école.jpg", "Ärger.dng"):
        path = tmp_path / unicodedata.normalize(disk, path)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    folder = Folder(tmp_path)
    for name in ("강아지/사진.jpg", "고양이\\사진.jpg", "ÉCOLE.jpg", "école", "%C3%A9cole"):
        found = folder.find([unicodedata.normalize(written, name)], "boxes.csv")
        assert found in folder.pictures
        assert unicodedata.normalize("NFC", found)[0] == (name[0] if name[0] in "강고" else "é")
    with pytest.raises(FileNotFoundError, match="convert it to JPEG"):
        folder.find([unicodedata.normalize(written, "Ärger.jpg")], "boxes.csv")


@pytest.fixture
def many(monkeypatch):
    """Makes a folder with these pictures of each of 2000 sequences."""

    def made(*patterns):
        files = defaultdict(list)
        for pattern in patterns:
            for path in map(pattern.format, range(2000)):
                files[os.path.splitext(path)[1]].append(path)
        monkeypatch.setattr(Folder, "_listed", ([], files))
        return Folder(Path("/data"))

    return made


@pytest.mark.parametrize(
    ("pattern", "name", "beside"),
    [
        ("images/seq{}/1.jpg", "seq{}/1.jpg", "boxes.json"),
        ("seq{}/images/1.jpg", "/other/seq{}/images/1.jpg", "boxes.json"),
        ("seq{}/1.jpg", "1.jpg", "seq{}/1.xml"),
        ("seq{}/images/1.jpg", "1.tif", "seq{}/labels/1.xml"),
    ],
)
def test_the_time_to_find_a_picture_does_not_grow_with_the_pictures_of_its_name(many, pattern, name, beside):
    folder, began = many(pattern), time.process_time()
    for i in range(2000):
        assert folder.find([name.format(i)], beside.format(i)) == pattern.format(i)
    assert time.process_time() - began < 4  # it took minutes


def test_the_time_to_miss_a_picture_does_not_grow_with_those_that_cannot_be_read(many):
    folder, began = many("{}.dng"), time.process_time()
    for i in range(2000):
        with pytest.raises(FileNotFoundError, match=rf"no picture '{i}\.jpg' in /data \({i}\.dng: .*convert it"):
            folder.find([f"{i}.jpg"], "boxes.json")
    assert time.process_time() - began < 4


def test_what_is_there_is_counted_by_suffix(tmp_path):
    for name in ("README", "LICENSE", "a.md", "v1.0/notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert Folder(tmp_path).contents() == "2 files at the top, 1 .md at the top, 1 files in v1.0"


def test_names_of_splits():
    assert all(map(is_split, ("train", "Val", "valid", "test", "train2017", "val_1", "trainval")))
    assert not any(map(is_split, ("training_data", "images", "tests", "train_test", "", "2017")))
    assert [split_of(path) for path in ("images/train/a.jpg", "val2017/x/a.jpg", "train.jpg")] == [
        "train",
        "val2017",
        "",
    ]
