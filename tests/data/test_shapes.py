from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import ssd.data.shapes
from ssd.data import VOCDataset
from ssd.data.shapes import SHAPE_CLASSES, write_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("sets") / "deep" / "shapes", n_train=60, n_test=5, seed=3)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_is_a_set_in_voc_layout(folder):
    train, test = VOCDataset(folder, "train"), VOCDataset(folder, "test", SHAPE_CLASSES)
    assert (len(train), len(test)) == (60, 5)
    assert train.classes == SHAPE_CLASSES
    assert train.dropped == []
    assert not {path.name for path in train.pictures} & {path.name for path in test.pictures}
    assert train[0][0].shape == (3, 300, 300)
    assert sum(path.suffix == ".jpg" for path in contents(folder)) == 65


def test_objects_are_of_all_sizes_and_barely_overlap(folder):
    targets = [target for _, target in VOCDataset(folder, "train")]
    counts = [len(target["labels"]) for target in targets]
    assert min(counts) == 0
    assert 4 <= max(counts) <= 5
    assert torch.cat([target["labels"] for target in targets]).bincount()[1:].min() > 20
    boxes = torch.cat([target["boxes"].as_subclass(torch.Tensor) for target in targets])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 0.12 * 0.85 * 300 - 1
    assert sides.max() <= 0.6 * 300
    assert sides.amax(1).max() > 3 * sides.amax(1).min()
    assert (boxes >= 0).all()
    assert (boxes <= 300).all()
    for target in targets:
        iou = box_iou(target["boxes"], target["boxes"]).fill_diagonal_(0)
        assert iou.sum() == 0 or iou.max() < 0.1


def test_boxes_are_tight(monkeypatch):
    monkeypatch.setattr(ssd.data.shapes, "_background", lambda rng, w, h: Image.new("RGB", (2 * w, 2 * h), "white"))
    seen = 0
    for seed in range(60):
        image, objects = ssd.data.shapes._picture(np.random.default_rng(seed), 160, 120)
        if len(objects) == 1:
            seen += 1
            # saturated fill and dark outline stand out from white even where an edge covers half a pixel
            y, x = np.nonzero(np.asarray(image, dtype=int).min(2) < 200)
            found = (x.min(), y.min(), x.max() + 1, y.max() + 1)
            assert np.abs(np.subtract(found, objects[0][1])).max() <= 1, (seed, found, objects)
    assert seen >= 5


def test_shapes_look_like_their_names(monkeypatch):
    """The share of the box that a shape covers tells a triangle, a circle and a square apart."""
    monkeypatch.setattr(ssd.data.shapes, "_background", lambda rng, w, h: Image.new("RGB", (2 * w, 2 * h), "white"))
    covered = {name: [] for name in SHAPE_CLASSES}
    for seed in range(150):
        image, objects = ssd.data.shapes._picture(np.random.default_rng(seed), 160, 160)
        if len(objects) == 1:
            ((name, (x0, y0, x1, y1)),) = objects
            covered[name].append((np.asarray(image, dtype=int).min(2) < 200)[y0:y1, x0:x1].mean())
    assert 0.35 < min(covered["triangle"]) <= max(covered["triangle"]) < 0.6
    assert 0.75 < min(covered["circle"]) <= max(covered["circle"]) < 0.84
    assert 0.65 < min(covered["square"]) <= max(covered["square"]) <= 1


def test_is_determined_by_the_arguments(folder, tmp_path):
    small, again, other = (
        write_shapes(tmp_path / name, n_train=4, n_test=2, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert contents(small) == contents(again)
    pictures = {path: data for path, data in contents(small).items() if path.suffix == ".jpg"}
    assert len(pictures) == 6
    assert pictures.items() <= contents(folder).items()  # a larger set begins with the smaller one
    assert not set(pictures.values()) & set(contents(other).values())
    assert len(set(pictures.values())) == 6


def test_other_sizes(tmp_path):
    dataset = VOCDataset(write_shapes(tmp_path / "set", n_train=3, n_test=0, size=(200, 90)), "train", SHAPE_CLASSES)
    assert [image.shape for image, _ in dataset] == [(3, 90, 200)] * 3
    assert dataset.dropped == []


def test_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(FileExistsError, match=tmp_path.name):
        write_shapes(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_takes_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(contents(write_shapes(tmp_path / "empty", 1, 1))) == 6


@pytest.mark.parametrize("wrong", [{"n_train": -1}, {"n_test": -2}, {"seed": -3}, {"size": (300, 20)}])
def test_refuses_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values()))).replace("(", r"\(").replace(")", r"\)")):
        write_shapes(tmp_path / "set", **wrong)
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    pictures = itertools.chain([ssd.data.shapes._picture(np.random.default_rng(0), 64, 64)], [KeyboardInterrupt()])

    def fail(*_):
        if isinstance(result := next(pictures), BaseException):
            raise result
        return result

    monkeypatch.setattr(ssd.data.shapes, "_picture", fail)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "set", 2, 0)
    assert not list(tmp_path.iterdir())
