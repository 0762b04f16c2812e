"""Data sets of LabelMe."""

import json

import pytest
from annotation_files import SIZE, draw, labelme, write

from ssd.data import LabelMeDataset, open_dataset
from ssd.data.folder import Folder

pytestmark = pytest.mark.usefixtures("one_thread")


def shape(kind, *points, label="thing", **other):
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, "flags": {}} | other


def opened(root, *shapes, **other):
    draw(root / "a.jpg")
    write(root / "a.json", labelme("a.jpg", list(shapes), **other))
    return open_dataset(root)


def test_every_shape_has_the_box_around_it(tmp_path):
    dataset = opened(
        tmp_path,
        shape("rectangle", (30, 5), (10, 25.5)),
        shape("polygon", (3, 4), (9, 1), (6, 8), label="other"),
        shape("circle", (20, 20), (23, 24)),
        shape("mask", (1, 2), (11, 12), mask="iVBORw0KGgo="),
        shape("rectangle", (1, 1), (5, 1), (5, 9), (1, 9), difficult=True),  # four corners, as X-AnyLabeling writes
        {"label": "thing", "points": [[0, 0], [4, 0], [4, 4]]},  # a polygon of old versions
    )
    assert type(dataset) is LabelMeDataset
    assert dataset.classes == ("other", "thing")
    truth = dataset.truths[0]
    expected = [[10, 5, 30, 25.5], [3, 1, 9, 8], [15, 15, 25, 25], [1, 2, 11, 12], [1, 1, 5, 9], [0, 0, 4, 4]]
    assert truth["boxes"].tolist() == expected
    assert truth["labels"].tolist() == [2, 1, 2, 2, 2, 2]
    assert truth["difficult"].tolist() == [False] * 4 + [True, False]


def test_shapes_without_a_box_are_left_out_and_listed(tmp_path):
    shapes = [shape(kind, (1, 1), (5, 5)) for kind in ("point", "line", "linestrip")]
    dataset = opened(tmp_path, *shapes, shape("polygon"), shape("rectangle", (1, 1), (5, 5)))
    assert len(dataset.truths[0]["boxes"]) == 1
    assert [dropped.index for dropped in dataset.dropped] == [0, 1, 2, 3]


def test_all_broken_shapes_are_named_at_once(tmp_path):
    write(tmp_path / "b.json", labelme("a.jpg", [shape("circle", (1, 1), label="x")]))
    bad = ({"label": 7, "points": []}, {"label": "x", "points": [[1]]}, {"points": []}, [1])
    with pytest.raises(ValueError, match="5 errors") as raised:
        opened(tmp_path, *bad)
    said = str(raised.value)
    for text in (
        "a.json: shapes[0]['label'] must be a text, got 7",
        "a.json: shapes[1]['points'] must be a list of points [x, y], got [[1]]",
        "a.json: shapes[2] has no 'label'",
        "a.json: shapes[3] must be an object, got [1]",
        "b.json: shapes[0]['points'] must be the centre and a point of the circle",
    ):
        assert text in said


def test_a_picture_that_is_only_inside_of_the_file(tmp_path):
    write(tmp_path / "a.json", labelme("gone.jpg", imageData="/9j/4AAQ" * 30_000))
    with pytest.raises(FileNotFoundError, match=r"a\.json: no picture 'gone\.jpg' .* only in 'imageData' of the file"):
        open_dataset(tmp_path)


def test_a_huge_picture_inside_of_the_file_may_come_first(tmp_path):
    draw(tmp_path / "a.jpg")
    content = labelme("a.jpg", imageData="/9j/4AAQ" * 30_000)
    write(tmp_path / "a.json", json.dumps({key: content[key] for key in sorted(content)}))
    assert len(open_dataset(tmp_path)) == 1


def test_the_size_is_that_of_the_file(tmp_path):
    dataset = opened(tmp_path, shape("rectangle", (1, 1), (5, 5)))
    (reader,) = dataset._readers(Folder.of(tmp_path), None)
    assert reader().size == SIZE
    with pytest.raises(ValueError, match=r"\['imageWidth'\] must be a number of pixels, got -1"):
        opened(tmp_path, imageWidth=-1)


def test_a_file_that_is_damaged_at_its_beginning_is_an_error(tmp_path):
    for stem in "ab":
        draw(tmp_path / f"{stem}.jpg")
        write(tmp_path / f"{stem}.json", labelme(f"{stem}.jpg"))
    write(tmp_path / "notes.json", {"other": 1})
    assert len(open_dataset(tmp_path)) == 2
    for content in ("", '{"version": "5.4.1", "shapes": [{"label"'):
        write(tmp_path / "b.json", content)
        with pytest.raises(ValueError, match=r"/b\.json: broken JSON"):
            open_dataset(tmp_path)
