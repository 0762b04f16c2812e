"""Data sets in YOLO layout."""

import pytest
from small_datasets import as_yolo

from ssd.data import open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


LABELS = "labels/val/d.txt"


@pytest.mark.parametrize(
    ("file", "text", "error", "message"),
    [
        (LABELS, "0 0.5 0.5 0.1", ValueError, r"d\.txt: line 1 must have 4 numbers, or the x and y"),
        (LABELS, "\n0 0.5 0.5 0.1 0.1 0.2", ValueError, "line 2 must have 4 numbers, or the x and y of a polygon"),
        (LABELS, "dog 0.5 0.5 0.1 0.1", ValueError, "line 1 must be the number of a class, then numbers, got 'dog"),
        (LABELS, "3 0.5 0.5 0.1 0.1", ValueError, r"line 1 has class 3, but there are 3 classes: \['dog'"),
        ("data.yaml", "names: [a, b", ValueError, r"data\.yaml: broken YAML"),
        ("data.yaml", "nc: 3", ValueError, r"data\.yaml: 'names' must be a list, or a dict .*, got None"),
        ("data.yaml", "names: {1: a}", ValueError, r"keys 0, 1, \.\.\., got {1: 'a'}"),
    ],
)
def test_errors_of_yolo(voc, tmp_path, file, text, error, message):
    as_yolo(voc, tmp_path, "yolo")
    (tmp_path / file).write_text(text)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path, "val")


def test_a_split_that_is_not_there(voc, tmp_path):
    as_yolo(voc, tmp_path, "yolo")
    with pytest.raises(FileNotFoundError, match="no such split 'test'; there are: train, val"):
        open_dataset(tmp_path, "test")
