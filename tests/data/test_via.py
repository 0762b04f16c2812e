"""Data sets of the VGG Image Annotator."""

import math

import pytest
from annotation_files import draw, via, via_project, write

from ssd.data import VIADataset, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def region(name="rect", attributes=None, **shape):
    shape = shape or {"x": 1, "y": 2, "width": 10, "height": 20}
    attributes = {"kind": "thing"} if attributes is None else attributes
    return {"shape_attributes": {"name": name} | shape, "region_attributes": attributes}


def opened(root, regions, content=via):
    draw(root / "a.jpg")
    write(root / "via.json", content(["a.jpg"], regions))
    return open_dataset(root)


SHAPES = [
    region(),
    region("polygon", {"kind": "other"}, all_points_x=[5, 9, 7], all_points_y=[4, 3, 8]),
    region("circle", cx=20, cy=20, r=5.5),
    region("ellipse", cx=20, cy=20, rx=10, ry=4, theta=math.pi / 2),
    region("ellipse", cx=20, cy=20, rx=10, ry=4),
    region("point", cx=3, cy=4),
    region("polyline", all_points_x=[1, 2], all_points_y=[3, 4]),
]


@pytest.mark.parametrize("content", [via, via_project])
@pytest.mark.parametrize("regions", [SHAPES, {str(i): shape for i, shape in enumerate(SHAPES)}], ids=["2", "1"])
def test_every_shape_has_the_box_around_it(tmp_path, content, regions):
    dataset = opened(tmp_path, regions, content)
    assert type(dataset) is VIADataset
    assert dataset.classes == ("other", "thing")
    boxes = [[1, 2, 11, 22], [5, 3, 9, 8], [14.5, 14.5, 25.5, 25.5], [16, 10, 24, 30], [10, 16, 30, 24]]
    assert dataset.truths[0]["boxes"].tolist() == boxes
    assert dataset.truths[0]["labels"].tolist() == [2, 1, 2, 2, 2]
    assert [dropped.index for dropped in dataset.dropped] == [5, 6]


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"anything": " cat "}, "cat"),
        ({"colour": "red", "Label": "cat"}, "cat"),
        ({"type": "big", "class": "cat"}, "cat"),
        ({"animal": {"cat": True, "dog": False}}, "cat"),
        ({}, "object"),  # as in sets of one class
    ],
)
def test_the_attribute_with_the_class(tmp_path, attributes, name):
    assert opened(tmp_path, [region(attributes=attributes)]).classes == (name,)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (
            [region(attributes={"colour": "red", "size": "big"})],
            r"via\.json: no attribute .* is named class, label, .* they have: colour, size",
        ),
        ([region(attributes={"a": {"cat": True, "dog": True}})], r"\['a'\] must be the name of one class, got {'cat'"),
        ([region(), region(attributes={"kind": ""})], r"'a\.jpg1000'\]\['regions'\]\[1\]\['region_attributes'\]"),
        ([region("rect", x=1, y=2, width=3)], r"\['regions'\]\[0\]\['shape_attributes'\] has no 'height'"),
        ([region("blob")], r"\['name'\] must be rect, circle, ellipse, polygon, polyline or point, got 'blob'"),
        ([region("polygon", all_points_x=[1, 2], all_points_y=[1])], "has 2 x and 1 y of a polygon"),
        ([region(), 7], r"\['regions'\]\[1\] must be an object, got 7"),
        (7, r"\['regions'\] must be a list, got 7"),
    ],
)
def test_errors(tmp_path, regions, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, regions)


def test_pictures_without_regions_are_kept(tmp_path):
    dataset = opened(tmp_path, [])
    assert (len(dataset), dataset.classes) == (1, ())
