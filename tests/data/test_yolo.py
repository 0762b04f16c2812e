"""Data sets in YOLO layout."""

import unicodedata

import pytest
from PIL import Image
from small_datasets import as_yolo

from ssd.data import ReadOptions, list_splits, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


LABELS = "labels/val/d.txt"


@pytest.mark.parametrize(
    ("file", "text", "error", "message"),
    [
        (LABELS, "0 0.5 0.5 0.1", ValueError, r"d\.txt: line 1 must have 4 numbers, or the x and y"),
        (
            LABELS,
            "\n0 0.5 0.5 0.1 0.1 0.2",
            ValueError,
            "line 2 must have 4 numbers, or the x and y of at least 3 corners .a fifth .* a detection., got",
        ),
        (LABELS, "dog 0.5 0.5 0.1 0.1", ValueError, "line 1 must be the number of a class, then numbers, got 'dog"),
        (
            LABELS,
            "3 0.5 0.5 0.1 0.1",
            ValueError,
            r"line 1 has class 3, but there are 3 classes, numbered from 0: \['dog'",
        ),
        ("data.yaml", "names: [a, b", ValueError, r"data\.yaml: broken YAML"),
        (
            "data.yaml",
            "nc: 3\nnames: [a, b]",
            ValueError,
            r"data\.yaml: 'nc' is 3, but there are 2 'names': \['a', 'b'\]",
        ),
        ("data.yaml", "nc: 3", ValueError, r"data\.yaml: 'names' must be a list, or a dict .*, got None"),
        ("data.yaml", "names: {1: a}", ValueError, r"keys 0, 1, \.\.\., got {1: 'a'}"),
    ],
)
def test_errors_of_yolo(voc, tmp_path, file, text, error, message):
    as_yolo(voc, tmp_path, "yolo")
    (tmp_path / file).write_text(text)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path, "val")


def test_a_split_that_is_not_there(voc, tmp_path):
    as_yolo(voc, tmp_path, "yolo")
    with pytest.raises(FileNotFoundError, match="no such split 'test'; there are: train, val"):
        open_dataset(tmp_path, "test")


BOX = "0.5 0.5 0.4 0.2"
SQUARE = "0.3 0.4 0.7 0.4 0.7 0.6 0.3 0.6"  # the corners of the same box


def opened(root, rows, *lines):
    """One picture of 80 x 40 with these rows, described by a YAML file with these lines."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    Image.new("RGB", (80, 40)).save(root / "images" / "a.png")
    (root / "labels" / "a.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("\n".join(("train: images", "names: [x, y]", *lines)))
    return open_dataset(root)


POINTS = "0.35 0.45 0.6 0.55 0.0 0.0 0.5 0.5"  # four, in the box
FLAGS = "0.35 0.45 2 0.6 0.55 1 0.0 0.0 0 0.5 0.5 2"


@pytest.mark.parametrize(
    ("row", "lines", "remark"),
    [
        (BOX, (), ""),
        (f"{BOX} {POINTS}", ("kpt_shape: [4, 2]",), "key points"),
        (f"{BOX} {FLAGS}", ("kpt_shape: [4, 3]",), "key points"),
        (f"{BOX} {FLAGS}", (), "key points"),  # by the count and the visibilities
        (f"{BOX} {' '.join(FLAGS.split()[:9])}", (), "key points"),  # by the count alone: it is odd
        (SQUARE, (), "outlines or oriented boxes"),
        (f"{SQUARE} 0.3 0.5 0.31 0.45", (), "outlines"),
        (f"{SQUARE} 0.3 0.5 0.31 0.45", ("kpt_shape: [0, 2]",), "outlines"),
    ],
)
def test_rows_that_are_more_than_boxes(tmp_path, row, lines, remark):
    dataset = opened(tmp_path, [f"0 {row}", f"1.0 {row}"], *lines)
    assert dataset.truths[0]["boxes"].round().tolist() == [[24, 16, 56, 24]] * 2
    assert dataset.truths[0]["labels"].tolist() == [1, 2]
    assert [note for note in dataset.notes if "bounds" in note or "key points" in note] == [
        note for note in dataset.notes if remark and remark in note
    ]
    assert any(remark in note for note in dataset.notes) or not remark


@pytest.mark.parametrize(
    ("row", "lines", "message"),
    [
        (f"{BOX} {POINTS}", (), r"a\.txt: line 2 is either .* set kpt_shape in the YAML file: \[4, 2\] for key points"),
        (f"{BOX} {POINTS}", ("kpt_shape: [17, 3]",), "line 2 must have 4 numbers and 17 key points of 3 numbers"),
        (f"{BOX} 0.9", (), "line 2 must have 4 numbers"),  # a confidence
        (BOX, ("kpt_shape: 17",), r"data\.yaml: 'kpt_shape' must be the number of key points, then 2 or 3, got 17"),
    ],
)
def test_rows_that_may_be_two_things_are_refused(tmp_path, row, lines, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, [f"0 {BOX}", f"1 {row}"], *lines)


def test_all_broken_lines_are_reported_at_once(tmp_path):
    with pytest.raises(ValueError, match="3 errors:") as caught:
        opened(tmp_path, [f"0 {BOX}", "7 1 1 1 1", f"0.5 {BOX}", "x"])
    assert [line.split("line ")[1][0] for line in str(caught.value).split("\n")[1:]] == ["2", "3", "4"]


@pytest.mark.parametrize(("described", "names"), [(True, ["a", "b"]), (False, ["a"])])
def test_a_picture_without_text_file_has_no_objects_if_a_yaml_file_describes_the_data(tmp_path, described, names):
    """Ultralytics, whose file this is, defines it so. With classes.txt it may as well wait for its annotation."""
    opened(tmp_path, [f"0 {BOX}"])
    Image.new("RGB", (80, 40)).save(tmp_path / "images" / "b.png")
    if not described:
        (tmp_path / "data.yaml").unlink()
        (tmp_path / "classes.txt").write_text("x\ny\n")
    assert [path.stem for path in open_dataset(tmp_path).pictures] == names
    for rule, expected in (("background", ["a", "b"]), ("ignore", ["a"])):
        dataset = open_dataset(tmp_path, options=ReadOptions(unlabelled=rule))
        assert [path.stem for path in dataset.pictures] == expected
        assert dataset.n_unlabelled == 1


def test_the_lists_that_darknet_names(tmp_path):
    (tmp_path / "data").mkdir()
    for name in "abc":
        Image.new("RGB", (80, 40)).save(tmp_path / "data" / f"{name}.png")
        (tmp_path / "data" / f"{name}.txt").write_text(f"0 {BOX}")
    (tmp_path / "obj.names").write_text("x\n")
    (tmp_path / "obj.data").write_text("classes= 1\ntrain  = x/data/chosen.txt\nvalid=data\\others.txt\nbackup = b\n")
    (tmp_path / "data" / "chosen.txt").write_text("data/a.png\ndata/b.png\n")
    (tmp_path / "data" / "others.txt").write_text("data/c.png\n")
    assert list_splits(tmp_path) == ["train", "valid"]
    assert [path.stem for path in open_dataset(tmp_path, "train").pictures] == ["a", "b"]
    assert [path.stem for path in open_dataset(tmp_path, "valid").pictures] == ["c"]


def test_an_empty_line_among_the_class_names_is_refused(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("dog\r\ncat\r\n\r\n")
    assert open_dataset(tmp_path).counts == {"dog": 0, "cat": 1}
    (tmp_path / "classes.txt").write_text("dog\n\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt: line 2 is empty; each line must be the name of a class"):
        open_dataset(tmp_path)


def test_hidden_copies_are_no_pictures_without_objects(tmp_path):
    """As notebooks and archives of macOS leave them, in folders that a YAML file names."""
    opened(tmp_path, [f"0 {BOX}"])
    for name in (".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "._a.png", "b.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 40)).save(tmp_path / "images" / name)
    assert [path.name for path in open_dataset(tmp_path, "train").pictures] == ["a.png", "b.png"]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_labels_and_lists_whose_names_macos_did_not_change(tmp_path, disk, written, listed):
    opened(tmp_path, [f"0 {BOX}"])
    picture = tmp_path / "images" / unicodedata.normalize(disk, "사진/é.png")
    picture.parent.mkdir()
    (tmp_path / "images" / "a.png").rename(picture)
    label = tmp_path / "labels" / unicodedata.normalize(written, "사진/é.txt")
    label.parent.mkdir()
    (tmp_path / "labels" / "a.txt").rename(label)
    if listed:
        (tmp_path / "train.txt").write_text(unicodedata.normalize(written, "images/사진/é.png"))
        (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [x, y]")
    dataset = open_dataset(tmp_path)
    assert list(dataset.pictures) == [picture]
    assert list(dataset.files) == [label]
    assert dataset.counts == {"x": 1, "y": 0}
