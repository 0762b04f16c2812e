"""Tiles: their grid, and data sets of tiles."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.data import open_dataset
from ssd.data.augmentation import EvalTransform, TrainTransform
from ssd.data.reading import Picture, PicturePart
from ssd.data.shapes import write_shapes
from ssd.data.tiles import in_views, views
from ssd.runtime.packed import Packed


@pytest.mark.parametrize("sides", [(1000, 700), (224, 224), (3, 900), (225, 224), (41, 1)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [20, 64, 224, 999, 1000, 5000])
def test_tiles_cover_the_picture_and_overlap_enough(size, overlap, sides):
    *parts, whole = views(*sides, size, overlap)
    assert whole == (0, 0, *sides)
    assert (parts == []) == (size >= max(sides))
    for axis, length in enumerate(sides):
        starts = sorted({part[axis] for part in parts} or {0})
        ends = sorted({part[axis + 2] for part in parts} or {length})
        assert starts[0] == 0
        assert ends[-1] == length
        assert {end - start for start, end in zip(starts, ends, strict=True)} == (
            {min(size, length)} if parts else {length}
        )
        step = max(1, int(size * (1 - overlap)))
        gaps = np.diff(starts)
        assert (gaps <= step).all()
        # One tile fewer would be too few.
        assert len(starts) < 2 or (len(starts) - 2) * step + size < length
    assert len(parts) == len(set(parts))
    assert parts == sorted(parts, key=lambda part: (part[1], part[0]))


def test_objects_of_a_part_have_their_centre_in_it():
    boxes = torch.tensor([[10.0, 10, 30, 30], [35, 5, 55, 25], [40, 5, 60, 15], [0, 0, 100, 100]])
    columns = {"boxes": boxes, "areas": torch.tensor([100.0, 300, 1200, 8000]).double(), "labels": torch.arange(1, 5)}
    columns["crowd"] = torch.zeros(4, dtype=torch.bool)
    two = Packed(columns, torch.tensor([0, 3, 4]))
    found = in_views(two, torch.tensor([[20, 0, 50, 25], [50, 40, 80, 90]]))
    assert found.row_splits.tolist() == [0, 2, 3]
    assert found.columns["labels"].tolist() == [
        1,
        2,
        4,
    ]  # 20 and 45 are inside, 50 is in the second part
    assert found.columns["boxes"].tolist() == [[0, 10, 10, 25], [15, 5, 30, 25], [0, 0, 30, 50]]
    assert found.columns["areas"].tolist() == pytest.approx([100 * 150 / 400, 300 * 300 / 400, 8000 * 1500 / 10000])


def test_a_data_set_in_tiles(tmp_path):
    data = open_dataset(write_shapes(tmp_path / "a", 3, 0, (300, 200), most=1, sides=(0.1, 0.2)), "train")
    tiled = data.view(EvalTransform(64)).tiled(120, 0.25)
    parts = [(i, view) for i in range(3) for view in views(300, 200, 120, 0.25)]
    assert len(parts) == 3 * (3 * 2 + 1)
    expected = []  # by hand: which objects each part has
    for i, (x0, y0, x1, y1) in parts:
        boxes = data.truths[i]["boxes"]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres >= torch.tensor([x0, y0])) & (centres < torch.tensor([x1, y1]))).all(1)
        cut = boxes[inside].clamp(torch.tensor([x0, y0] * 2), torch.tensor([x1, y1] * 2)) - torch.tensor([x0, y0] * 2)
        expected.append((i, (x0, y0, x1, y1), cut))
    filled = [each for each in expected if len(each[2])]
    n_empty = len(parts) - len(filled)
    assert n_empty > len(filled) > 4
    assert len(tiled) == 2 * len(filled)
    share = sum(map(touches, filled)) / sum(len(boxes) for *_, boxes in filled)
    assert tiled.notes == [
        f"{len(tiled)} tiles of 120 pixels and whole pictures, of 3 pictures; {n_empty - len(filled)} without objects "
        f"are left out; {share:.0%} of the objects touch an edge"
    ]
    rows = iter(filled)
    for index in range(len(tiled)):
        truth, picture = tiled.truths[index], tiled.picture(index)
        if not len(truth["boxes"]):
            continue
        i, (x0, y0, x1, y1), boxes = next(rows)
        assert torch.equal(truth["boxes"], boxes)
        assert tiled.pictures[index] == data.pictures[i] == picture.path
        assert tiled.sizes[index].tolist() == [picture.width, picture.height] == [x1 - x0, y1 - y0]
        assert torch.equal(picture.pixels(), data.picture(i).pixels()[:, y0:y1, x0:x1])
        image, target = tiled[index]
        assert torch.equal(image, picture.part((0, 0, x1 - x0, y1 - y0), (64, 64))[0])
        torch.testing.assert_close(target["boxes"], boxes / torch.tensor([x1 - x0, y1 - y0] * 2))
        torch.testing.assert_close(tiled.objects[index]["boxes"], target["boxes"])
    assert next(rows, None) is None
    some = tiled.part([5, 2])
    assert torch.equal(some[0][0], tiled[5][0])
    assert torch.equal(some.sizes[1], tiled.sizes[2])


def touches(part):
    _, (x0, y0, x1, y1), boxes = part
    return sum(bool((box[:2] <= 0).any() or box[2] >= x1 - x0 or box[3] >= y1 - y0) for box in boxes)


def test_training_augments_within_a_tile(tmp_path):
    """Boxes that fill a grey tile are still around the grey part of each sample."""
    tile = torch.zeros(3, 100, 100, dtype=torch.uint8)
    tile[:, 20:70, 40:90] = 128
    part = PicturePart(Picture(tile), (30, 10, 95, 80))
    torch.manual_seed(0)
    transform = TrainTransform(64)
    for _ in range(20):
        image, target = transform(part, {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])})
        for box in target["boxes"]:
            x0, y0, x1, y1 = (64 * box).round().int().tolist()
            inside = image[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            assert (inside == 128).all()


def test_a_crowd_is_in_each_tile_that_it_overlaps(tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "a.png")
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 20, 200, 60], "iscrowd": 1, "area": 6000},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [90, 20, 30, 30], "iscrowd": 0},
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 300, "height": 100}]
    content = {"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": rows}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path, keep_crowds=True)
    tiled = data.tiled(100, 0)
    truths = [
        (
            tiled.tile(i),
            [*zip(truth["boxes"].tolist(), truth["crowd"].tolist(), truth["areas"].round().tolist(), strict=True)],
        )
        for i, truth in enumerate(tiled.truths)
    ]
    dog = [90, 20, 120, 50], False, 900
    assert truths == [
        ([0, 0, 100, 100], [([50, 20, 100, 80], True, 1500)]),
        ([100, 0, 200, 100], [([0, 20, 100, 80], True, 3000), ([0, 20, 20, 50], False, 600)]),
        ([200, 0, 300, 100], [([0, 20, 50, 80], True, 1500)]),
        ([0, 0, 300, 100], [([50, 20, 250, 80], True, 6000), dog]),
    ]
    assert [len(truth["boxes"]) for truth in tiled.view(None, keep_crowds=False).truths] == [0, 1, 0, 1]
    assert "100% of the objects" not in tiled.notes[0]  # the crowd does not count
    assert "0 without objects are left out; 50% of the objects touch an edge" in tiled.notes[0]
