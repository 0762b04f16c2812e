"""Boxes in another unit are refused, and those that reach beyond their pictures are reported."""

import pytest
from annotation_files import BOX, SIZE, createml, draw, labelme, write

from ssd.data import open_dataset
from ssd.data.findings import warnings

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERS = {  # of the box in pixels, in the order of the format
    "voc": BOX,
    "csv": BOX,
    "coco": (BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]),
    "yolo": ((BOX[0] + BOX[2]) / 2 / SIZE[0], (BOX[1] + BOX[3]) / 2 / SIZE[1], 24 / SIZE[0], 24 / SIZE[1]),
}


def make(root, format, boxes):
    draw(root / "a.jpg")
    if format == "yolo":
        write(root / "classes.txt", "thing\n")
        write(root / "a.txt", "".join(f"0 {' '.join(map(str, box))}\n" for box in boxes))
    elif format == "csv":
        rows = "".join(f"a.jpg,{','.join(map(str, box))},thing\n" for box in boxes)
        write(root / "a.csv", rows)
    elif format == "coco":
        rows = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
        names = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "thing"}]}
        write(root / "a.json", names | {"annotations": rows})
    else:
        edges = ("xmin", "ymin", "xmax", "ymax")
        its = ("".join(f"<{e}>{n}</{e}>" for e, n in zip(edges, box, strict=True)) for box in boxes)
        objects = "".join(f"<object><name>thing</name><bndbox>{box}</bndbox></object>" for box in its)
        write(root / "a.xml", f"<annotation>{objects}</annotation>")


@pytest.mark.parametrize("format", NUMBERS)
def test_boxes_in_another_unit_are_refused(tmp_path, format):
    width, height = SIZE
    factors = (width, height, width, height) if format == "yolo" else (1 / width, 1 / height, 1 / width, 1 / height)
    wrong = [number * factor for number, factor in zip(NUMBERS[format], factors, strict=True)]
    make(tmp_path, format, [wrong, wrong])
    message = (
        "pixels or percent, such .* has fractions" if format == "yolo" else "fractions of the picture, .* has pixels"
    )
    with pytest.raises(ValueError, match=rf"/a\.\w+: the boxes of all annotations look like {message}"):
        open_dataset(tmp_path)
    make(tmp_path, format, [wrong, NUMBERS[format]])  # one of them may be a mistake
    dataset = open_dataset(tmp_path)
    assert len(dataset.truths[0]["boxes"]) <= 2
    said = [line for line in warnings(dataset) if "look like pixels or percent" in line]
    assert len(said) == (format == "yolo")
    assert all("left out: 1 of 2, such as (" in line for line in said)


@pytest.mark.parametrize(
    ("format", "box"),
    [("coco", (30, 24, 60, 46)), ("yolo", (0.5, 0.5, 0.9, 1.2)), ("csv", (-9, 2, 30, 40)), ("voc", (1, 1, 64, 60))],
)
def test_boxes_that_reach_beyond_are_reported(tmp_path, format, box):
    make(tmp_path, format, [NUMBERS[format], box])
    (said, *_) = warnings(open_dataset(tmp_path))
    assert said.startswith("boxes that reach beyond their picture, and are cut: 1 of 2, such as (")
    assert "/a." in said
    make(tmp_path, format, [NUMBERS[format]])
    assert not list(warnings(open_dataset(tmp_path)))


def test_other_formats_in_pixels(tmp_path):
    content = createml(["a.jpg"])
    content[0]["annotations"][0]["coordinates"] = {"x": 0.5, "y": 0.5, "width": 0.4, "height": 0.4}
    shape = {"label": "thing", "points": [[0.2, 0.2], [0.6, 0.6]], "shape_type": "rectangle"}
    for file, its in (("c", content), ("l", labelme("a.jpg", [shape]))):
        draw(tmp_path / file / "a.jpg")
        write(tmp_path / file / "a.json", its)
        with pytest.raises(ValueError, match="look like fractions of the picture"):
            open_dataset(tmp_path / file)


def test_swapped_corners_are_named(tmp_path):
    make(tmp_path, "csv", [BOX, (BOX[2], BOX[3], BOX[0], BOX[1]), (5, 5, 5, 9)])
    reasons = [dropped.reason for dropped in open_dataset(tmp_path).dropped]
    assert reasons == ["no width or height, because its corners are swapped", "no width or height"]
