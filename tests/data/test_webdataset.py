"""A JSON file for each picture, with boxes as in COCO."""

import pytest
from annotation_files import draw, write

from ssd.data import COCODataset, WebDataset, open_dataset
from ssd.data.json_kinds import HEAD

pytestmark = pytest.mark.usefixtures("one_thread")


def one(root, rows, **other):
    draw(root / "a.jpg", (60, 40))
    write(root / "a.json", {"annotations": rows, **other})
    return root


def test_what_an_object_may_have(tmp_path):
    box = [1, 2, 10, 20]
    rows = [
        {"bbox": box, "category": "b", "category_id": 1},
        {"bbox": box, "label": "a", "category_id": 7, "iscrowd": 1},
        {"bbox": box, "category_id": 3.0, "category": None, "difficult": True},
        {"bbox": [0.5, 0, 4, 4], "class": "b", "area": 12.5, "segmentation": [[1, 2, 3, 4]], "score": None},
        {"bbox": None, "category_name": "c"},
        {"name": "a", "bbox": []},
        {"class_name": "b", "bbox": [1, 2, 10, 20]},
    ]
    dataset = open_dataset(one(tmp_path, rows, width=60, height=40, image_id=17), keep_crowds=True)
    assert type(dataset) is WebDataset
    assert dataset.classes == ("b", "3", "a", "c")  # by their numbers; those without one last
    assert dataset.truths[0]["boxes"].tolist() == [[1, 2, 11, 22]] * 3 + [[0.5, 0, 4.5, 4], [1, 2, 11, 22]]
    assert dataset.truths[0]["labels"].tolist() == [1, 3, 2, 1, 1]
    assert dataset.truths[0]["difficult"].tolist() == [False, True, True, False, False]
    assert dataset.truths[0]["areas"].tolist() == [200, 200, 200, 12.5, 200]
    assert dataset.truths[0]["image_id"] == 17
    assert [drop.reason for drop in dataset.dropped] == ["no box", "no box"]


def test_splits_are_folders(tmp_path):
    for split in ("train", "val"):
        one(tmp_path / split, [{"bbox": [0, 0, 5, 5], "label": split}])
    assert open_dataset(tmp_path, "val").classes == ("val",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"bbox": [1, 2, 3, 4], "x": 1},
            r"the class must be .* in one of category, .*, category_id, got \['bbox', 'x'\]",
        ),
        ({"bbox": [1, 2, 3, 4], "category": ""}, r"the class must be a name or a number .*, got {'category': ''}"),
        ({"bbox": [1, 2, 3, 4], "label": True}, r"the class must be a name or a number .*, got {'label': True}"),
        ({"label": "a", "box": [1, 2, 3, 4]}, "has no 'bbox', only 'label', 'box'"),
        ({"bbox": [1, 2, 3], "label": "a"}, r"\['bbox'\] must be a list of 4 numbers, got \[1, 2, 3\]"),
        ({"bbox": {"x": 1}, "label": "a"}, r"\['bbox'\] must be a list of 4 numbers, got {'x': 1}"),
        ({"bbox": [1, 2, 3, "4"], "label": "a"}, r"\['bbox'\] must be a number, got '4'"),
        ({"bbox": [1, 2, 3, 4], "label": "a", "area": "12"}, r"\['area'\] must be a number, got '12'"),
        ("cat", "must be an object, got 'cat'"),
    ],
)
def test_broken_objects(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"a\.json: annotations\[1\]:? ?{message}"):
        open_dataset(one(tmp_path, [{"bbox": [1, 2, 3, 4], "label": "a"}, row]))


def test_names_of_pictures_and_files(tmp_path):
    """Suffixes in any case, and names that WebDataset cuts at the first dot; a mask is no picture of its own."""
    for picture, file in (("a.JPG", "a.json"), ("b.image.jpg", "b.json"), ("c.jpeg", "c.json")):
        draw(tmp_path / "in" / picture, (60, 40))
        write(tmp_path / "in" / file, {"annotations": [{"bbox": [0, 0, 5, 5], "label": "x"}]})
    draw(tmp_path / "in" / "c.seg.png", (60, 40))
    dataset = open_dataset(tmp_path / "in")
    assert [path.name for path in dataset.pictures] == ["a.JPG", "b.image.jpg", "c.jpeg"]
    assert dataset.n_unlabelled == 1


def test_a_file_without_a_picture_and_an_empty_one(tmp_path):
    one(tmp_path, [{"bbox": [0, 0, 5, 5], "label": "x"}])
    write(tmp_path / "b.json", {"annotations": []})
    with pytest.raises(FileNotFoundError, match=r"b\.json: no picture with the same name is beside it"):
        open_dataset(tmp_path)
    draw(tmp_path / "b.jpg")
    write(tmp_path / "b.json", "")
    with pytest.raises(ValueError, match=r"b\.json: broken JSON"):
        open_dataset(tmp_path)


def test_broken_files(tmp_path):
    for rows, message in (({"a": 1}, r"the file\['annotations'\] must be a list"), (7, "must be a list, got 7")):
        with pytest.raises(ValueError, match=message):
            open_dataset(one(tmp_path, rows))
    with pytest.raises(ValueError, match=r"\['width'\] must be a number, got 'x'"):
        open_dataset(one(tmp_path, [], width="x", height=3))


def test_files_of_coco_are_not_mistaken(tmp_path):
    """COCO's JSON has many pictures, even if it begins with a long list of annotations."""
    rows = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in range(HEAD // 40)]
    content = {"annotations": rows, "images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "x"}]}
    draw(tmp_path / "a.jpg", (60, 40))
    write(tmp_path / "a.json", content)
    assert type(open_dataset(tmp_path)) is COCODataset
    rows = [{"category": "x", "bbox": [1, 2, 3, 4]} for _ in range(HEAD // 40)]
    write(tmp_path / "a.json", {"annotations": rows})
    assert type(open_dataset(tmp_path)) is WebDataset
