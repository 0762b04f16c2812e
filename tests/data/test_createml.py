"""Data sets of CreateML."""

import pytest
from annotation_files import BOX, createml, draw, write

from ssd.data import CreateMLDataset, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def test_boxes_are_given_by_their_centres_and_pictures_may_be_empty(tmp_path):
    content = [*createml(["a.jpg", "b.jpg"]), {"image": "c.jpg", "annotations": []}]
    for row in content:
        draw(tmp_path / row["image"])
    write(tmp_path / "annotations.json", content)
    dataset = open_dataset(tmp_path)
    assert type(dataset) is CreateMLDataset
    assert dataset.classes == ("thing",)
    assert [truth["boxes"].tolist() for truth in dataset.truths] == [[list(BOX)], [list(BOX)], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"annotations": []}, r"annotations\.json: \[1\] has no 'image'"),
        ({"image": "b.jpg"}, r"\[1\] has no 'annotations'"),
        ({"image": "b.jpg", "annotations": [{"label": " ", "coordinates": {}}]}, r"\['label'\] is empty"),
        ({"image": "b.jpg", "annotations": [{"label": "a", "coordinates": {"x": 1}}]}, r"\[1\].*has no 'y'"),
        ({"image": "z.jpg", "annotations": []}, "no picture 'z.jpg'"),
    ],
)
def test_errors(tmp_path, row, message):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "b.jpg")
    write(tmp_path / "annotations.json", [*createml(["a.jpg"]), row])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(tmp_path)
