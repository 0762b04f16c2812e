"""Data sets in COCO layout."""

import json
from pathlib import Path

import pytest
from small_datasets import as_coco

from ssd.data import list_splits, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def test_given_classes_map_the_names(voc, tmp_path):
    as_coco(voc, tmp_path, "coco")
    dataset = open_dataset(tmp_path, "val", ("cat", "dog", "apple tree", "bird"))
    assert dataset[0][1]["labels"].tolist() == [1]
    with pytest.raises(ValueError, match=r"instances_val\.json: unknown class 'cat'; the classes are \('dog',\)"):
        open_dataset(tmp_path, "val", ("dog",))


def test_one_file_of_coco_beside_its_pictures(voc, tmp_path):
    as_coco(voc, tmp_path, "roboflow")
    assert len(open_dataset(tmp_path / "train" / "_annotations.coco.json")) == 3
    assert len(open_dataset(tmp_path / "train")) == 3
    assert list_splits(tmp_path / "train") == []


def test_crowds_are_for_evaluation_alone(voc, tmp_path):
    as_coco(voc, tmp_path, "coco")
    file = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"].append(content["annotations"][0] | {"bbox": [0, 0, 10, 10], "iscrowd": 1})
    file.write_text(json.dumps(content))
    assert len(open_dataset(tmp_path, "val")[0][1]["labels"]) == 1
    opened = open_dataset(tmp_path, "val", keep_crowds=True), open_dataset(tmp_path, "val").view(None, keep_crowds=True)
    for dataset in opened:
        target = dataset[0][1]
        assert target["difficult"].tolist() == [False, True]
        assert target["boxes"][1].tolist() == [0, 0, 10, 10]


def change(file, edit):
    def damage(root: Path):
        content = json.loads((root / file).read_text())
        edit(content)
        (root / file).write_text(json.dumps(content))

    return damage


VAL = "annotations/instances_val.json"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: (p / VAL).write_text("{"), ValueError, r"instances_val\.json: broken JSON"),
        (lambda p: (p / VAL).write_text("[]"), ValueError, r"instances_val\.json: no list 'images'"),
        (change(VAL, lambda c: c.pop("annotations")), ValueError, "no list 'annotations'"),
        (change(VAL, lambda c: c["images"][0].pop("file_name")), ValueError, r"images\[0\] has no 'file_name'"),
        (
            change(VAL, lambda c: c["annotations"][0].update(bbox=[1, 2, 3])),
            ValueError,
            r"must be 4 numbers, got \[1, 2",
        ),
        (
            change(VAL, lambda c: c["annotations"][0].update(image_id=9)),
            ValueError,
            r"\['image_id'\] is 9, which does not exist",
        ),
        (change(VAL, lambda c: c["annotations"][0].update(category_id=9)), ValueError, r"\['category_id'\] is 9"),
        (
            change(VAL, lambda c: c["images"][0].update(file_name="z.jpg")),
            FileNotFoundError,
            r"no picture 'z\.jpg' in",
        ),
        (
            change(VAL, lambda c: c["images"][0].update(id=[1])),
            ValueError,
            r"images\[0\]\['id'\] must be an integer or",
        ),
        (
            change(VAL, lambda c: c["images"][0].update(file_name=1)),
            ValueError,
            r"'file_name'\] must be a string, got 1",
        ),
        (change(VAL, lambda c: c["categories"].append(c["categories"][0])), ValueError, r"categories\[3\]\['id'\] is"),
        (lambda p: (p / VAL).unlink(), FileNotFoundError, "no such split 'val'; there are: train"),
    ],
)
def test_errors_of_coco(voc, tmp_path, damage, error, message):
    as_coco(voc, tmp_path, "coco")
    damage(tmp_path)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path, "val")
