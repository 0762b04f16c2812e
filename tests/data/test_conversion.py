"""A data set that is written in another format holds the same."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from annotation_files import DEEP_FOREST, cvat, draw, table, write
from PIL import Image
from small_datasets import add_picture, add_split, as_yolo

from ssd.data import COCODataset, ReadOptions, VOCDataset, YOLODataset, list_splits, open_dataset
from ssd.data.conversion import convert_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
FORMATS = {"coco": COCODataset, "voc": VOCDataset, "yolo": YOLODataset}


def held(root, split=None, classes=None):
    """Edges, classes and marks of the objects of each picture, by the bytes of the picture."""
    dataset = open_dataset(root, split, classes, keep_crowds=True)
    labels = [[dataset.classes[label - 1] for label in truth["labels"]] for truth in dataset.truths]
    columns = zip(dataset.pictures, dataset.truths, labels, dataset.sizes.tolist(), strict=True)
    return {path.read_bytes(): (truth, names, size) for path, truth, names, size in columns}


def assert_same(ours, reference, atol=1e-6, marks=True):
    assert ours.keys() == reference.keys()
    for picture, (truth, names, size) in reference.items():
        its, its_names, its_size = ours[picture]
        assert (its_names, its_size) == (names, size)
        torch.testing.assert_close(its["boxes"], truth["boxes"], atol=atol, rtol=0)
        if marks:
            assert torch.equal(its["difficult"], truth["difficult"])


def picture(path, number, size=(60, 40), exif=None):
    """A picture that differs from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number, 0, 0)).save(path, **({"exif": exif} if exif else {}))


@pytest.fixture
def fractional(tmp_path):
    """CSV with fractional edges: two pictures of one name in each split, one on its side, one without objects."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the upright picture is 40 x 60
    for number, part in enumerate(("train", "val")):
        picture(tmp_path / "in" / part / "a.jpg", number)
        picture(tmp_path / "in" / part / "more" / "a.jpg", 2 + number, exif=exif)
        picture(tmp_path / "in" / part / "a.png", 4 + number)
        rows = ["more/a.jpg,10.1,0.3,39.7,59.9,zebra", "a.png,,,,,"]
        edges = np.random.default_rng(number).uniform((0, 0, 30, 20), (29, 19, 60, 40), (50, 4)).round(4).tolist()
        rows += [f"{part}/a.jpg,{','.join(map(str, box))},{name}" for box, name in zip(edges, "ab" * 25, strict=True)]
        write(tmp_path / "in" / part / "labels.csv", "image,x1,y1,x2,y2,label\n" + "\n".join(rows))
    return tmp_path / "in"


@pytest.mark.parametrize("way", [["coco"], ["voc"], ["yolo"], ["coco", "yolo", "voc", "coco"]], ids="-".join)
def test_the_same_is_read_back(fractional, tmp_path, way):
    source = fractional
    for i, format in enumerate(way):
        done, *notes = convert_dataset([source], tmp_path / f"{i}", format)
        assert (done, notes) == (f"wrote {tmp_path / f'{i}'}: 6 pictures, train 3, val 3", [])
        source = tmp_path / f"{i}"
        assert type(open_dataset(source)) is FORMATS[format]
    assert list_splits(source) == ["train", "val"]
    for split in ("train", "val", None):
        exact = not {"yolo"} & set(way)
        assert_same(held(source, split), held(fractional, split), 0 if exact else 1e-6)


def test_marks_and_areas(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20], "area": 99.5},
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 50, 30], "iscrowd": 1},
            {"image_id": 7, "category_id": 5, "bbox": [1, 2, 0.5, 20]},
        ],
        "categories": [{"id": 5, "name": "b"}, {"id": 3, "name": "z"}, {"id": 9, "name": "a"}],
    }
    draw(tmp_path / "coco" / "a.jpg")
    write(tmp_path / "coco" / "labels.json", content)
    assert convert_dataset([tmp_path / "coco"], tmp_path / "again", "coco")[1:] == []
    assert_same(held(tmp_path / "again"), held(tmp_path / "coco"), 0)
    assert open_dataset(tmp_path / "again").truths[0]["areas"].tolist() == [99.5, 10]
    assert open_dataset(tmp_path / "again").classes == ("z", "b", "a")
    assert list_splits(tmp_path / "again") == []
    assert convert_dataset([tmp_path / "coco"], tmp_path / "voc", "voc")[1:] == [
        "1 left out: crowds, which Pascal VOC's format lacks",
        "1 left out: boxes at most one pixel wide or high, which Pascal VOC's format does not tell from points",
    ]
    assert open_dataset(tmp_path / "voc").counts == {"z": 1}
    assert convert_dataset([tmp_path / "coco"], tmp_path / "yolo", "yolo")[1:] == [
        "1 left out: crowds, which YOLO's format lacks"
    ]
    assert open_dataset(tmp_path / "yolo").counts == {"z": 1, "b": 1, "a": 0}


def test_overlapping_splits_and_difficult_objects(tmp_path):
    root = tmp_path / "voc"
    for i, name in enumerate("abcd"):
        add_picture(root, name, [("cat", 1, 1, 20, 30, i % 2)], size=(60, 40 + i))
    for split, names in {"train": "a", "val": "bc", "trainval": "abc", "cat_train": "a"}.items():
        add_split(root, split, *names)
    for format in FORMATS:
        out = tmp_path / format if format != "voc" else tmp_path / "again"
        done, *notes = convert_dataset([root], out, format)
        assert done == f"wrote {out}: 3 pictures, train 1, val 2, trainval 3"
        marked = format == "voc"
        lost = [] if marked else ["1 difficult objects are written without this mark, which the format lacks"]
        assert notes == ["1 pictures are in no split to write, and left out", *lost]
        assert list_splits(out) == ["train", "trainval", "val"]
        for split in ("train", "val", "trainval"):
            assert_same(held(out, split), held(root, split), marks=marked)
        assert len(set(open_dataset(out).pictures)) == 3
    _, *notes = convert_dataset([root], tmp_path / "tar", "webdataset")  # in which pictures are copies
    assert notes[0] == "trainval is not written, since its pictures are in train and val"
    assert list_splits(tmp_path / "tar") == ["train", "val"]
    assert len(open_dataset(tmp_path / "tar")) == 3
    images = json.loads((tmp_path / "coco" / "annotations" / "instances_trainval.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["train/a.jpg", "val/b.jpg", "val/c.jpg"]
    notes = convert_dataset([tmp_path / "coco"], tmp_path / "from coco", "voc")[1:]
    assert notes == ["3 pictures are described more than once; the first description is written"]
    assert_same(held(tmp_path / "from coco", "trainval"), held(tmp_path / "coco", "trainval"))


def test_chosen_splits_and_classes_of_several_folders(voc, tmp_path):
    as_yolo(voc, tmp_path / "a", "yolo")
    as_yolo(voc, tmp_path / "b", "yolo")
    convert_dataset([tmp_path / "a", tmp_path / "b"], tmp_path / "out", "voc", ["val"], ["cat", "dog", "apple tree"])
    assert list_splits(tmp_path / "out") == ["val"]
    assert sorted(path.name for path in open_dataset(tmp_path / "out").pictures) == ["d.jpg", "d_2.jpg"]
    with pytest.raises(FileNotFoundError, match="no such split 'test'; there are: train, val"):
        convert_dataset([tmp_path / "a"], tmp_path / "no", "voc", ["test"])
    with pytest.raises(ValueError, match=r"unknown class .*; the classes are \('cat',\)"):
        convert_dataset([tmp_path / "a"], tmp_path / "no", "voc", (), ["cat"])
    assert not (tmp_path / "no").exists()
    convert_dataset([tmp_path / "a"], tmp_path / "cats", "coco", options=ReadOptions(only=("cat",)))
    every, cats = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "cats")
    assert cats.classes == ("cat",)
    is_cat = every.classes.index("cat") + 1
    expected = sorted(truth["boxes"][truth["labels"] == is_cat].tolist() for truth in every.truths)
    assert any(expected)
    assert sorted(truth["boxes"].tolist() for truth in cats.truths) == expected


def test_splits_that_yolo_cannot_name(tmp_path):
    draw(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "annotations.xml", cvat(["a.jpg"], subset="my part"))
    with pytest.raises(ValueError, match=r"YOLO's splits are named after train, val and test, but there is 'my part'"):
        convert_dataset([tmp_path / "in"], tmp_path / "out", "yolo")
    convert_dataset([tmp_path / "in"], tmp_path / "out", "voc")
    assert list_splits(tmp_path / "out") == ["my part"]
    write(tmp_path / "in" / "annotations.xml", cvat(["a.jpg"], subset="my/part"))
    with pytest.raises(ValueError, match="the split 'my/part' cannot be the name of a file"):
        convert_dataset([tmp_path / "in"], tmp_path / "out 2", "voc")


def test_yolo_has_the_classes_where_labelling_tools_look(tmp_path):
    for name in ("classes.jpg", "a.jpg"):
        draw(tmp_path / "in" / name)
    write(tmp_path / "in" / "labels.csv", table(["a.jpg", "classes.jpg"], *DEEP_FOREST))
    convert_dataset([tmp_path / "in"], tmp_path / "out", "yolo")
    names = open_dataset(tmp_path / "in").classes
    for place in ("classes.txt", "labels/classes.txt"):
        assert (tmp_path / "out" / place).read_text().splitlines() == list(names)
    assert (tmp_path / "out" / "labels" / "classes_1.txt").exists()  # the labels of classes.jpg
    assert_same(held(tmp_path / "out"), held(tmp_path / "in"))


def test_pictures_are_links_or_copies(tmp_path, monkeypatch):
    draw(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "labels.csv", table(["a.jpg"], *DEEP_FOREST))
    convert_dataset([tmp_path / "in"], tmp_path / "hard", "coco")
    assert (tmp_path / "hard" / "images" / "a.jpg").samefile(tmp_path / "in" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    convert_dataset(["in"], tmp_path / "soft", "coco", link=True)
    assert (tmp_path / "soft" / "images" / "a.jpg").is_symlink()
    assert len(open_dataset(tmp_path / "soft")) == 1

    def refuse(*_):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    convert_dataset([tmp_path / "in"], tmp_path / "copy", "coco")
    copy = tmp_path / "copy" / "images" / "a.jpg"
    assert not copy.samefile(tmp_path / "in" / "a.jpg")
    assert copy.read_bytes() == (tmp_path / "in" / "a.jpg").read_bytes()


def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    draw(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "labels.csv", table(["a.jpg"], *DEEP_FOREST))
    (tmp_path / "old").mkdir()
    with pytest.raises(FileExistsError, match="old: exists; choose another name"):
        convert_dataset([tmp_path / "in"], tmp_path / "old", "coco")
    with pytest.raises(ValueError, match=r"in/out: is inside of .*/in, where it would be read too"):
        convert_dataset([tmp_path / "in"], tmp_path / "in" / "out", "coco")
    with pytest.raises(FileNotFoundError, match="gone: no such folder; out cannot be written there"):
        convert_dataset([tmp_path / "in"], tmp_path / "gone" / "out", "coco")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ssd.data.writers.CocoWriter.finish", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*out'"):
        convert_dataset([tmp_path / "in"], tmp_path / "out", "coco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "old"]


def test_a_name_that_cannot_be_written(tmp_path):
    draw(tmp_path / "in" / "a\nb.jpg")
    write(tmp_path / "in" / "annotations" / "a.json", {"images": [{"id": 1, "file_name": "a\nb.jpg"}]})
    content = {"images": [{"id": 1, "file_name": "a\nb.jpg"}], "annotations": [], "categories": []}
    write(tmp_path / "in" / "annotations" / "a.json", content)
    with pytest.raises(ValueError, match="the name of the picture has characters that cannot be written; rename it"):
        convert_dataset([tmp_path / "in"], tmp_path / "out", "voc")
