from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from ssd.data import augmentation
from ssd.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform

pytestmark = pytest.mark.usefixtures("one_thread")


def sample(boxes, height=120, width=200):
    """A black picture with objects of distinct grey levels; label i is the level divided by 20."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for label, (x0, y0, x1, y1) in enumerate(boxes.int().tolist(), start=1):
        image[:, y0:y1, x0:x1] = 20 * label
    labels = torch.arange(1, len(boxes) + 1)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": labels,
        "difficult": labels % 2 == 0,
    }
    return tv_tensors.Image(image), target


FOUR = [[0, 0, 60, 50], [80, 10, 140, 60], [150, 40, 200, 120], [20, 70, 100, 110]]


def grey(image):
    """The grey levels 0..255 of a normalised image."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (image * std + mean).mean(0) * 255


@pytest.fixture
def plain_colours(monkeypatch):
    monkeypatch.setattr(augmentation.v2, "RandomPhotometricDistort", v2.Identity)


@pytest.fixture
def whole_picture(monkeypatch):
    monkeypatch.setattr(augmentation.v2, "RandomZoomOut", lambda **_: v2.Identity())
    monkeypatch.setattr(augmentation, "_IoUCrop", v2.Identity)


@pytest.mark.parametrize("size", [300, 97])
def test_training_samples_are_well_formed(size):
    transform = train_transform(size, flips=True)
    image, target = sample(FOUR)
    kept = 0
    for seed in range(150):
        torch.manual_seed(seed)
        result, new = transform(image, target)
        assert type(result) is torch.Tensor
        assert (result.shape, result.dtype) == ((3, size, size), torch.float32)
        assert all(type(value) is torch.Tensor for value in new.values())
        boxes, labels, difficult = new["boxes"], new["labels"], new["difficult"]
        assert (boxes.dtype, labels.dtype, difficult.dtype) == (torch.float32, torch.int64, torch.bool)
        assert len(boxes) == len(labels) == len(difficult)
        assert 1 <= len(boxes) <= 4
        assert torch.equal(difficult, labels % 2 == 0)
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 0.999 / size).all()
        kept += len(boxes)
    assert kept < 150 * 4  # crops drop some
    assert image.max() == 80  # the input is not written to
    assert len(target["labels"]) == 4


def test_boxes_follow_their_objects(plain_colours):
    transform = train_transform(flips=True)
    for seed in range(150):
        torch.manual_seed(seed)
        image, target = transform(*sample(FOUR))
        levels = grey(image)
        for box, label in zip((target["boxes"] * 300).tolist(), target["labels"].tolist(), strict=True):
            # enlarging by up to 8 blurs edges by up to 4 pixels
            x0, y0, x1, y1 = (round(edge) for edge in box)
            inner = levels[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5]
            assert inner.numel() == 0 or (inner - 20 * label).abs().max() < 2
            for outer in (levels[y0:y1, :x0][:, -6:-5], levels[y0:y1, x1 + 5 : x1 + 6]):
                assert outer.numel() == 0 or ((outer - 20 * label).abs() < 2).float().mean() < 0.5


def test_the_border_of_a_zoomed_out_picture_is_zero(monkeypatch):
    """The picture's colours are distorted, the border's are not."""
    monkeypatch.setattr(augmentation, "_IoUCrop", v2.Identity)
    zoomed = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = train_transform()(*sample([[0, 0, 200, 120]]))
        x0, y0, x1, y1 = (round(edge) for edge in (target["boxes"][0] * 300).tolist())
        border = torch.ones(300, 300, dtype=torch.bool)
        border[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3] = False  # resizing blurs the edge
        assert border.sum() == 0 or image[:, border].abs().max() < 0.01
        assert image[:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].abs().min() > 0.5
        zoomed += bool(border.any())
    assert 5 < zoomed < 25


def test_objects_that_become_too_small_go_with_all_they_have(whole_picture):
    boxes = [[0, 0, 600, 500], [800, 10, 802, 600], [1500, 400, 2000, 402], [200, 700, 1000, 1100]]  # 300 / 2000 of it
    for seed in range(8):
        torch.manual_seed(seed)
        target = train_transform()(*sample(boxes, 1200, 2000))[1]
        assert target["labels"].tolist() == [1, 4]
        assert target["difficult"].tolist() == [False, True]
        assert target["boxes"].shape == (2, 4)


def test_a_picture_without_objects():
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = train_transform()(*sample([]))
        assert image.shape == (3, 300, 300)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["difficult"].shape == (0,)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (3, 900)])
def test_tiny_pictures(height, width):
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = train_transform()(*sample([[0, 0, width, height]], height, width))
        assert image.shape == (3, 300, 300)
        assert len(target["boxes"]) <= 1


@pytest.mark.parametrize(("height", "width"), [(479, 641), (333, 500), (1000, 7), (375, 499)])
def test_rounding_never_drops_an_object_at_the_edge(whole_picture, height, width):
    for seed in range(8):
        torch.manual_seed(seed)
        target = train_transform(flips=True)(*sample([[0, 0, width, height]], height, width))[1]
        assert target["boxes"].tolist() == [[0, 0, 1, 1]]


def test_mirrored_half_of_the_time_and_top_to_bottom_on_request_only(whole_picture, plain_colours):
    def places(transform):
        found = []
        for seed in range(60):
            torch.manual_seed(seed)
            found.append(tuple(transform(*sample([[0, 0, 50, 30]]))[1]["boxes"][0].tolist()))
        return {place: found.count(place) for place in set(found)}

    left, right = (0, 0, 0.25, 0.25), (0.75, 0, 1, 0.25)
    usual = places(train_transform())
    assert set(usual) == {left, right}
    assert min(usual.values()) > 15
    below = {(0, 0.75, 0.25, 1), (0.75, 0.75, 1, 1)}
    assert set(places(train_transform(flips=True))) == {left, right} | below


class TestEval:
    def test_boxes_are_those_of_the_picture(self):
        boxes = [[0.5, 0, 640, 478.5], [3, 3, 3.01, 3.5], [77, 41, 641, 479]]
        target = eval_transform()(*sample(boxes, 479, 641))[1]
        assert torch.equal(target["boxes"], torch.tensor(boxes) / torch.tensor([641, 479, 641, 479]))
        assert target["labels"].tolist() == [1, 2, 3]
        assert target["difficult"].tolist() == [False, True, False]
        assert type(target["boxes"]) is torch.Tensor

    def test_image_is_resized_and_normalised(self):
        torch.manual_seed(0)
        picture = torch.randint(256, (3, 50, 80), dtype=torch.uint8)
        small = torch.nn.functional.interpolate(
            picture[None].float(), (300, 300), mode="bilinear", antialias=True, align_corners=False
        )[0]
        expected = (small / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[
            :, None, None
        ]
        target = {"boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(50, 80))}
        for image in (eval_transform()(picture), eval_transform()(tv_tensors.Image(picture), target)[0]):
            assert type(image) is torch.Tensor
            assert (image.shape, image.dtype) == ((3, 300, 300), torch.float32)
            assert (image - expected).abs().max() < 0.025  # one grey level, as resizing rounds: 1 / 255 / 0.225 = 0.018

    def test_draws_nothing(self):
        before = torch.get_rng_state()
        eval_transform(64)(*sample(FOUR))
        assert torch.equal(torch.get_rng_state(), before)
