"""Data sets of CSV files, in the dialects of several tools."""

import unicodedata

import numpy as np
import pytest
from annotation_files import BOX, DEEP_FOREST, KERAS, OPEN_IMAGES, XML_TO_CSV, draw, table, write

from ssd.data import CSVDataset, OpenImagesDataset, XMLToCSVDataset, list_splits, open_dataset
from ssd.data.folder import Folder

pytestmark = pytest.mark.usefixtures("one_thread")
DIALECTS = {"keras": KERAS, "xml_to_csv": XML_TO_CSV, "DeepForest": DEEP_FOREST, "Open Images": OPEN_IMAGES}
CLASSES = {"xml_to_csv": XMLToCSVDataset, "Open Images": OpenImagesDataset}


def opened(root, text, name="labels.csv"):
    for stem in "abc":
        draw(root / f"{stem}.jpg")
    write(root / name, text)
    return open_dataset(root)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(tmp_path, dialect):
    dataset = opened(tmp_path, table(["a.jpg", "b.jpg"], *DIALECTS[dialect]))
    assert type(dataset) is CLASSES.get(dialect, CSVDataset)
    assert [path.name for path in dataset.pictures] == ["a.jpg", "b.jpg"]
    assert dataset.classes == (("/m/01",) if dialect == "Open Images" else ("thing",))
    for truth in dataset.truths:
        assert truth["boxes"].tolist() == [list(BOX)]
    (reader, _) = dataset._readers(Folder.of(tmp_path), None)
    assert reader().size == ((64, 48) if dialect == "xml_to_csv" else (0, 0))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_encodings(tmp_path, delimiter, encoding):
    draw(tmp_path / "a, b.jpg")
    rows = [" Label ", "X-Min", "ymin", "X2", "bottom", "image"], ["é", "1.5", "2", "30", "40", '"a, b.jpg"']
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("é",)
    assert dataset.truths[0]["boxes"].tolist() == [[1.5, 2, 30, 40]]


def test_a_file_without_classes_has_one_class(tmp_path):
    dataset = opened(tmp_path, "image,xmin,ymin,xmax,ymax,species\na.jpg,1,2,30,40,dog\n")
    assert dataset.classes == ("object",)
    (note,) = (note for note in dataset.notes if "class" in note)
    assert "no column for the class (not used: species), so all objects are of the class 'object'" in note


def test_pictures_of_open_images_that_are_not_there_are_left_out(tmp_path):
    for part in ("train", "validation"):
        write(tmp_path / f"{part}-annotations-bbox.csv", table([f"{part[0]}{i}.jpg" for i in range(3)], *OPEN_IMAGES))
    with pytest.raises(FileNotFoundError, match=r"no picture 't0' in"):
        open_dataset(tmp_path)
    draw(tmp_path / "train" / "t1.jpg")
    assert list_splits(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path)
    assert [path.name for path in dataset.pictures] == ["t1.jpg"]
    assert any("rows of pictures that are not there, and are left out (2 pictures)" in note for note in dataset.notes)


def test_objects_are_grouped_by_picture(tmp_path):
    rows = ["a.jpg,1,2,30,40,dog", "b.jpg,,,,,", "a.jpg,5,6,7,8,cat", "c.jpg,0,0,0,0,dog", "a.jpg,9,9,9,9,cat"]
    dataset = opened(tmp_path, "\n".join(rows))
    assert [path.name for path in dataset.pictures] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [truth["boxes"].tolist() for truth in dataset.truths] == [[[1, 2, 30, 40], [5, 6, 7, 8]], [], []]
    assert [(dropped.index, dropped.name) for dropped in dataset.dropped] == [(4, "cat")]
    assert dataset.classes == ("cat", "dog")
    write(tmp_path / "class_list.csv", "dog,1\nbird,2\ncat,0\n")
    assert open_dataset(tmp_path).classes == open_dataset(tmp_path / "labels.csv").classes == ("cat", "dog", "bird")
    write(tmp_path / "class_list.csv", "dog,0\n")
    with pytest.raises(ValueError, match=r"labels\.csv: unknown class 'cat'; the classes are \('dog',\)"):
        open_dataset(tmp_path)


def test_groups_of_open_images_are_crowds(tmp_path):
    header, row = OPEN_IMAGES
    text = table(["a.jpg"], header, row) + table(["a.jpg"], "", row.replace("0,0,0,0,0", "0,0,1,0,0"))
    write(tmp_path / "class-descriptions-boxable.csv", '/m/01,"Dog, wild"\n/m/02,Cat\n')
    assert opened(tmp_path, text).counts == {"Dog, wild": 1}
    crowds = open_dataset(tmp_path, keep_crowds=True)
    assert crowds.truths[0]["difficult"].tolist() == [False, True]


def test_splits(tmp_path):
    header, row = DEEP_FOREST
    for part in ("train", "val"):
        draw(tmp_path / part / f"{part}.jpg")
    write(tmp_path / "labels.csv", table(["train.jpg", "val.jpg"], header, row))
    assert list_splits(tmp_path) == ["train", "val"]
    assert [path.name for path in open_dataset(tmp_path, "val").pictures] == ["val.jpg"]
    write(tmp_path / "test_labels.csv", table(["val.jpg"], header, row))  # a file decides for all its pictures
    assert list_splits(tmp_path) == ["test", "train", "val"]
    write(tmp_path / "more.csv", table(["val.jpg"], header, row))
    with pytest.raises(ValueError, match=r"labels\.csv and more\.csv both describe 'val\.jpg'; name one as the data"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path / "more.csv")) == 1


def test_a_file_in_a_folder_of_its_own(tmp_path):
    draw(tmp_path / "images" / "a.jpg")
    write(tmp_path / "annotations" / "labels.csv", table(["a.jpg"], *DEEP_FOREST))
    assert len(open_dataset(tmp_path / "annotations" / "labels.csv")) == 1


HEADER = "filename,class,xmin,ymin,xmax,ymax\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "a.jpg,dog,1,x,3,4\n", r"labels\.csv: line 2, column 'ymin' must be a number, got 'x'"),
        (HEADER + "\na.jpg,dog,1,,3,4\n", r"line 3, column 'ymin' must be a number, got ''"),
        (HEADER + "a.jpg,,1,2,3,4\n", "line 2, column 'class' is empty"),
        (HEADER + ",dog,1,2,3,4\n", "line 2, column 'filename' is empty"),
        (HEADER + "a.jpg,big, dog,1,2,3,4\n", "line 2 has 7 columns, expected 6"),
        (HEADER + "a.jpg,dog,1,2,3\n", "line 2 has 5 columns, expected 6"),
        (HEADER + "a.jpg,dog,1,2,x,4\nb.jpg,dog,1,2,y,4\na.jpg,dog,z,2,3,4\n", "3 errors:"),
        ("a.jpg,1,2,3,4,dog\na.jpg,1,2,3,a,dog", "line 2, column 'y2' must be a number, got 'a'"),
        ("filename,class,xmin,ymin,xmax\n", r"no column for ymax; there are: filename, class, xmin, ymin, xmax"),
        ("image_id,bbox\na.jpg,1 2 3", r"line 2, column 'bbox' must be left, top, width and height as \[x, y, w, h\]"),
        ("filename,path,class,xmin,ymin,xmax,ymax\n", "'filename' and 'path' could both be the picture: rename one"),
        ("filename,class,x,y,width,height\n", "Whether x is an edge or the centre is not known: write the edges as"),
        ("filename,class,x_center,y_center,w,h\n", "Whether x is an edge or the centre is not known"),
        ("image_path,label,score,xmin,ymin,xmax,ymax\n", "'score' is a column of detections, not of true objects"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,-1,2,dog,1,2,3,4\n", "line 2 must have the size of"),
        (HEADER, "no annotated pictures"),
        (HEADER + '"' + "x" * 140_000, "line 2: broken CSV"),
        ((HEADER + "é").encode("latin-1"), "is not utf-8 text"),
    ],
)
def test_errors(tmp_path, text, message):
    write(tmp_path / "labels.csv", "")
    if isinstance(text, bytes):
        draw(tmp_path / "a.jpg")
        (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, text) if isinstance(text, str) else open_dataset(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch,train/box_loss,metrics/mAP50\n1,0.2,0.3\n",
        "id,has_cactus\na.jpg,1\n",
        "image,label\na.jpg,dog\n",
        "sepal,x,y\n1,2,3\n",
        "2020-01-02,1,2,3,4,5\n",
        "LabelName,DisplayName\n/m/01,Dog\n",
        "ImageID,Source,LabelName,Confidence\na,verification,/m/01,1\n",
    ],
)
def test_other_csv_files_are_no_data_set(tmp_path, text):
    with pytest.raises(FileNotFoundError, match=r" pictures, but no annotations were found [(]"):
        opened(tmp_path, text)


def test_two_dialects_in_one_folder_are_refused(tmp_path):
    write(tmp_path / "a.csv", table(["a.jpg"], *XML_TO_CSV))
    with pytest.raises(
        ValueError, match=r"two data sets, labels\.csv of CSV and a\.csv of CSV made from XML: name the"
    ):
        opened(tmp_path, table(["b.jpg"], *KERAS))


def test_other_formats_go_before_csv(tmp_path):
    write(tmp_path / "a.xml", "<annotation><filename>a.jpg</filename></annotation>")
    assert type(opened(tmp_path, table(["a.jpg"], *XML_TO_CSV))).FORMAT == "Pascal VOC"
    assert type(open_dataset(tmp_path / "labels.csv")) is XMLToCSVDataset


def test_the_cache_sees_the_list_of_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ssd.data.cache.WORTH_KEEPING", 0)
    monkeypatch.setattr("ssd.data.cache.YOUNG", -9e9)  # the files are new
    write(tmp_path / "set" / "classes.csv", "thing,0\n")
    first = opened(tmp_path / "set", table(["a.jpg"], *KERAS))
    write(tmp_path / "set" / "classes.csv", "other,0\nthing,1\n")
    assert (first.classes, open_dataset(tmp_path / "set").classes) == (("thing",), ("other", "thing"))


def test_many_rows(tmp_path):
    """Every row is read, also behind the beginning that decides the layout."""
    numbers = np.random.default_rng(0).integers((0, 0, 25, 25), (20, 20, 45, 45), (5000, 4))
    rows = [f"{'abc'[i % 3]}.jpg,{','.join(map(str, edges))},thing" for i, edges in enumerate(numbers.tolist())]
    dataset = opened(tmp_path, "\n".join(rows))
    for i, truth in enumerate(dataset.truths):
        assert np.array_equal(truth["boxes"].numpy(), numbers[i::3])


def test_one_class_and_one_picture_in_two_spellings(tmp_path):
    forms = [unicodedata.normalize(form, "강아지") for form in ("NFC", "NFD")]
    draw(tmp_path / f"{forms[1]}.jpg")
    rows = [f"{forms[0]}.jpg,{form},1,2,30,40" for form in forms]
    write(tmp_path / "labels.csv", "\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))
    write(tmp_path / "classes.csv", "\n".join(f"{form},{i}" for i, form in enumerate(forms)))
    dataset = open_dataset(tmp_path)
    assert dataset.counts == {forms[0]: 2}
    assert [path.stem for path in dataset.pictures] == [forms[1]]
