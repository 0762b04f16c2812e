"""Four training samples in one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from short_training import NARROW, run
from torch.utils.data import Subset

from ssd.data import open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.data.loader import SeededDataset, collate, train_loader
from ssd.data.mosaic import Mosaic, mosaic
from ssd.data.shapes import write_shapes
from ssd.training.settings import Settings
from ssd.training.splits import open_sets, samples_of
from ssd.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def sample(value, boxes, size=8, dtype=torch.uint8, colour=None):
    """An image of one value, and objects with the label `value`."""
    target = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.full((len(boxes),), value)}
    return torch.full((3, size, size), value, dtype=dtype), target | ({"colour": colour} if colour is not None else {})


class Numbered:
    """Samples whose image and label are their index, with one object that fills the image."""

    def __init__(self, n, size=8):
        self.n, self.size = n, size

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return sample(index, [[0.0, 0.0, 1.0, 1.0]], self.size)


def mosaics_of(n, share):
    return Mosaic(Numbered(n), Numbered(n, 4), 8, share)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mosaic_shows_four_samples_where_their_boxes_are(size, dtype):
    whole = [[0.0, 0.0, 1.0, 1.0]]
    image, target = mosaic([sample(value, whole, (size + 1) // 2, dtype) for value in (1, 2, 3, 4)], size)
    assert image.shape == (3, size, size)
    assert image.dtype == dtype
    covered = torch.zeros(size, size)
    for box, label in zip(target["boxes"] * size, target["labels"].tolist(), strict=True):
        x0, y0, x1, y1 = box.round().int().tolist()
        torch.testing.assert_close(box, torch.tensor([x0, y0, x1, y1], dtype=torch.float32))
        assert (image[:, y0:y1, x0:x1] == label).all()
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()
    assert target["labels"].tolist() == [1, 2, 3, 4]  # above left and right, then below
    assert (image[0, 0, 0], image[0, 0, -1], image[0, -1, 0], image[0, -1, -1]) == (1, 2, 3, 4)


def test_boxes_are_where_their_objects_are():
    _, objects = mosaic([sample(0, [[0.25, 0.5, 0.75, 1.0]], size=4)] * 4, 8)
    torch.testing.assert_close(objects["boxes"][0], torch.tensor([0.125, 0.25, 0.375, 0.5]))
    torch.testing.assert_close(objects["boxes"][3], torch.tensor([0.625, 0.75, 0.875, 1.0]))


def test_objects_that_become_smaller_than_a_pixel_are_left_out():
    small, large = [0.0, 0.0, 0.2, 0.9], [0.0, 0.0, 0.3, 0.9]  # 0.8 and 1.2 pixels wide
    _, target = mosaic([sample(1, [small, large], 4), *(sample(value, [], 4) for value in (2, 3, 4))], 8)
    assert target["labels"].tolist() == [1]
    assert len(target["boxes"]) == len(target["difficult"]) == 1


def test_difficult_objects_and_the_colours_of_the_first_are_kept():
    colours = [torch.full((3, 4), float(value)) for value in range(4)]
    samples = [sample(value, [[0.0, 0.0, 1.0, 1.0]], 4, colour=colour) for value, colour in enumerate(colours)]
    samples[2][1]["difficult"] = torch.tensor([True])
    _, target = mosaic(samples, 8)
    assert target["difficult"].tolist() == [False, False, True, False]
    assert torch.equal(target["colour"], colours[0])
    assert collate([(samples[0][0], target)]).colours.shape == (1, 3, 4)


def test_a_share_of_the_samples_become_mosaics_of_themselves_and_any_others():
    drawn = SeededDataset(mosaics_of(20, 0.25), seed=0)
    targets = [drawn[epoch, index][1] for epoch in range(50) for index in range(20)]
    mosaics = [target["labels"].tolist() for target in targets if len(target["labels"]) == 4]
    assert 200 < len(mosaics) < 300  # of 1000; the standard deviation is 14
    assert {len(target["labels"]) for target in targets} == {1, 4}
    assert {label for labels in mosaics for label in labels[1:]} == set(range(20))
    first = [target["labels"].tolist()[0] for target in targets]
    assert first == list(range(20)) * 50
    again = SeededDataset(mosaics_of(20, 0.25), seed=0)
    assert torch.equal(again[3, 7][0], drawn[3, 7][0])


@pytest.mark.parametrize(("share", "objects"), [(0.0, 1), (1.0, 4)])
def test_none_or_all_of_them(share, objects):
    drawn = mosaics_of(5, share)
    assert all(len(drawn[index][1]["labels"]) == objects for index in range(5) for _ in range(20))


def test_samples_are_read_ahead_through_the_mosaic():
    class Remote(Numbered):
        asked: list = []  # noqa: RUF012

        def read_ahead(self, keys):
            self.asked.extend(keys)

    dataset = Remote(10)
    part = Subset(dataset, [7, 8, 9])
    next(iter(train_loader(Mosaic(part, part, 8, 0.0), 3, 0, range(1))))
    assert sorted(dataset.asked) == [7, 8, 9]


def test_the_parts_are_whole_pictures_reduced_without_skipping_pixels(tmp_path):
    shapes = write_shapes(tmp_path / "shapes", 4, 0, (64, 64))
    for path in (shapes / "JPEGImages").iterdir():
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[::2, ::2] = 200  # one of the four pixels that become one
        Image.fromarray(pixels).save(path, "PNG")
    data = open_dataset(shapes, "train")
    drawn = Mosaic(data.view(EvalTransform(64)), data.view(EvalTransform(32)), 64, 1.0)
    assert (drawn[0][0].float() - 50).abs().mean() < 5


@pytest.mark.parametrize("size", [224, 225])
def test_a_run_makes_the_parts_at_half_the_size_rounded_up(tmp_path, size):
    shapes = str(write_shapes(tmp_path / "shapes", 4, 0, (64, 64)))
    settings = Settings((shapes,), network="ssdlite", size=size, held_out=0.0, mosaic=1.0)
    train = open_sets(settings).train
    drawn = samples_of(train, settings)
    assert drawn.halves[0][0].shape == (3, 112 + size % 2, 112 + size % 2)
    assert drawn[0][0].shape == drawn.dataset[0][0].shape == (3, size, size)
    assert samples_of(train, replace(settings, mosaic=0.0)) is train


def test_a_run_trains_on_mosaics_whatever_its_workers(tmp_path):
    shapes = write_shapes(tmp_path / "shapes", 8, 2, (64, 64))

    def losses(name, **options):
        settings = Settings((str(shapes),), "train", "test", epochs=1, eval_every=1, **NARROW, mosaic=options["share"])
        run(settings, tmp_path / name, workers=options["workers"])
        return load_checkpoint(tmp_path / name / "last.pt")["history"]

    with_mosaics = losses("a", share=1.0, workers=0)
    assert losses("b", share=1.0, workers=2) == with_mosaics
    assert losses("c", share=0.0, workers=0) != with_mosaics
