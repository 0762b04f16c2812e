"""Data sets in COCO layout."""

import json
import time
from pathlib import Path

import pytest
from small_datasets import HEIGHT, WIDTH, as_coco

from ssd.data import ReadOptions, list_splits, open_dataset
from ssd.data.coco import CocoRows

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


@pytest.mark.parametrize("box", [[], None, ...])
def test_an_object_without_a_box_is_left_out(voc, tmp_path, box):
    as_coco(voc, tmp_path, "coco")
    objects = open_dataset(tmp_path, "val").counts

    def damage(content):
        rows = content["annotations"]
        rows.insert(0, {key: value for key, value in (rows[0] | {"bbox": box}).items() if value is not ...})

    change(VAL, damage)(tmp_path)
    dataset = open_dataset(tmp_path, "val")
    assert dataset.counts == objects
    assert [str(drop) for drop in dataset.dropped] == [f"{tmp_path / VAL}: object 0 (cat) left out: no box"]
    with pytest.raises(ValueError, match=r"object 0 \(cat\) cannot be used: no box"):
        open_dataset(tmp_path, "val", options=ReadOptions(strict=True))


def test_ids_may_be_texts_and_numbers(voc, tmp_path):
    as_coco(voc, tmp_path, "coco")
    expected = open_dataset(tmp_path, "train")

    def to_texts(content):
        for row in content["annotations"]:
            row.update(image_id=str(row["image_id"]), category_id=str(row["category_id"]))

    change("annotations/instances_train.json", to_texts)(tmp_path)
    ours = open_dataset(tmp_path, "train")
    assert ours.counts == expected.counts
    assert [t["boxes"].tolist() for t in ours.truths] == [t["boxes"].tolist() for t in expected.truths]


def test_all_wrong_rows_are_reported_at_once(voc, tmp_path):
    as_coco(voc, tmp_path, "coco")

    def damage(content):
        rows = content["annotations"]
        content["annotations"] = [rows[0] | {"bbox": "x"}, *rows, {"id": 9}, 7]

    change(VAL, damage)(tmp_path)
    with pytest.raises(ValueError, match="3 errors:") as caught:
        open_dataset(tmp_path, "val")
    assert [line.split("annotations")[2][:3] for line in str(caught.value).split("\n")[1:]] == ["[0]", "[2]", "[3]"]


def test_the_size_in_the_file(voc, tmp_path):
    """The picture is twice as large as the file says: it was resized after it was annotated."""
    as_coco(voc, tmp_path, "coco")
    expected = open_dataset(tmp_path, "val").truths[0]["boxes"].tolist()
    half = {"width": WIDTH // 2, "height": HEIGHT // 2}
    change(VAL, lambda content: [row.update(half) for row in content["images"]])(tmp_path)
    change(VAL, lambda c: [row.update(area=10, bbox=[v / 2 for v in row["bbox"]]) for row in c["annotations"]])(
        tmp_path
    )
    truth = open_dataset(tmp_path, "val").truths[0]
    assert truth["boxes"].tolist() == expected
    assert truth["areas"].tolist() == [40]


def test_the_time_to_name_unknown_ids_does_not_grow_with_their_square():
    rows, began = CocoRows(), time.process_time()
    for i in range(20_000):
        rows.add({"image_id": i // 2, "category_id": 1})
    with pytest.raises(
        ValueError, match=r"10000 errors:\n +a\.json\[0\]\['image_id'\] is 0, .*\n +a\.json\[2\].* is 1,"
    ):
        rows.numbers("image_id", {}, "a.json")
    assert time.process_time() - began < 2  # it took 10 s
