"""Fixtures of several files of tests."""

from pathlib import Path

import pytest
from small_datasets import HEIGHT, PICTURES, WIDTH, add_picture, add_split


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    for split, pictures in PICTURES.items():
        for name, objects in pictures.items():
            add_picture(root, name, objects, size=(WIDTH, HEIGHT))
        add_split(root, split, *pictures)
    return root


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Two pictures, of which one shows a dog and a difficult cat and the other nothing."""
    add_picture(tmp_path, "a", [("dog", 1, 1, 60, 40), ("cat", 11.5, 5, 20, 30, 1)])
    add_picture(tmp_path, "b")
    add_split(tmp_path, "train", "b", "a")
    add_split(tmp_path, "test", "a")
    return tmp_path
