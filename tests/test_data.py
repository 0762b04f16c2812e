from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ssd.data import (
    VOC_CLASSES,
    ImageReadError,
    SeededDataset,
    VOCDataset,
    collate,
    epoch_batches,
    list_splits,
    read_image,
    train_loader,
)
from ssd.transforms import eval_transform, train_transform

pytestmark = pytest.mark.usefixtures("one_thread")


def add_picture(root: Path, name: str, objects=(), *, size=(60, 40), filename=None, suffix=".jpg", declared=None):
    """Add one picture of `size` (width, height) with objects (class, xmin, ymin, xmax, ymax[, difficult])."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}{suffix}")
    width, height = declared or size
    xml = f"<size><width>{width}</width><height>{height}</height></size>"
    if filename != "":
        xml += f"<filename>{filename or name + suffix}</filename>"
    for label, xmin, ymin, xmax, ymax, *difficult in objects:
        box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"  # as in VOC; to be ignored
        flag = "".join(f"<difficult>{value}</difficult>" for value in difficult)
        xml += f"<object>{part}<name>{label}</name>{flag}<bndbox>{box}</bndbox></object>"
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{xml}</annotation>")


def add_split(root: Path, split: str, *names: str):
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n\n")


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
    assert list_splits(pair / "nowhere") == []


def test_a_split_may_have_a_byte_order_mark_and_more_columns(pair):
    (pair / "ImageSets" / "Main" / "dog_train.txt").write_bytes(b"\xef\xbb\xbfa  1\r\nb -1\r\n")
    assert [path.name for path in VOCDataset(pair, "dog_train").pictures] == ["a.jpg", "b.jpg"]


def test_given_classes_fix_the_labels(pair):
    assert VOCDataset(pair, classes=VOC_CLASSES)[0][1]["labels"].tolist() == [12, 8]
    assert len(set(VOC_CLASSES)) == 20


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


class TestErrors:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere/Annotations"):
            VOCDataset(tmp_path / "nowhere")

    def test_no_annotations(self, tmp_path):
        for folder in ("Annotations", "JPEGImages"):
            (tmp_path / folder).mkdir()
        with pytest.raises(ValueError, match=f"no annotations in .*{tmp_path.name}"):
            VOCDataset(tmp_path)

    def test_missing_split_lists_the_others(self, pair):
        with pytest.raises(FileNotFoundError, match=r"val\.txt: no such split.*test.*train"):
            VOCDataset(pair, "val")

    def test_split_without_any_list(self, tmp_path):
        add_picture(tmp_path, "a")
        (tmp_path / "ImageSets" / "Main").rmdir()
        with pytest.raises(FileNotFoundError, match=r"train\.txt.*None takes all"):
            VOCDataset(tmp_path, "train")

    def test_listed_annotation_is_missing(self, pair):
        add_split(pair, "train", "a", "ghost")
        with pytest.raises(FileNotFoundError, match=r"ghost\.xml.*train\.txt"):
            VOCDataset(pair, "train")

    def test_missing_picture(self, pair):
        (pair / "JPEGImages" / "b.jpg").unlink()
        with pytest.raises(FileNotFoundError, match=r"JPEGImages/b\.jpg.*Annotations/b\.xml"):
            VOCDataset(pair)

    def test_unknown_class(self, pair):
        with pytest.raises(ValueError, match=r"a\.xml: unknown class 'cat'.*'dog', 'cow'"):
            VOCDataset(pair, classes=("dog", "cow"))

    def test_repeated_class(self, pair):
        with pytest.raises(ValueError, match="'dog', 'cat', 'dog'"):
            VOCDataset(pair, classes=("dog", "cat", "dog"))

    @pytest.mark.parametrize(
        "text",
        [
            "<annotation><object>",
            "",
            "<annotation><object><name>x</name></object></annotation>",
            "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            "<annotation><object><name>x</name><bndbox><xmin>one</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
            "</bndbox></object></annotation>",
        ],
    )
    def test_broken_annotation(self, pair, text):
        (pair / "Annotations" / "b.xml").write_text(text)
        with pytest.raises(ValueError, match=r"b\.xml"):
            VOCDataset(pair)

    def test_file_that_is_no_picture(self, pair):
        (pair / "JPEGImages" / "b.jpg").write_text("hello")
        with pytest.raises(ImageReadError, match=r"b\.jpg"):
            VOCDataset(pair)

    def test_truncated_picture(self, pair):
        cut(pair / "JPEGImages" / "b.jpg", 0.7)
        dataset = VOCDataset(pair)
        with pytest.raises(ImageReadError, match=r"b\.jpg.*truncated"):
            dataset[1]


def cut(path: Path, share: float):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


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


def test_collate(pair):
    images, targets = collate([VOCDataset(pair, transform=eval_transform())[index] for index in (0, 1, 0)])
    assert (images.shape, images.dtype) == ((3, 3, 300, 300), torch.float32)
    assert type(images) is torch.Tensor
    assert [len(target["boxes"]) for target in targets] == [2, 0, 2]


class Noise(Dataset):
    """What a sample with random transforms draws."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.rand(3, 2, 2), {"labels": torch.randint(9, (index % 3,))}


class TestSeededDataset:
    def test_depends_on_seed_epoch_and_index_only(self):
        view = SeededDataset(Noise(5), seed=1, epoch=2)
        first = [view[index][0] for index in range(5)]
        again = [view[index][0] for index in reversed(range(5))][::-1]
        assert torch.equal(torch.stack(first), torch.stack(again))
        others = [SeededDataset(Noise(5), *key)[0][0] for key in ((1, 3), (2, 2), (2, 1), (12, 0), (-1, 2))]
        everything = torch.stack([*first, *others]).flatten(1)
        assert len(everything.unique(dim=0)) == 10

    def test_leaves_all_global_random_states_alone(self, pair):
        view = SeededDataset(VOCDataset(pair, transform=train_transform()), seed=0, epoch=0)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        view[0]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    def test_augmentation_is_reproducible(self, pair):
        dataset = VOCDataset(pair, transform=train_transform())
        first, second = (SeededDataset(dataset, seed=0, epoch=3)[0] for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
        assert not torch.equal(first[0], SeededDataset(dataset, seed=0, epoch=4)[0][0])

    def test_can_be_sent_to_a_process(self, pair):
        view = SeededDataset(VOCDataset(pair, transform=train_transform(flips=True)), seed=0, epoch=0)
        copy = pickle.loads(pickle.dumps(view))
        assert torch.equal(copy[0][0], view[0][0])


class TestEpochBatches:
    def test_every_sample_once(self):
        batches = epoch_batches(23, 5, seed=0, epoch=0, drop_last=False)
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
        assert sorted(index for batch in batches for index in batch) == list(range(23))

    def test_drop_last(self):
        assert epoch_batches(23, 5, 0, 0) == epoch_batches(23, 5, 0, 0, drop_last=False)[:-1]
        assert len(epoch_batches(20, 5, 0, 0)) == 4

    def test_a_set_smaller_than_the_batch_is_one_batch(self):
        assert [sorted(batch) for batch in epoch_batches(3, 8, 0, 0)] == [[0, 1, 2]]

    def test_order_depends_on_seed_and_epoch(self):
        orders = [str(epoch_batches(50, 8, *key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert len(set(orders)) == 4
        assert str(epoch_batches(50, 8, 0, 0)) == orders[0]

    @pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
    def test_refuses(self, n, batch_size):
        with pytest.raises(ValueError, match=f"{n} and {batch_size}"):
            epoch_batches(n, batch_size, 0, 0)


class TestTrainLoader:
    @staticmethod
    def read(loader):
        return [(images, [target["labels"].tolist() for target in targets]) for images, targets in loader]

    def test_workers_and_resuming_do_not_change_the_batches(self):
        whole = self.read(train_loader(Noise(22), 4, seed=5, epoch=1))
        assert len(whole) == 5
        torch.manual_seed(77)
        for workers, start in ((2, 0), (0, 3), (1, 2)):
            part = self.read(train_loader(Noise(22), 4, seed=5, epoch=1, start_batch=start, workers=workers))
            assert len(part) == 5 - start
            for (images, labels), (expected, expected_labels) in zip(part, whole[start:], strict=True):
                assert torch.equal(images, expected)
                assert labels == expected_labels

    @pytest.mark.parametrize("workers", [0, 1])
    def test_leaves_the_global_random_state_alone(self, workers):
        before = torch.get_rng_state()
        self.read(train_loader(Noise(8), 4, seed=0, epoch=0, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_picture_is_named(self, pair, workers):
        dataset = VOCDataset(pair, transform=train_transform())
        cut(pair / "JPEGImages" / "b.jpg", 0.6)
        with pytest.raises(ImageReadError, match=r"JPEGImages/b\.jpg"):
            self.read(train_loader(dataset, 2, seed=0, epoch=0, workers=workers))
