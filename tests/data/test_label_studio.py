"""Data sets of Label Studio."""

import pytest
from annotation_files import OF_PICTURE, SIZE, draw, label_studio, label_studio_min, percent, region, write

from ssd.data import LabelStudioDataset, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def opened(root, results, size=SIZE):
    draw(root / "a.jpg", size)
    content = label_studio(["/data/upload/1/ab12cd34-a.jpg"], results)
    write(root / "export.json", content)
    return open_dataset(root)


def points(*pixels):
    return {"points": [[100 * x / SIZE[0], 100 * y / SIZE[1]] for x, y in pixels]}


def test_every_region_has_the_box_around_it(tmp_path):
    ellipse = {"x": 50, "y": 50, "radiusX": 100 * 8 / SIZE[0], "radiusY": 100 * 6 / SIZE[1], "ellipselabels": ["thing"]}
    dataset = opened(
        tmp_path,
        [
            region(id="1"),
            region(percent((20, 10, 40, 16)) | {"rotation": 90}, id="2"),  # about its left top corner
            region(points((5, 4), (9, 3), (7, 8)), "polygonlabels", "other", id="3"),
            region(ellipse, "ellipselabels", id="4"),
            region({"x": 50, "y": 50, "width": 1}, "keypointlabels", id="5"),
            region({"format": "rle", "rle": [0, 1]}, "brushlabels", id="6"),
            region(percent((40, 30, 20, 10)), id="7"),  # drawn from its right lower corner: negative sizes
            {"value": {"choices": ["good"]}, "id": "8", "type": "choices"},  # about the whole picture
        ],
    )
    assert type(dataset) is LabelStudioDataset
    assert dataset.classes == ("other", "thing")
    expected = [[10, 12, 34, 36], [14, 10, 20, 30], [5, 3, 9, 8], [24, 18, 40, 30], [20, 10, 40, 30]]
    assert dataset.truths[0]["boxes"].tolist() == [pytest.approx(box, abs=1e-5) for box in expected]
    assert dataset.truths[0]["labels"].tolist() == [2, 2, 1, 2, 2]
    assert [dropped.index for dropped in dataset.dropped] == [4, 5]


def test_a_picture_that_was_resized_later(tmp_path):
    dataset = opened(tmp_path, [region()], (2 * SIZE[0], 2 * SIZE[1]))
    assert dataset.truths[0]["boxes"].tolist() == [pytest.approx([20, 24, 68, 72])]


def test_a_shape_and_its_label_apart(tmp_path):
    shape = percent() | {"rotation": 0}
    both = [region(kind="labels"), region(shape, "rectangle")]
    del both[1]["value"]["rectangle"]
    dataset = opened(tmp_path, both)
    assert (dataset.classes, len(dataset.truths[0]["boxes"])) == (("thing",), 1)
    row = label_studio_min(["a.jpg"])[0] | {
        "box": [shape | OF_PICTURE, shape | OF_PICTURE],
        "label": [shape | {"labels": ["thing"]}, shape | {"labels": ["other"]}],
    }
    write(tmp_path / "export.json", [row])
    assert open_dataset(tmp_path).counts == {"other": 1, "thing": 1}


def test_the_last_annotation_that_was_not_cancelled_counts(tmp_path):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "b.jpg")

    def annotation(label, created, cancelled=False):
        result = [region(label=label)] if label else []
        return {"result": result, "created_at": f"2024-01-0{created}T00:00:00Z", "was_cancelled": cancelled}

    task, undone = label_studio(["a.jpg", "b.jpg"])
    task["annotations"] = [annotation("new", 2), annotation("old", 1), annotation("cancelled", 3, True)]
    undone["annotations"] = [annotation("cancelled", 3, True)]
    write(tmp_path / "export.json", [task, undone])
    dataset = open_dataset(tmp_path)
    assert (dataset.classes, [path.name for path in dataset.pictures]) == (("new",), ["a.jpg"])

    task["annotations"].append(annotation("", 4))  # someone found nothing in it
    write(tmp_path / "export.json", [task])
    assert (open_dataset(tmp_path).classes, len(open_dataset(tmp_path))) == ((), 1)

    rows = label_studio_min(["a.jpg"] * 2)  # of two annotators
    rows[0]["created_at"], rows[0]["label"] = "2025", [percent() | {"rectanglelabels": ["new"]}]
    write(tmp_path / "export.json", rows)
    assert open_dataset(tmp_path).classes == ("new",)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([region(kind="rectanglelabels", label=None)], r"\['result'\]\[0\] must have the name of its class as a label"),
        (
            [region(percent() | {"rectanglelabels": []})],
            r"export\.json: \[0\]\['annotations'\]\[0\]\['result'\]\[0\] must",
        ),
        ([region(percent() | {"x": "1"})], r"\['x'\] must be a number, got '1'"),
        ([region(image_rotation=90)], "the picture was turned while it was labelled"),
        ([region(percent() | {"rotation": 5}, original_width=None)], "is rotated, but has no 'original_width' and"),
        ([7], r"\['result'\]\[0\] must be an object, got 7"),
        (7, r"\['result'\] must be a list, got 7"),
    ],
)
def test_errors_of_regions(tmp_path, results, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, results)


@pytest.mark.parametrize("data", [{"text": "a"}, {"first": "a.jpg", "second": "b.jpg"}])
def test_a_task_without_one_picture(tmp_path, data):
    task = label_studio(["a.jpg"])[0] | {"data": data}
    write(tmp_path / "export.json", [task])
    with pytest.raises(ValueError, match=r"\[0\]\['data'\] must have its picture as 'image'"):
        open_dataset(tmp_path)


def test_an_uploaded_picture_that_is_missing(tmp_path):
    write(tmp_path / "export.json", label_studio(["/data/upload/1/ab12cd34-a.jpg"]))
    with pytest.raises(FileNotFoundError, match=r"export\.json: no picture '/data/upload/1/ab12cd34-a\.jpg' in"):
        open_dataset(tmp_path)
