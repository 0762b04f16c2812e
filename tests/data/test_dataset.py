"""Samples of any data set: their boxes, their pictures, and how much is held and read."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from deep_pictures import add_deep_pictures, tiff
from PIL import Image, ImageOps
from small_datasets import add_picture, cut

from ssd.data import ImageReadError, ReadOptions, UnknownClassError, VOCDataset, annotations, open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.data.loader import eval_loader

pytestmark = pytest.mark.usefixtures("one_thread")


def test_samples_are_not_shared(pair):
    dataset = VOCDataset(pair)
    for value in dataset[0][1].values():
        value.zero_()
    assert dataset[0][1]["labels"].tolist() == [2, 1]
    assert dataset[0][1]["boxes"].any()


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


@pytest.mark.parametrize(
    ("declared", "box", "said"),
    [
        ((0, 0), [30, 20, 60, 40], None),
        ((60, 40), [30, 20, 60, 40], None),
        ((30, 20), [60, 40, 60, 40], "scaled, because the picture was resized"),  # twice as large since
        ((600, 400), [3, 2, 9, 9], "scaled, because the picture was resized"),
        ((45, 30), [40, 80 / 3, 60, 40], "scaled"),
        ((59, 40), [30 * 60 / 59, 20, 60, 40], "scaled"),  # by the rounding of a side
        ((40, 60), [30, 20, 60, 40], "may be wrong, because the annotation gives another size"),
        ((300, 300), [30, 20, 60, 40], "may be wrong"),
    ],
)
def test_the_size_in_the_annotation(tmp_path, declared, box, said):
    add_picture(tmp_path, "a", [("x", 31, 21, 90, 90), ("x", 1000, 1000, 2000, 2000)], declared=declared)
    dataset = VOCDataset(tmp_path)
    if box[0] < 60:
        assert dataset[0][1]["boxes"].tolist() == [pytest.approx(box)]
        assert len(dataset.dropped) == 1
    else:  # (30, 20) is outside of a picture of 30 x 20
        assert len(dataset.dropped) == 2
    assert dataset.notes == [note for note in dataset.notes if said and said in note]
    assert bool(dataset.notes) == bool(said)
    for note in dataset.notes:
        assert "a.jpg: 60 x 40, and {} x {} in".format(*declared) in note


# The corners of a box in the stored picture of 60 x 40, and of the same box in the picture that EXIF turns.
TURNED = {
    1: [3, 5, 20, 30],
    2: [40, 5, 57, 30],
    3: [40, 10, 57, 35],
    4: [3, 10, 20, 35],
    5: [5, 3, 30, 20],
    6: [10, 3, 35, 20],
    7: [10, 40, 35, 57],
    8: [5, 40, 30, 57],
}


@pytest.mark.parametrize("orientation", TURNED)
def test_boxes_that_were_drawn_on_the_stored_picture(tmp_path, orientation):
    """A white box in a black picture is where the picture, turned by Pillow, is white."""
    add_picture(tmp_path, "a", [("x", 4, 6, 20, 30)], declared=(60, 40))
    x0, y0, x1, y1 = TURNED[1]
    stored = Image.new("L", (60, 40))
    stored.paste(255, (x0, y0, x1, y1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "JPEGImages" / "a.jpg", exif=exif, quality=100, subsampling=0)
    seen = ImageOps.exif_transpose(Image.open(tmp_path / "JPEGImages" / "a.jpg")).point(lambda v: 255 * (v > 128))
    assert list(seen.getbbox()) == TURNED[orientation]
    dataset = VOCDataset(tmp_path, options=ReadOptions(boxes_as_stored=True))
    assert dataset[0][1]["boxes"].tolist() == [TURNED[orientation]]
    assert not dataset.notes
    swapped = orientation >= 5
    assert any("--boxes-as-stored" in note for note in VOCDataset(tmp_path).notes) == swapped


def test_an_object_that_cannot_be_used_may_be_an_error(tmp_path):
    add_picture(tmp_path, "a", [("x", 1, 1, 9, 9), ("x", 5, 5, 5, 9), ("y", 61, 1, 70, 5)])
    assert len(VOCDataset(tmp_path).dropped) == 2
    with pytest.raises(ValueError, match=r"2 errors:\n.*object 1 .*cannot be used: no width.*\n.*object 2"):
        VOCDataset(tmp_path, options=ReadOptions(strict=True))


def test_all_errors_are_reported_at_once(tmp_path):
    for name in "abcd":
        add_picture(tmp_path, name, [(name, 1, 1, 9, 9)])
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match="2 errors:") as caught:
        VOCDataset(tmp_path)
    assert [line.split(":")[0].rpartition("/")[2] for line in str(caught.value).split("\n")[1:]] == ["a.xml", "c.xml"]
    add_picture(tmp_path, "a", [("a", 1, 1, 9, 9)])
    add_picture(tmp_path, "c", [("c", 1, 1, 9, 9)])
    with pytest.raises(UnknownClassError, match=r"2 errors:\n.*'a'.*\n.*'d'"):
        VOCDataset(tmp_path, classes=("b", "c"))


def test_a_picture_that_cannot_be_read_is_reported_once(tmp_path):
    """And not a second time as a picture without annotation."""
    for name in "ab":
        add_picture(tmp_path, name, [("x", 1, 1, 9, 9)])
        (tmp_path / "JPEGImages" / f"{name}.jpg").write_bytes(b"not a picture")
    (tmp_path / "Annotations" / "b.xml").unlink()
    with pytest.raises(ImageReadError, match=r"^2 errors:"):
        VOCDataset(tmp_path, options=ReadOptions(unlabelled="background"))


def test_objects_of_other_classes_are_left_out(tmp_path):
    add_picture(tmp_path, "a", [("x", 1, 1, 9, 9), ("z", 3, 3, 9, 9), ("y", 5, 1, 9, 9), ("z", 5, 5, 5, 9)])
    add_picture(tmp_path, "b", [("x", 2, 1, 9, 9)])
    add_picture(tmp_path, "c", [("z", 4, 1, 9, 9)])
    dataset = VOCDataset(tmp_path, options=ReadOptions(only=("z", "y")))
    assert dataset.classes == ("y", "z")
    assert [target["boxes"][:, 0].tolist() for _, target in dataset] == [[2, 4], [], [3]]
    assert [target["labels"].tolist() for _, target in dataset] == [[2, 1], [], [2]]
    assert dataset.notes == ["objects of other classes, which are left out: 2"]
    assert [drop.index for drop in dataset.dropped] == [3]  # its number in the file
    assert [len(truth["labels"]) for truth in VOCDataset(tmp_path).truths] == [3, 1, 1]
    with_others = VOCDataset(tmp_path, classes=("w", "z"), options=ReadOptions(only=("z",)))
    assert [truth["labels"].tolist() for truth in with_others.truths] == [[2], [], [2]]
    with pytest.raises(ValueError, match="only: there is no class 'w', 'v'; the classes are x, y, z"):
        VOCDataset(tmp_path, options=ReadOptions(only=("w", "x", "v")))
    for wrong in ((), "xy", (name for name in "xy")):
        with pytest.raises(ValueError, match="only must be a list of at least one class"):
            VOCDataset(tmp_path, options=ReadOptions(only=wrong))


@pytest.mark.parametrize("rule", ["background", "ignore", None])
def test_pictures_without_annotation(tmp_path, rule):
    for name in "abc":
        add_picture(tmp_path, name, [("x", 1, 1, 9, 9)])
    (tmp_path / "Annotations" / "b.xml").unlink()
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "drawing.png")
    dataset = VOCDataset(tmp_path, options=ReadOptions(unlabelled=rule))
    names = ["a", "c", "b"] if rule == "background" else ["a", "c"]
    assert [path.stem for path in dataset.pictures] == names
    assert dataset.n_unlabelled == 1
    assert [len(truth["labels"]) for truth in dataset.truths] == [1, 1, 0][: len(names)]
    (note,) = dataset.notes
    assert note.startswith("pictures without annotation, ")
    assert ": 1 (" in note


def test_truncated_picture(pair):
    cut(pair / "JPEGImages" / "b.jpg", 0.4)
    dataset = VOCDataset(pair)
    with pytest.raises(ImageReadError, match=r"b\.jpg.*truncated"):
        dataset[1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_are_upright(tmp_path, suffix):
    add_picture(tmp_path, "a", [("x", 1, 1, 60, 60)], suffix=suffix)
    path = tmp_path / "JPEGImages" / f"a{suffix}"
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
    readers, read_header = set(), annotations.read_header

    def slow(path):
        time.sleep(seconds)
        readers.add(threading.get_ident())
        return read_header(path)

    monkeypatch.setattr(annotations, "read_header", slow)
    assert [path.stem for path in open_dataset(tmp_path).pictures] == names
    assert (len(readers) > 1) == (seconds > 0)


def test_a_view_shares_what_was_read(tmp_path):
    add_picture(tmp_path, "a", [("dog", 3, 2, 30, 20)])
    whole = open_dataset(tmp_path)
    view = whole.view(lambda image, target: (image, len(target["labels"])))
    assert view[0][1] == 1
    assert whole[0][1]["labels"].tolist() == [1]
    assert view._all is whole._all


def test_deep_pictures_share_levels_that_are_measured_given_or_follow_from_bits(tmp_path):
    add_deep_pictures(tmp_path)
    measured = open_dataset(tmp_path)
    assert measured.levels == (16, 216)
    assert "pictures with more than 8 bits per sample: 2; 16 becomes black and 216 white" in measured.notes
    assert [(image.min(), image.max()) for image, _ in measured] == [(0, 128), (0, 255)]
    assert open_dataset(tmp_path, options=ReadOptions(bits=12)).levels == (0, 4095)
    given = open_dataset(tmp_path, levels=(16, 116), options=ReadOptions(bits=12))
    assert [image.max() for image, _ in given] == [255, 255]
    assert [image.max() for image, _ in given.part([1, 0]).view(None)] == [255, 255]
    add_picture(tmp_path / "8", "c", [("x", 1, 1, 30, 30)])
    ordinary = open_dataset(tmp_path / "8")
    assert ordinary.levels is None
    assert not any("bits" in note for note in ordinary.notes)


def damage(path, how):
    if how == "header":
        path.write_bytes(b"not a picture")
    else:
        cut(path, 0.4 if how == "pixels" else 0.9)


def test_unreadable_pictures_are_left_out_up_to_a_share(tmp_path):
    for name in "abcdefgh":
        add_picture(tmp_path, name, [("dog" if name < "e" else "cat", 1, 1, 30, 30)])
    folder = tmp_path / "JPEGImages"
    for name, how in (("b", "header"), ("f", "pixels"), ("g", "end")):
        damage(folder / f"{name}.jpg", how)
    with pytest.raises(ImageReadError, match=r"b\.jpg"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, options=ReadOptions(skip_unreadable=0.25))
    assert [path.stem for path in dataset.pictures] == list("acdegh")
    assert dataset.counts == {"cat": 3, "dog": 3}
    note, *errors = dataset.notes
    assert note == "pictures left out, because they cannot be read: 2 of 8"
    assert [error.partition(": ")[0] for error in errors] == [f"  {folder / name}" for name in ("b.jpg", "f.jpg")]
    assert [len(target["boxes"]) for _, target in dataset] == [1] * 6
    with pytest.raises(ImageReadError, match=r"(?s)2 of 8 pictures .* 0\.2 .*b\.jpg: .*f\.jpg: "):
        open_dataset(tmp_path, options=ReadOptions(skip_unreadable=0.2))


def test_values_out_of_range_are_no_damage(tmp_path):
    add_picture(tmp_path, "a", [("x", 1, 1, 30, 30)], suffix=".tif")
    for array in (np.full((40, 60, 1), 70000, np.int32), np.full((40, 60, 1), -3.5, np.float32)):
        (tmp_path / "JPEGImages" / "a.tif").write_bytes(tiff(array))
        dataset = open_dataset(tmp_path, options=ReadOptions(skip_unreadable=0.01))
        assert len(dataset) == 1
        assert dataset.levels == (array.min(), array.max())


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_lack_their_end_are_known_after_they_were_read(tmp_path, workers):
    for name in "abcd":
        add_picture(tmp_path, name, [("x", 1, 1, 30, 30)])
    for name in "bd":
        damage(tmp_path / "JPEGImages" / f"{name}.jpg", "end")
    dataset = open_dataset(tmp_path)
    part = dataset.part([1, 0])
    for pictures in (dataset, part):
        for _ in eval_loader(pictures.view(EvalTransform(300)), 2, workers):
            pass
    assert [path.name for path in dataset.cut] == ["b.jpg", "d.jpg"]
    assert [path.name for path in part.cut] == ["b.jpg"]


def test_pictures_of_unreadable_formats_are_noted(tmp_path):
    add_picture(tmp_path, "a", [("x", 1, 1, 30, 30)])
    (tmp_path / "JPEGImages" / "b.dng").write_bytes(b"anything")
    (note,) = open_dataset(tmp_path).notes
    assert note == "JPEGImages/b.dng: the picture cannot be read here: convert it to JPEG or PNG"


def test_a_part_takes_indices_as_a_list_does(tmp_path):
    for number in range(3):
        add_picture(tmp_path, f"{number}", [("x", 10, 10, 20, 20 + i) for i in range(number + 1)])
    dataset = VOCDataset(tmp_path)
    part = dataset.part([-1, 0])
    assert [path.name for path in part.pictures] == ["2.jpg", "0.jpg"]
    assert [len(part[i][1]["boxes"]) for i in range(2)] == [3, 1]
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            dataset.part([wrong])


def test_classes_that_have_objects_cannot_be_left_out(pair):
    dataset = VOCDataset(pair)
    with pytest.raises(ValueError, match=f"all that have objects; these are missing: {dataset.classes[1]}$"):
        dataset.with_classes(dataset.classes[:1])
