"""What is said about a data set: what was understood, and what looks like a mistake."""

import json
import shutil

import numpy as np
import pytest
import torch
from annotation_files import draw, labelme, write
from small_datasets import add_picture, as_coco, as_yolo

from ssd.data import findings, open_dataset
from ssd.data.findings import EMPTY, KINDS, find_odd, in_two_splits, summary, warnings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_summary_says_where_everything_is(voc, tmp_path):
    assert summary(open_dataset(voc)) == (
        "4 pictures in JPEGImages, with annotations in the format of Pascal VOC in Annotations; 3 classes, 4 objects"
    )
    as_yolo(voc, tmp_path / "yolo", "yolo")
    assert summary(open_dataset(tmp_path / "yolo")) == (
        "4 pictures in images/train and images/val, with annotations in the format of YOLO in labels/train and "
        "labels/val; 3 classes, 4 objects"
    )
    as_coco(voc, tmp_path / "coco", "coco")
    assert summary(open_dataset(tmp_path / "coco")) == (
        "4 pictures in images/train and images/val, with annotations in the format of COCO in "
        "annotations/instances_train.json and annotations/instances_val.json; 3 classes, 4 objects"
    )
    for name in "abc":
        add_picture(tmp_path / "flat", name, [("dog", 1, 1, 9, 9)])
        for file in (f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml"):
            shutil.move(tmp_path / "flat" / file, tmp_path / "flat")
    assert summary(open_dataset(tmp_path / "flat")) == (
        "3 pictures in flat, with annotations in the format of Pascal VOC beside them; 1 class, 3 objects"
    )


def test_what_looks_like_a_mistake_is_said(tmp_path):
    twice, whole = ("dog", 5, 6, 20, 30), ("cat", 1, 1, 60, 40)
    add_picture(tmp_path, "a", [twice, ("dog ", 1, 1, 9, 9), ("Dog", 1, 1, 9, 9), ("cat", *twice[1:])])
    add_picture(tmp_path, "b", [twice, twice, twice, ("cat", 1, 1, 59, 40)])
    add_picture(tmp_path, "c", [whole, ("big dog", 9, 9, 19, 19), ("BigDog", 9, 9, 19, 19)])
    said = list(warnings(open_dataset(tmp_path, classes=("dog", "Dog", "cat", "big dog", "BigDog", "cow"))))
    assert [line.split(":")[0] for line in said] == [
        "classes that differ only by case or blanks",
        "classes that differ only by case or blanks",
        "classes without objects",
        "boxes that are there twice, with the same class",
        "boxes that are there twice, with different classes",
        "boxes of nearly the whole picture",
    ]
    assert said[0].endswith(": 'dog' and 'Dog'")
    assert said[1].endswith(": 'big dog' and 'BigDog'")
    assert said[2].endswith(": cow")
    assert ": 2, " in said[3]
    assert said[3].endswith("b.xml")
    assert ": 3, " in said[4]
    assert said[4].endswith("a.xml")
    assert ": 2, " in said[5]
    assert said[5].endswith("b.xml")


def test_a_class_that_may_be_misspelt_is_said(tmp_path):
    counts = {"Arduino_Nano": 20, "arduino_nanoo": 1, "Ardiuno_Nano": 1, "arduin_nano": 1, "dog": 40, "dogs": 1}
    counts |= {"bottle": 40, "bottles": 2, "bowtle": 1, "ottle": 3, "botle": 1, "bottle_l": 30, "bottle_r": 1}
    counts |= {"type_1": 20, "type_2": 1}
    add_picture(tmp_path, "a", [(name, 1, 1, 9, 9 + i) for name, n in counts.items() for i in range(n)])
    said = [line.removeprefix("a class that may be misspelt: ") for line in warnings(open_dataset(tmp_path))]
    assert [line for line in said if "nearly the name of" in line] == [
        "'Ardiuno_Nano' (1 object), nearly the name of 'Arduino_Nano' (20)",
        "'arduin_nano' (1 object), nearly the name of 'Arduino_Nano' (20)",
        "'arduino_nanoo' (1 object), nearly the name of 'Arduino_Nano' (20)",
        "'botle' (1 object), nearly the name of 'bottle' (40)",
        "'bottles' (2 objects), nearly the name of 'bottle' (40)",
        "'bowtle' (1 object), nearly the name of 'bottle' (40)",
    ]


def test_a_picture_with_two_annotations_is_said(tmp_path):
    draw(tmp_path / "a.jpg")
    for folder in ("annotations", "backup"):
        write(tmp_path / folder / "a.json", labelme("a.jpg"))
    (said, *_) = warnings(open_dataset(tmp_path))
    files = f"{tmp_path}/annotations/a.json and {tmp_path}/backup/a.json"
    assert said == f"pictures with two annotations: 1, such as {tmp_path}/a.jpg, with {files}"


def places(finding):
    return list(zip(finding.pictures.tolist(), finding.boxes.tolist(), finding.labels.tolist(), strict=True))


def test_each_kind_of_odd_boxes_has_its_places(tmp_path):
    sound = ("dog", 11, 11, 20, 20)  # VOC counts pixels from 1, and includes the last one: 10 pixels wide
    add_picture(tmp_path, "a", [sound, ("dog", 11, 11, 29, 20), ("dog", 12, 11, 20, 20), ("cat", 11, 11, 20, 20)])
    add_picture(tmp_path, "b", [("dog", 1, 1, 60, 40), ("cat", 5, 5, 6, 30)])
    add_picture(tmp_path, "c", [("cat", 31, 11, 90, 20)])
    add_picture(tmp_path, "d")
    add_picture(tmp_path, "e", [("cat", 9, 9, 10, 10, 1)])  # difficult
    odd = {finding.kind: finding for finding in find_odd(open_dataset(tmp_path))}
    assert list(odd) == [kind for kind in KINDS if kind != "boxes of an unusual size for their class"]  # too few
    (same, other, whole, beyond, tiny, empty) = odd.values()
    scale = torch.tensor([60.0, 40, 60, 40])

    def box(*edges):
        return (torch.tensor(edges) / scale).tolist()

    assert [place[::2] for place in places(same)] == [(0, 2)]  # IoU 0.9; the wider box has 0.53
    assert same.boxes[0] == pytest.approx(box(11, 10, 20, 20))
    assert [place[::2] for place in places(other)] == [(0, 1)]
    assert (other.indices.tolist(), other.others.tolist(), other.other_indices.tolist()) == ([3], [2], [0])
    assert [place[::2] for place in places(whole)] == [(1, 2)]
    assert beyond.boxes[0] == pytest.approx(box(30, 10, 60, 20))
    assert [place[::2] for place in places(beyond)] == [(2, 1)]
    assert [place[::2] for place in places(tiny)] == [(1, 1), (4, 1)]
    assert (empty.pictures.tolist(), empty.labels.tolist(), empty.indices.tolist()) == ([3], [0], [-1])
    assert np.isnan(empty.boxes).all()
    assert not [line for line in warnings(open_dataset(tmp_path)) if EMPTY in line]


@pytest.mark.parametrize("n", [findings.FEWEST - 1, findings.FEWEST])
def test_sizes_are_compared_with_those_of_the_class(tmp_path, n):
    """Half of the sides are 10 and half 12 pixels: 5 standard deviations are less than the factor of 3."""
    side = [10, 12] * n
    boxes = [("dog", 1, 1, side[i], side[i]) for i in range(n - 1)]
    for i in range(n - 1):
        add_picture(tmp_path, f"{i}", [boxes[i], ("cat", 1, 1, 40, 40)])
    add_picture(tmp_path, "odd", [("dog", 1, 1, 34, 34), ("cat", 1, 1, 40, 30)])
    odd = [finding for finding in find_odd(open_dataset(tmp_path)) if "unusual" in finding.kind]
    assert [finding.labels.tolist() for finding in odd] == [[2]] * (n == findings.FEWEST)


def test_same_boxes_are_those_that_a_comparison_of_all_finds():
    rng = np.random.default_rng(0)
    picture_of = np.sort(rng.integers(0, 12, 300))
    corners = rng.uniform(0, 0.3, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.25, (300, 2))], 1)
    boxes[::3] = boxes[2::3] + rng.normal(0, 0.003, (100, 4))
    expected = {}
    for j in range(300):
        for i in range(j):
            inter = (np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])).clip(0).prod()
            union = sum((boxes[k, 2:] - boxes[k, :2]).prod() for k in (i, j)) - inter
            if picture_of[i] == picture_of[j] and inter >= findings.TWICE * union:
                expected.setdefault(j, i)
    again, before = findings._same_boxes(picture_of, boxes)
    assert dict(zip(again.tolist(), before.tolist(), strict=True)) == expected
    assert len(expected) > 50


def test_nothing_is_said_of_sound_data(voc):
    assert list(warnings(open_dataset(voc))) == []


def test_pictures_in_two_splits_are_found_under_any_name(tmp_path):
    for name in ("alone", "in_both", "different"):
        add_picture(tmp_path, name)  # the pixels depend on the length of the name
    folder = tmp_path / "JPEGImages"
    shutil.copy(folder / "in_both.jpg", folder / "copy.jpg")
    padded = (folder / "alone.jpg").read_bytes()  # of the same size as another picture
    (folder / "same_size.jpg").write_bytes(padded[:-2] + b"\xff\xd8")
    splits = {"train": ["alone.jpg", "in_both.jpg"], "val": ["copy.jpg", "same_size.jpg"], "test": ["different.jpg"]}
    said = list(in_two_splits({name: [folder / file for file in files] for name, files in splits.items()}))
    assert said == [
        f"pictures that are in train and in val: 1, such as {folder / 'in_both.jpg'} and {folder / 'copy.jpg'}"
    ]


def test_a_category_that_is_only_a_parent(voc, tmp_path):
    """Roboflow writes the name of the project as a category 0 that has no objects."""
    as_coco(voc, tmp_path, "roboflow")
    for file in tmp_path.glob("*/*.json"):
        content = json.loads(file.read_text())
        content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
        file.write_text(json.dumps(content))
    assert "classes without objects: animals" in list(warnings(open_dataset(tmp_path)))
