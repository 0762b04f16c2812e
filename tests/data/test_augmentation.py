"""Training and evaluation samples: that boxes follow pixels, and that chance deals as docs/input.md says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from ssd.data import PictureFile, augmentation
from ssd.data.augmentation import EvalTransform, TrainTransform, draw_colours, draw_patch
from ssd.data.colour import IMAGENET_MEAN, IMAGENET_STD, to_input
from ssd.data.torchvision_recipe import v2_transform

pytestmark = pytest.mark.usefixtures("one_thread")
N = 10_000  # draws
FAR = 1.95 / math.sqrt(N)  # Kolmogorov-Smirnov distance that one of a thousand samples of N exceeds


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
both_recipes = pytest.mark.parametrize("recipe", [TrainTransform, v2_transform])


def network_input(image, target):
    return to_input(image[None], target["colour"][None] if "colour" in target else None)[0]


def fixed(monkeypatch, *, patch="whole", colours=False):
    """No chance in what is not looked at."""
    if patch == "whole":
        monkeypatch.setattr(augmentation, "LEAST_IOU", (augmentation.WHOLE,))
    if patch != "any":
        monkeypatch.setattr(augmentation, "ZOOM_CHANCE", 0)
    if not colours:
        monkeypatch.setattr(augmentation, "COLOUR_CHANCE", 0)


def distance(values, low=0.0, high=1.0):
    """Kolmogorov-Smirnov, from the uniform distribution."""
    values = (np.sort(values) - low) / (high - low)
    assert values[0] >= 0
    assert values[-1] <= 1
    steps = np.arange(len(values) + 1) / len(values)
    return max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())


# ------------------------------------------------------------------------------------------------------- geometry


@both_recipes
@pytest.mark.parametrize("size", [300, 97])
def test_samples_are_well_formed(recipe, size):
    transform = recipe(size, flips=True)
    image, target = sample(FOUR)
    kept = 0
    for seed in range(150):
        torch.manual_seed(seed)
        result, new = transform(image, target)
        assert type(result) is torch.Tensor
        assert result.shape == (3, size, size)
        assert result.dtype == (torch.uint8 if recipe is TrainTransform else torch.float32)
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


@pytest.mark.parametrize(
    ("source", "width", "height"),
    [("tensor", 200, 120), (".png", 500, 375), (".jpg", 640, 480), (".jpg", 2400, 1100), ("turned.jpg", 1700, 900)],
)
def test_objects_are_found_again_where_their_boxes_say(tmp_path, monkeypatch, source, width, height):
    """One object in each colour channel: its half-bright edges are the edges of its box, to a pixel of the result."""
    fixed(monkeypatch, patch="any")
    rng = np.random.default_rng(0)
    transform, found = TrainTransform(300, flips=True), 0
    for seed in range(60):
        boxes = np.sort(rng.integers(0, [[width, height]] * 2, (3, 2, 2)), axis=1)
        boxes[:, 1] += 40  # wide enough to be half bright in the middle, when it becomes small
        boxes = boxes.clip(0, [width, height])
        boxes[:, 0] = np.minimum(boxes[:, 0], [width - 40, height - 40])
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        for channel, ((x0, y0), (x1, y1)) in enumerate(boxes):
            pixels[y0:y1, x0:x1, channel] = 255
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        if source != "tensor":
            path, drawn = tmp_path / f"{seed}{source}", Image.fromarray(pixels)
            exif = Image.Exif()
            if source == "turned.jpg":
                exif[0x0112], drawn = 6, drawn.transpose(Image.Transpose.ROTATE_90)
            drawn.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if source.endswith("jpg") else {}))
            picture = PictureFile(path)
        target = {"boxes": torch.from_numpy(boxes.reshape(3, 4)).float(), "labels": torch.arange(3)}
        torch.manual_seed(seed)
        image, new = transform(picture, target)
        for box, channel in zip((300 * new["boxes"]).tolist(), new["labels"].tolist(), strict=True):
            bright = image[channel] > 127  # the border has 124, 116 and 104
            rows, columns = (bright.any(axis).nonzero().flatten() for axis in (1, 0))
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(np.subtract(edges, box)).max() <= 1.01, (seed, edges, box)
            found += 1
    assert found > 90


def test_the_border_of_a_zoomed_out_picture_is_zero(monkeypatch):
    """The picture's colours are distorted, the border's are not."""
    monkeypatch.setattr(augmentation, "LEAST_IOU", (augmentation.WHOLE,))
    zoomed = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = TrainTransform(300)(*sample([[0, 0, 200, 120]]))
        x0, y0, x1, y1 = (round(edge) for edge in (target["boxes"][0] * 300).tolist())
        outside = torch.ones(300, 300, dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        result = network_input(image, target)
        # A byte holds steps of 1 / 255, which contrast and saturation enlarge, and nothing above white.
        limit = 0.03 if image[:, outside].numel() and image[:, outside].max() < 255 else 0.4
        assert outside.sum() == 0 or result[:, outside].abs().max() < limit
        assert result[:, y0:y1, x0:x1].abs().min() > 0.5
        zoomed += bool(outside.any())
    assert 5 < zoomed < 25


def test_objects_that_become_too_small_go_with_all_they_have(monkeypatch):
    fixed(monkeypatch)
    boxes = [[0, 0, 600, 500], [800, 10, 802, 600], [1500, 400, 2000, 402], [200, 700, 1000, 1100]]  # 300 / 2000 of it
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = sample(boxes, 1200, 2000)
        target |= {"area": torch.arange(4), "image_id": torch.tensor([7]), "name": "x"}
        target = TrainTransform(300)(image, target)[1]
        assert target["labels"].tolist() == [1, 4]
        assert target["difficult"].tolist() == [False, True]
        assert target["boxes"].shape == (2, 4)
        assert (target["area"].tolist(), target["image_id"].tolist(), target["name"]) == ([0, 3], [7], "x")


def test_objects_are_kept_by_their_centres_and_cut_at_the_patch(monkeypatch):
    fixed(monkeypatch)
    monkeypatch.setattr(augmentation, "draw_patch", lambda *_: np.array([[50.0, 20.0], [150.0, 100.0]]))
    boxes = [
        [20, 40, 90, 80],
        [0, 0, 200, 120],
        [10, 40, 80, 80],
        [130, 80, 190, 119],
        [40, 0, 60, 60],
        [149, 99, 152, 102],
    ]
    centres_inside = [1, 2]  # (55, 60) and (100, 60); then (45, 60), (160, 99.5), (50, 30) on the edge, (150.5, 100.5)
    for seed in range(8):
        torch.manual_seed(seed)
        target = TrainTransform(300)(*sample(boxes))[1]
        assert target["labels"].tolist() == centres_inside
        first = [0.6, 0.25, 1, 0.75] if target["boxes"][0, 0] > 0 else [0, 0.25, 0.4, 0.75]
        torch.testing.assert_close(target["boxes"], torch.tensor([first, [0, 0, 1, 1]]))


@both_recipes
def test_a_picture_without_objects(recipe):
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = recipe(300)(*sample([]))
        assert image.shape == (3, 300, 300)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["difficult"].shape == (0,)


@both_recipes
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (3, 900)])
def test_tiny_pictures(recipe, height, width):
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = recipe(300)(*sample([[0, 0, width, height]], height, width))
        assert image.shape == (3, 300, 300)
        assert len(target["boxes"]) <= 1


@pytest.mark.parametrize("corner", [(199.9, 0.0), (-99.9, 0.0), (0.0, 119.9), (0.0, -119.9)])
def test_a_patch_that_shows_next_to_nothing_of_the_picture(monkeypatch, corner):
    monkeypatch.setattr(augmentation, "draw_patch", lambda *_: np.array([corner, np.add(corner, [100, 120])]))
    image, target = TrainTransform(300)(*sample(FOUR))
    assert image.shape == (3, 300, 300)
    assert target["boxes"].shape == (0, 4)


def test_ten_thousand_objects():
    corners = torch.rand(10_000, 2) * torch.tensor([1900.0, 1000.0])
    boxes = torch.cat([corners, corners + 20], dim=1)
    target = {"boxes": boxes, "labels": torch.arange(10_000)}
    for seed in range(5):
        torch.manual_seed(seed)
        _, new = TrainTransform(300)(torch.zeros(3, 1100, 2000, dtype=torch.uint8), target)
        assert 0 < len(new["boxes"]) == len(new["labels"]) <= 10_000


@pytest.mark.parametrize(("height", "width"), [(479, 641), (333, 500), (1000, 7), (375, 499)])
def test_rounding_never_drops_an_object_at_the_edge(monkeypatch, height, width):
    fixed(monkeypatch)
    for seed in range(8):
        torch.manual_seed(seed)
        target = TrainTransform(300, flips=True)(*sample([[0, 0, width, height]], height, width))[1]
        assert target["boxes"].tolist() == [[0, 0, 1, 1]]


def test_composes_with_transforms_of_torchvision():
    enlarge, mirror = v2.Resize((240, 400)), v2.RandomHorizontalFlip(p=1)
    torch.manual_seed(0)
    result, new = v2.Compose([enlarge, TrainTransform(300), mirror])(*sample(FOUR))
    torch.manual_seed(0)
    image, target = TrainTransform(300)(*enlarge(*sample(FOUR)))
    assert torch.equal(result, image.flip(2))
    assert torch.equal(new["boxes"], target["boxes"])  # plain tensors: to torchvision, the first one is the picture


# --------------------------------------------------------------------------------------------------------- chance


def corners(*boxes):
    return np.array(boxes, dtype=np.float64).reshape(-1, 2, 2)


def patches(boxes, n=N, height=300, width=400):
    rng = np.random.default_rng(1)
    return np.stack([draw_patch(rng, height, width, boxes) for _ in range(n)])


def test_zoom_out_puts_half_of_the_pictures_on_a_canvas_of_1_to_16_times_their_area(monkeypatch):
    monkeypatch.setattr(augmentation, "LEAST_IOU", (augmentation.WHOLE,))
    found = patches(corners([10, 10, 50, 50]))
    sides = (found[:, 1] - found[:, 0]) / [400, 300]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    zoomed = sides[:, 0] > 1
    assert abs(zoomed.mean() - 0.5) < 0.015  # three standard deviations
    assert (sides[~zoomed] == 1).all()
    assert distance(sides[zoomed, 0], 1, 4) < 2 * FAR  # of half as many
    position = -found[zoomed, 0] / ((sides[zoomed] - 1) * [400, 300])
    assert distance(position[:, 0]) < 2 * FAR
    assert distance(position[:, 1]) < 2 * FAR
    assert abs(np.corrcoef(position.T)[0, 1]) < 0.05


def test_patches_are_of_a_tenth_to_all_of_the_picture_and_of_aspects_of_a_half_to_two(monkeypatch):
    monkeypatch.setattr(augmentation, "ZOOM_CHANCE", 0)
    monkeypatch.setattr(augmentation, "LEAST_IOU", (0.0,))
    monkeypatch.setattr(augmentation, "_inside", lambda p, boxes: np.ones((len(p), len(boxes)), dtype=bool))
    found = patches(corners([10, 10, 50, 50])) / [400, 300]
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    width, height = (found[:, 1] - found[:, 0]).T
    assert distance(np.sqrt(width * height), math.sqrt(0.1), 1) < FAR  # the root of the area
    longest = np.minimum(2, 1 / (width * height))  # that fits in
    assert distance((width / height - 1 / longest) / (longest - 1 / longest)) < FAR
    assert distance(found[:, 0, 0] / (1 - width)) < FAR
    assert distance(found[:, 0, 1] / (1 - height)) < FAR


def test_the_whole_picture_is_one_of_seven_choices(monkeypatch):
    monkeypatch.setattr(augmentation, "ZOOM_CHANCE", 0)
    monkeypatch.setattr(augmentation, "_inside", lambda p, boxes: np.ones((len(p), len(boxes)), dtype=bool))
    asked = []

    class Every:
        """An overlap that is enough for every choice, and notes which was made."""

        def __ge__(self, least):
            asked.append(least)
            return np.ones((augmentation.TRIALS, 1), dtype=bool)

    monkeypatch.setattr(augmentation, "_iou", lambda p, boxes: Every())
    found = patches(corners([10, 10, 50, 50]))
    whole = (found == [[0, 0], [400, 300]]).all((1, 2)).sum()
    counts = [whole, *(asked.count(least) for least in (0, 0.1, 0.3, 0.5, 0.7, 0.9))]
    assert sum(counts) == N
    assert np.abs(np.array(counts) / N - 1 / 7).max() < 0.0105  # three standard deviations


@pytest.mark.parametrize("least", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_patch_holds_the_centre_of_an_object_that_overlaps_it_enough(monkeypatch, least):
    monkeypatch.setattr(augmentation, "LEAST_IOU", (augmentation.WHOLE, least))
    boxes = corners([40, 30, 360, 270], [0, 0, 30, 30], [300, 200, 400, 300])
    overlaps = []
    for patch in patches(boxes, 1000):
        low, high = np.maximum(patch[0], boxes[:, 0]), np.minimum(patch[1], boxes[:, 1])
        common = (high - low).clip(0).prod(1)
        iou = common / ((patch[1] - patch[0]).prod() + (boxes[:, 1] - boxes[:, 0]).prod(1) - common)
        centres = boxes.mean(1)
        inside = ((patch[0] < centres) & (centres < patch[1])).all(1)
        assert inside.any()
        if (patch[1] - patch[0] < [400, 300]).any():
            overlaps.append(iou[inside].max())
    assert least <= min(overlaps) < least + 0.05


def test_mirrored_half_of_the_time_and_top_to_bottom_on_request_only(monkeypatch):
    fixed(monkeypatch)

    def places(transform):
        found = []
        for seed in range(400):
            torch.manual_seed(seed)
            found.append(tuple(transform(*sample([[0, 0, 50, 30]], 30 * 4, 200))[1]["boxes"][0].tolist()))
        return {place: found.count(place) / 400 for place in set(found)}

    left, right = (0, 0, 0.25, 0.25), (0.75, 0, 1, 0.25)
    below = {(0, 0.75, 0.25, 1), (0.75, 0.75, 1, 1)}
    for transform, expected in (
        (TrainTransform(16), {left, right}),
        (TrainTransform(16, flips=True), {left, right} | below),
    ):
        usual = places(transform)
        assert set(usual) == expected
        assert all(abs(share - 1 / len(expected)) < 0.075 for share in usual.values())


# -------------------------------------------------------------------------------------------------------- colours


def test_each_colour_is_changed_half_of_the_time_and_as_far_as_it_may():
    rng = np.random.default_rng(2)
    drawn = np.array([draw_colours(rng) for _ in range(N)])
    ranges = [(-32 / 255, 32 / 255), (0.5, 1.5), (0.5, 1.5), (-math.pi / 10, math.pi / 10)]
    changed = np.stack([column != sum(limits) / 2 for column, limits in zip(drawn.T, ranges, strict=True)])
    assert np.abs(changed.mean(1) - 0.5).max() < 0.015
    for column, which, limits in zip(drawn.T, changed, ranges, strict=True):
        assert distance(column[which], *limits) < 2 * FAR
    assert np.abs(np.corrcoef(changed) - np.eye(4)).max() < 0.04


# ----------------------------------------------------------------------------------------------------- evaluation


class TestEval:
    def test_boxes_are_those_of_the_picture(self):
        boxes = [[0.5, 0, 640, 478.5], [3, 3, 3.01, 3.5], [77, 41, 641, 479]]
        target = EvalTransform(300)(*sample(boxes, 479, 641))[1]
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
        mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
        expected = (small / 255 - mean) / std
        target = {"boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(50, 80))}
        for image in (EvalTransform(300)(picture), EvalTransform(300)(tv_tensors.Image(picture), target)[0]):
            assert (image.shape, image.dtype) == ((3, 300, 300), torch.uint8)
            off = to_input(image[None].as_subclass(torch.Tensor))[0] - expected
            assert off.abs().max() < 0.025  # one grey level, as resizing rounds: 1 / 255 / 0.225 = 0.018

    def test_draws_nothing(self):
        before = torch.get_rng_state()
        EvalTransform(64)(*sample(FOUR))
        assert torch.equal(torch.get_rng_state(), before)
