"""Detections from files: by ids or by names, and what is wrong with an entry is said with its file, place and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detection_files import IDS, results, write, write_coco, write_own

from ssd.data import open_dataset
from ssd.evaluation.detection_file import DetectionFile

CLASSES = ("cat", "dog")  # categories 2 and 7


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "data")


def read(path: Path, data: Path):
    file = DetectionFile(path)
    return file.detections(open_dataset(data, classes=file.classes))


def test_a_list_goes_by_the_ids_of_the_data(data: Path, tmp_path: Path) -> None:
    a, b, c = read(write(tmp_path / "r.json", results()), data)
    assert [len(rows) for rows in (*a, *c)] == [0] * 6
    boxes, labels, scores = b
    assert boxes.tolist() == [[5, 5, 35, 15], [30, 20, 55, 35]]
    assert labels.tolist() == [1, 2]
    assert scores.tolist() == [0.5, 0.5]
    assert [column.dtype for column in b] == [torch.float64, torch.int64, torch.float64]
    assert all(len(rows) == 0 for image in read(write(tmp_path / "none.json", []), data) for rows in image)


def test_the_file_of_ssd_detect_goes_by_names(data: Path, tmp_path: Path) -> None:
    path = write_own(tmp_path / "found", [data / f"{name}.png" for name in "cba"])
    assert DetectionFile(path).classes == ("dog", "cow", "cat")
    a, b, c = read(path, data)
    assert [len(a[0]), len(c[0])] == [0, 0]
    assert b[0].tolist() == [[5, 5, 35, 15], [30, 20, 55, 35]]
    assert b[1].tolist() == [3, 1]


def test_pictures_of_one_name_are_told_apart_by_their_folders(data: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "more")
    both = [data / "truth.json", tmp_path / "more" / "truth.json"]
    pictures = [folder / f"{name}.png" for folder in (tmp_path / "more", data) for name in IDS]
    path = write_own(tmp_path / "found", pictures)
    content = json.loads(path.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] <= 3]
    for row in content["images"]:  # as of another machine
        row["file_name"] = row["file_name"].replace(str(tmp_path), "D:\\pictures").replace("/", "\\")
    file = DetectionFile(write(path, content))
    found = file.detections(dataset := open_dataset(both, classes=file.classes))
    assert [len(boxes) for boxes, _, _ in found] == [0, 0, 0, 0, 2, 0]

    content["images"][0]["file_name"] = "a.png"
    with pytest.raises(ValueError, match=r"images\[0\]\['file_name'\] is 'a.png', and this may be .*data.* or .*more"):
        DetectionFile(write(path, content)).detections(dataset)
    with pytest.raises(ValueError, match="image_id 30 is in two files of the data"):
        DetectionFile(write(path, results())).detections(dataset)


def test_ids_of_two_files_must_not_differ_in_meaning(data: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "more")
    file = tmp_path / "more" / "truth.json"
    content = json.loads(file.read_text())
    for row in content["images"] + content["annotations"]:
        row["id" if "file_name" in row else "image_id"] += 1
    listed = write(tmp_path / "r.json", results())
    assert [len(boxes) for boxes, _, _ in read(listed, [data, write(file, content)])] == [0, 2, 0, 0, 0, 0]
    content["categories"][0]["name"] = "cow"
    with pytest.raises(ValueError, match=r"more.truth.json: category 7 is 'cow', elsewhere 'dog'"):
        read(listed, [data, write(file, content)])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 11}, r"r.json: \[1\]\['image_id'\] is 11, which does not exist"),
        ({"image_id": [30]}, r"\[1\]\['image_id'\] is \[30\], which does not exist"),
        ({"bbox": [0, 0, -1, 5]}, r"\[1\]\['bbox'\] must be .* sizes >= 0, got \[0, 0, -1, 5\]"),
        ({"bbox": [0, 0, 5, -0.5]}, r"\[1\]\['bbox'\] must be "),
        ({"bbox": [0, NAN, 5, 5]}, r"\[1\]\['bbox'\] must be .* finite .* got \[0, nan, 5, 5\]"),
        ({"bbox": [0, 0, INF, 5]}, r"\[1\]\['bbox'\] must be "),
        ({"bbox": [0, 0, 5]}, r"\[1\]\['bbox'\] must be x, y, width and height"),
        ({"bbox": "0 0 5 5"}, r"\[1\]\['bbox'\] must be "),
        ({"score": NAN}, r"\[1\]\['score'\] must be a finite number, got nan"),
        ({"score": "0.5"}, r"\[1\]\['score'\] must be a finite number, got '0.5'"),
        ({"score": 10**400}, r"\[1\]\['score'\] must be a finite number"),
        *[({key: ...}, rf"r.json: \[1\] has no '{key}'") for key in ("image_id", "category_id", "bbox", "score")],
    ],
    ids=str,
)
def test_a_wrong_entry_is_named(change: dict, message: str, data: Path, tmp_path: Path) -> None:
    rows = results()
    rows[1] = {key: value for key, value in {**rows[1], **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "r.json", rows), data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "r.json: broken JSON"),
        ("[1]", r"r.json: \[0\] has no 'image_id'"),
        ("{}", "r.json: no list 'images'"),
        ("7", "r.json: no list 'images'"),
    ],
)
def test_a_file_of_something_else_is_named(content: str, message: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "r.json", data)


def test_categories_that_the_data_does_not_have_are_left_out(data: Path, tmp_path: Path) -> None:
    """As pycocotools does."""
    rows = results()
    others = [row | {"category_id": category} for row in rows for category in (1, 80)]
    path = write(tmp_path / "r.json", [*others, *rows])
    file = DetectionFile(path)
    found = file.detections(open_dataset(data))
    for ours, expected in zip(found, read(write(tmp_path / "known.json", rows), data), strict=True):
        assert [column.tolist() for column in ours] == [column.tolist() for column in expected]
    assert file.notes == [f"{path}: detections of categories that are not in the data, left out: {len(others)}"]


def test_ids_may_be_texts_instead_of_numbers(data: Path, tmp_path: Path) -> None:
    rows = [row | {"image_id": str(row["image_id"]), "category_id": str(row["category_id"])} for row in results()]
    expected = read(write(tmp_path / "numbers.json", results()), data)
    for ours, theirs in zip(read(write(tmp_path / "texts.json", rows), data), expected, strict=True):
        assert [column.tolist() for column in ours] == [column.tolist() for column in theirs]


def test_a_wrong_entry_of_ssd_detect_is_named(data: Path, tmp_path: Path) -> None:
    path = write_own(tmp_path / "found", [data / f"{name}.png" for name in "abc"])

    def error(edit) -> str:
        content = json.loads(text)
        edit(content)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(write(path, content), data)
        assert str(path) in str(caught.value)
        return str(caught.value)

    text = path.read_text()
    assert "annotations[0]['image_id'] is 9" in error(lambda c: c["annotations"][0].update(image_id=9))
    assert "annotations[1]['category_id'] is 9" in error(lambda c: c["annotations"][1].update(category_id=9))
    assert "annotations[1] has no 'score'" in error(lambda c: c["annotations"][1].pop("score"))
    assert "'x/d.png', and the data has no such picture" in error(lambda c: c["images"][1].update(file_name="x/d.png"))
    twice = error(lambda c: c["images"][1].update(file_name="a.png"))
    assert "images[1]['file_name'] is 'a.png': this is" in twice
    assert "a.png, and so is images[0]" in twice
    assert "images[1]['id'] is 1, a duplicate" in error(lambda c: c["images"][1].update(id=1))
    assert "detections.json: does not have" in (message := error(lambda c: c["images"].pop()))
    assert "c.png" in message


def test_a_list_needs_ids(data: Path, tmp_path: Path) -> None:
    for folder, file in (("images", "a.png"), ("labels", "a.txt")):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
        (tmp_path / "yolo" / folder / file).write_bytes((data / file).read_bytes() if folder == "images" else b"")
    (tmp_path / "yolo" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"r.json: a list refers to ids of .* this data is a YOLODataset"):
        read(write(tmp_path / "r.json", results()), tmp_path / "yolo")
