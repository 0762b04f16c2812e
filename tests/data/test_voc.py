from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_datasets import add_picture, add_split, cut
from torchvision import tv_tensors

from ssd.data import ImageReadError, VOCDataset, dataset, list_splits, open_dataset, read_image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Two pictures, of which one shows a dog and a difficult cat and the other nothing."""
    add_picture(tmp_path, "a", [("dog", 1, 1, 60, 40), ("cat", 11.5, 5, 20, 30, 1)])
    add_picture(tmp_path, "b")
    add_split(tmp_path, "train", "b", "a")
    add_split(tmp_path, "test", "a")
    return tmp_path


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


def test_samples_are_not_shared(pair):
    dataset = VOCDataset(pair)
    for value in dataset[0][1].values():
        value.zero_()
    assert dataset[0][1]["labels"].tolist() == [2, 1]
    assert dataset[0][1]["boxes"].any()


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


def test_a_split_may_have_a_byte_order_mark_and_more_columns(pair):
    (pair / "ImageSets" / "Main" / "dog_train.txt").write_bytes(b"\xef\xbb\xbfa  1\r\nb -1\r\n")
    assert [path.name for path in VOCDataset(pair, "dog_train").pictures] == ["a.jpg", "b.jpg"]


def test_given_classes_fix_the_labels(pair):
    assert open_dataset(pair, classes=("bird", "dog", "cow", "cat"))[0][1]["labels"].tolist() == [2, 4]


def test_difficult_objects_can_be_left_out(pair):
    dataset = VOCDataset(pair, keep_difficult=False)
    assert dataset[0][1]["labels"].tolist() == [2]
    assert dataset.dropped == []


def test_unusable_boxes_are_dropped_and_reported(tmp_path):
    good = ("x", 50, 30, 70, 45)  # partly outside
    faults = {
        (10, 10, 10, 20): "no width",
        (10, 20, 30, 20): "no width or height",
        (30, 10, 20, 20): "no width",
        ("nan", 1, 5, 5): "not finite",
        (1, 1, "inf", 5): "not finite",
        (61, 1, 70, 5): "outside the picture of 60 x 40",
        (1, 41, 5, 50): "outside",
        (-9, 1, 0, 5): "outside",
        (1, -9, 5, 0): "outside",
    }
    add_picture(tmp_path, "a", [good, *(("x", *box) for box in faults)])
    dataset = VOCDataset(tmp_path)
    assert dataset[0][1]["boxes"].tolist() == [[49, 29, 60, 40]]
    assert [(entry.path.name, entry.name, entry.index) for entry in dataset.dropped] == [
        ("a.xml", "x", index) for index in range(1, len(faults) + 1)
    ]
    for entry, (box, reason) in zip(dataset.dropped, faults.items(), strict=True):
        assert entry.reason.startswith(reason), entry
        assert repr(entry.box) == repr(tuple(map(float, box)))


@pytest.mark.parametrize("box", [(60, 40, 99, 99), (-5, -5, 1, 1), (60, 1, 61, 2)])
def test_a_kept_box_measures_a_pixel_at_least(tmp_path, box):
    add_picture(tmp_path, "a", [("x", *box)])
    x0, y0, x1, y1 = VOCDataset(tmp_path)[0][1]["boxes"][0].tolist()
    assert x1 - x0 >= 1
    assert y1 - y0 >= 1
    assert 0 <= x0 < x1 <= 60
    assert 0 <= y0 < y1 <= 40


@pytest.mark.parametrize("declared", [(0, 0), (30, 20), (600, 400)])
def test_the_size_is_that_of_the_picture(tmp_path, declared):
    add_picture(tmp_path, "a", [("x", 31, 21, 90, 90), ("x", 100, 100, 200, 200)], declared=declared)
    dataset = VOCDataset(tmp_path)
    assert dataset[0][1]["boxes"].tolist() == [[30, 20, 60, 40]]
    assert len(dataset.dropped) == 1


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
    *["<annotation><object>", "", "<annotation><object><name>x</name></object></annotation>"],
    "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>",
    "<annotation><object><name>x</name><bndbox><xmin>one</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    "</object></annotation>",
]


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (
            lambda p: (p / "Annotations").rename(p / "x"),
            {},
            FileNotFoundError,
            "holds no data set: neither Annotations",
        ),
        (lambda p: (p / "JPEGImages").rename(p / "x"), {}, FileNotFoundError, "JPEGImages: no such folder"),
        (emptied, {}, ValueError, "no annotations in .*, split None"),
        (None, {"split": "val"}, FileNotFoundError, r"val\.txt: no such split.*test.*train"),
        (emptied, {"split": "val"}, FileNotFoundError, r"val\.txt.*None takes all"),
        (
            lambda p: add_split(p, "train", "a", "ghost"),
            {"split": "train"},
            FileNotFoundError,
            r"ghost\.xml.*train\.txt",
        ),
        (lambda p: (p / "JPEGImages/b.jpg").unlink(), {}, FileNotFoundError, r"JPEGImages/b\.jpg.*Annotations/b\.xml"),
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


def test_truncated_picture(pair):
    cut(pair / "JPEGImages" / "b.jpg", 0.7)
    dataset = VOCDataset(pair)
    with pytest.raises(ImageReadError, match=r"b\.jpg.*truncated"):
        dataset[1]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_read_image_refuses_what_is_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    assert read_image(path).shape == (3, 64, 64)
    cut(path, 0.9)
    with pytest.raises(ImageReadError, match=path.name):
        read_image(path)


def test_read_image_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image(tmp_path / "gone.png")


def test_read_image_gives_the_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("L", ".jpg"), ("L", ".png"), ("LA", ".png"), ("1", ".png"), ("I;16", ".png"), ("I;16", ".tiff")],
        *[("P", ".png"), ("P", ".gif"), ("PA", ".png"), ("RGBA", ".png"), ("RGBA", ".webp"), ("RGB", ".bmp")],
        *[("CMYK", ".jpg"), ("CMYK", ".tiff")],
    ],
)
def test_read_image_gives_rgb(tmp_path, mode, suffix, recwarn):
    grey = mode in ("L", "LA", "1", "I;16")
    colour = (255, 255, 255) if mode == "1" else (90, 90, 90) if grey else (200, 100, 50)
    picture = Image.new("RGB", (12, 8), colour)
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 12), 90 * 256 + 7, dtype=np.uint16))
    elif mode in ("P", "PA"):
        picture = picture.quantize(4)
        if mode == "PA":  # a palette with transparency
            picture.info["transparency"] = bytes([255, 0])
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    assert (image.shape, image.dtype) == ((3, 8, 12), torch.uint8)
    off = (image.int() - torch.tensor(colour)[:, None, None]).abs().max()
    assert off <= 8  # JPEG and WebP round, CMYK too
    assert not [str(warning.message) for warning in recwarn]


def test_pictures_are_upright(tmp_path):
    add_picture(tmp_path, "a", [("x", 1, 1, 60, 60)])
    path = tmp_path / "JPEGImages" / "a.jpg"
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = 255  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: left becomes top
    Image.fromarray(pixels).save(path, exif=exif)
    image, target = VOCDataset(tmp_path)[0]
    assert image.shape == (3, 60, 40)
    assert image[:, :29].min() > 200
    assert image[:, 31:].max() < 50
    assert target["boxes"].canvas_size == (60, 40)
    assert target["boxes"].tolist() == [[0, 0, 40, 60]]


def test_an_orientation_in_a_png_is_ignored_in_header_and_pixels_alike(tmp_path):
    add_picture(tmp_path, "a", suffix=".png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / "a.png", exif=exif)
    image, target = VOCDataset(tmp_path, classes=("x",))[0]
    assert image.shape == (3, 40, 60)
    assert target["boxes"].canvas_size == (40, 60)


def test_pictures_are_no_python_objects(tmp_path):
    """A loader's workers would each get a copy of them, page by page, and the collector of garbage walk them all."""
    for i in range(100):
        add_picture(tmp_path, f"{i}", [("dog", 3, 2, 30, 20), ("cat", 1, 1, 9, 9)])
    gc.collect()
    before = len(gc.get_objects())
    opened = open_dataset(tmp_path)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert len(opened) == 100


@pytest.mark.parametrize("seconds", [0.02, 0.0])
def test_threads_read_where_the_disk_is_slow(tmp_path, monkeypatch, seconds):
    names = [f"{i:03}" for i in range(100)]
    for name in names:
        add_picture(tmp_path, name, [("dog", 3, 2, 30, 20)])
    readers, read_header = set(), dataset.read_header

    def slow(path):
        time.sleep(seconds)
        readers.add(threading.get_ident())
        return read_header(path)

    monkeypatch.setattr(dataset, "read_header", slow)
    assert [path.stem for path in open_dataset(tmp_path).pictures] == names
    assert (len(readers) > 1) == (seconds > 0)


def test_a_view_shares_what_was_read(tmp_path):
    add_picture(tmp_path, "a", [("dog", 3, 2, 30, 20)])
    whole = open_dataset(tmp_path)
    view = whole.view(lambda image, target: (image, len(target["labels"])))
    assert view[0][1] == 1
    assert whole[0][1]["labels"].tolist() == [1]
    assert view._all is whole._all
