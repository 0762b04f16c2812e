"""Rows of many images in a few arrays."""

import pickle
from pathlib import Path

import pytest
import torch

from ssd.runtime.packed import Packed, Texts, splits_of


def packed(*counts):
    n = sum(counts)
    columns = {"boxes": torch.arange(4.0 * n).reshape(n, 4), "labels": torch.arange(n)}
    return Packed(columns, splits_of(torch.tensor(counts, dtype=torch.int64)))


def rows(images):
    return [image["labels"].tolist() for image in images]


def test_items_are_the_rows_of_an_image():
    images = packed(2, 0, 3)
    assert rows(images) == [[0, 1], [], [2, 3, 4]]
    assert images[2]["boxes"].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    assert rows(images[1:]) == [[], [2, 3, 4]]
    assert rows([images[-1]]) == [[2, 3, 4]]
    with pytest.raises(IndexError):
        images[3]
    assert images.counts.tolist() == [2, 0, 3]


def test_some_rows_some_images_and_several_parts():
    images = packed(2, 0, 3)
    assert rows(images.where(torch.tensor([True, False, True, False, True]))) == [[0], [], [2, 4]]
    assert images.where(torch.ones(5, dtype=torch.bool)) is images
    assert rows(images.take(torch.tensor([2, 0, 2, 1]))) == [[2, 3, 4], [0, 1], [2, 3, 4], []]
    assert rows(Packed.join([images, packed(1), packed()])) == [[0, 1], [], [2, 3, 4], [0]]


def test_values_of_an_image_go_with_its_rows():
    images = Packed({"labels": torch.arange(3)}, torch.tensor([0, 1, 3]), {"image_id": [7, "x"]})
    assert [image["image_id"] for image in images] == [7, "x"]
    assert [image["image_id"] for image in images.take(torch.tensor([1]))] == ["x"]
    assert [image["image_id"] for image in images.where(torch.tensor([True, False, True]))] == [7, "x"]


def test_texts():
    names = ["a.jpg", "", "ä é.png", "bad \udce9 byte"]
    texts = Texts(names, str)
    assert texts == names
    assert texts != names[1:]
    assert (texts[-1], texts[1:3], len(texts)) == (names[-1], names[1:3], 4)
    assert pickle.loads(pickle.dumps(texts)) == names
    assert Texts(["a/b.jpg"], Path) == [Path("a/b.jpg")]
