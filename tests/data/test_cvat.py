"""Data sets in CVAT's format for images."""

import pytest
from annotation_files import cvat, draw, write

from ssd.data import CVATDataset, VOCDataset, list_splits, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def opened(root, shapes):
    draw(root / "images" / "a.jpg")
    write(root / "annotations.xml", cvat(["a.jpg"], shapes))
    return open_dataset(root)


def test_every_shape_has_the_box_around_it(tmp_path):
    dataset = opened(
        tmp_path,
        '<tag label="good_frame"/>'
        '<box label="thing" xtl="10.5" ytl="12" xbr="34" ybr="36"><attribute name="a">1</attribute></box>'
        '<box label="thing" xtl="20" ytl="10" xbr="30" ybr="40" rotation="90.0"/>'  # about its centre
        '<polygon label="other" points="5.00,4.00;9.00,3.00;7.00,8.00"/>'
        '<ellipse label="thing" cx="20" cy="20" rx="10" ry="4" rotation="90"/>'
        '<mask label="thing" rle="3, 5, 7" left="7" top="8" width="13" height="15"/>'
        '<polyline label="line" points="1,2;3,4"/>'
        '<points label="tip" points="1,2"/>'
        '<skeleton label="s"><points label="1" points="1,2"/></skeleton>'
        '<cuboid label="thing" xtl1="1" ytl1="2"/>',
    )
    assert type(dataset) is CVATDataset
    assert dataset.classes[:2] == ("thing", "line")  # "thing" is declared; "tip" is, but as points
    expected = [[10.5, 12, 34, 36], [10, 20, 40, 30], [5, 3, 9, 8], [16, 10, 24, 30], [7, 8, 20, 23]]
    assert dataset.truths[0]["boxes"].tolist() == [pytest.approx(box, abs=1e-5) for box in expected]
    assert [dropped.name for dropped in dataset.dropped] == ["line", "tip", "s", "thing"]


def test_subsets_are_the_splits(tmp_path):
    for part in ("train", "my part"):
        draw(tmp_path / "images" / part / "a.jpg")
        write(tmp_path / f"{part}.xml", cvat([f"{part}/a.jpg"], subset=part))
    assert list_splits(tmp_path) == ["my part", "train"]
    assert [path.parent.name for path in open_dataset(tmp_path, "my part").pictures] == ["my part"]
    write(tmp_path / "my part.xml", cvat(["my part/a.jpg"], subset="default"))
    assert list_splits(tmp_path) == ["train"]


def test_a_video_is_refused(tmp_path):
    write(tmp_path / "annotations.xml", "<annotations><track id='0' label='a'/></annotations>")
    with pytest.raises(
        ValueError, match=r"annotations\.xml: has tracks of a video; export the data as 'CVAT for images'"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            '<box label="a" xtl="1"/>',
            r"annotations\.xml: image 'a\.jpg': box 0 must have the numbers xtl, ytl, xbr, ybr",
        ),
        (
            '<points label="a"/><polygon label="a" points="1,2;3"/>',
            r"polygon 1 must have points as x,y;x,y;\.\.\., got '1,2",
        ),
        ('<box xtl="1"/>', "box 0 has no label"),
        ('<box label="a"/><box label="a"/>', "2 errors"),
    ],
)
def test_errors(tmp_path, shapes, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, shapes)


def test_other_xml_beside_it(tmp_path):
    opened(tmp_path, "")
    write(tmp_path / "a config.xml", "<settings/>")
    assert type(open_dataset(tmp_path)) is CVATDataset
    draw(tmp_path / "voc" / "b.jpg")
    write(tmp_path / "Annotations" / "b.xml", "<annotation><filename>b.jpg</filename></annotation>")
    with pytest.raises(ValueError, match=r"two data sets, .* XML files, such as .* and annotations\.xml of CVAT"):
        open_dataset(tmp_path)
    assert type(open_dataset(tmp_path / "annotations.xml")) is CVATDataset
    (tmp_path / "annotations.xml").unlink()
    (tmp_path / "a config.xml").unlink()
    assert type(open_dataset(tmp_path)) is VOCDataset
