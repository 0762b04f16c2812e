"""Folders as tools write them: each opens with the right pictures, classes, boxes and splits, under odd names."""

import pytest
from annotation_files import (
    BOX,
    DEEP_FOREST,
    KERAS,
    LISA,
    MAKE_SENSE,
    OPEN_IMAGES,
    SKU,
    WHEAT,
    XML_TO_CSV,
    createml,
    cvat,
    draw,
    label_studio,
    label_studio_min,
    labelme,
    table,
    upload,
    via,
    via_project,
    write,
)

from ssd.data import list_splits, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

STEMS = ("a", "b c", "d#1", "é")
YOLO = " ".join(map(str, (0, 22 / 64, 24 / 48, 24 / 64, 24 / 48))) + "\n"


def xml(name):
    x0, y0, x1, y1 = BOX
    return (
        f"<annotation><filename>{name}</filename><object><name>thing</name><bndbox><xmin>{x0 + 1}</xmin>"
        f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
    )


def coco(names):
    x0, y0, x1, y1 = BOX
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def voc(pictures, annotations, suffix=".jpg", parts=("",)):
    """XML files for the pictures of each part; {} in a folder stands for the part."""

    def make(root):
        for part in parts:
            for stem in STEMS:
                name = f"{part}{stem}{suffix}"
                draw(root / pictures.format(part) / name)
                write(root / annotations.format(part) / f"{part}{stem}.xml", xml(name))

    return make


def yolo(pictures, labels, parts=("",), files=()):
    """Text files for the pictures of each part, and other files."""

    def make(root):
        for part in parts:
            for stem in STEMS:
                draw(root / pictures.format(part) / f"{part}{stem}.jpg")
                write(root / labels.format(part) / f"{part}{stem}.txt", YOLO)
        for name, text in files:
            write(root / name, text)

    return make


def described(*lines, name="data.yaml"):
    return [(name, "\n".join((*lines, "names: [thing]")))]


def named(pictures, file, as_written):
    """One JSON file, in which the picture NAME.jpg is called as_written."""

    def make(root):
        for stem in STEMS:
            draw(root / pictures / f"{stem}.jpg")
        write(root / file, coco([as_written.format(stem) for stem in STEMS]))

    return make


def coco_parts(pictures, file, parts):
    def make(root):
        for part in parts:
            for stem in STEMS:  # the same names in both parts
                draw(root / pictures.format(part) / f"{stem}.jpg")
            write(root / file.format(part), coco([f"{stem}.jpg" for stem in STEMS]))

    return make


def beside(pictures, annotations, content, parts=("",)):
    """A JSON file for each picture."""

    def make(root):
        for part in parts:
            for stem in STEMS:
                draw(root / pictures.format(part) / f"{part}{stem}.jpg")
                write(root / annotations.format(part) / f"{part}{stem}.json", content(f"{part}{stem}.jpg"))

    return make


def listed(pictures, file, content, parts=("",), *others):
    """One file for the pictures of each part; its content is made from their names."""

    def make(root):
        for part in parts:
            for stem in STEMS:
                draw(root / pictures.format(part) / f"{part}{stem}.jpg")
        for part in parts if "{}" in file else ("",):
            its = [f"{name}{stem}.jpg" for name in (parts if "{}" not in file else (part,)) for stem in STEMS]
            write(root / file.format(part), content(its))
        for name, text in others:
            write(root / name, text)

    return make


def csv(dialect):
    return lambda names: table(names, *dialect)


BOTH = ("train", "test")
DESCRIPTIONS = ("class-descriptions-boxable.csv", "/m/01,thing\n/m/02,other\n")
LISTED = "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in STEMS)
LAYOUTS = {
    "xml: LabelImg, beside the picture": (voc(".", "."), []),
    "xml: cameras write .JPG": (voc(".", ".", ".JPG"), []),
    "xml: TensorFlow tutorials": (voc("images/{}", "images/{}", parts=("train", "test")), ["test", "train"]),
    "xml: Roboflow": (voc("{}", "{}", parts=("train", "valid", "test")), ["test", "train", "valid"]),
    "xml: Label Studio": (voc("images", "Annotations"), []),
    "xml: Kaggle": (voc("images", "annotations"), []),
    "xml: kangaroo": (voc("images", "annots"), []),
    "xml: Oxford pets": (voc("images", "annotations/xmls"), []),
    "xml: FiftyOne": (voc("data", "labels"), []),
    "xml: two folders in each part": (voc("{}/image", "{}/annotation", parts=("train", "val")), ["train", "val"]),
    "yolo: Ultralytics": (
        yolo(
            "images/{}2017",
            "labels/{}2017",
            ("train", "val"),
            described("train: images/train2017", "val: images/val2017"),
        ),
        ["train", "val"],
    ),
    "yolo: Roboflow": (
        yolo("{}/images", "{}/labels", ("train", "valid"), described("train: ../train/images", "val: ../valid/images")),
        ["train", "val"],
    ),
    "yolo: another name of the YAML file": (
        yolo(
            "images/{}",
            "labels/{}",
            ("train", "val"),
            described("path: .", "train: images/train", "val: images/val", name="my set.yaml"),
        ),
        ["train", "val"],
    ),
    "yolo: Images and Labels": (yolo("Images", "Labels", files=described("train: Images")), ["train"]),
    "yolo: a list file": (
        yolo(
            "images",
            "labels",
            files=[("all.txt", "".join(f"./images/{stem}.jpg\n" for stem in STEMS)), *described("train: all.txt")],
        ),
        ["train"],
    ),
    "yolo: names in a dict of texts, in another order": (
        yolo("images", "labels", files=[("data.yaml", "train: images\nnames: {'1': other, '0': thing}")]),
        ["train"],
    ),
    "yolo: LabelImg": (yolo(".", ".", files=[("classes.txt", "thing\n")]), []),
    "yolo: CVAT, for Ultralytics": (
        yolo(
            "images/train",
            "labels/train",
            files=[
                *described("path: .", "train: train.txt"),
                ("train.txt", "".join(f"data/images/train/{stem}.jpg\n" for stem in STEMS)),
            ],
        ),
        ["train"],
    ),
    "yolo: a list of another machine": (
        yolo(
            "images",
            "labels",
            files=[
                *described("train: C:\\data\\my\\all.txt"),
                ("my/all.txt", "".join(f"C:\\data\\my\\images\\{stem}.jpg\r\n" for stem in STEMS)),
            ],
        ),
        ["train"],
    ),
    "yolo: Roboflow, of Colab, without the test split": (
        yolo(
            "{}/images",
            "{}/labels",
            ("train", "valid"),
            described("train: /content/set-2/train/images", "val: set-2/valid/images", "test: ../test/images"),
        ),
        ["train", "val"],
    ),
    "yolo: the YAML file of Ultralytics beside the folder": (
        yolo(
            "coco128/images/{}2017",
            "coco128/labels/{}2017",
            ("train", "val"),
            described("path: ../datasets/coco128", "train: images/train2017", "val: images/val2017"),
        ),
        ["train", "val"],
    ),
    "yolo: makesense.ai": (yolo(".", ".", files=[("labels.txt", "thing")]), []),
    "yolo: Label Studio": (
        yolo(
            "images",
            "labels",
            files=[
                ("classes.txt", "thing\n"),
                ("notes.json", '{"categories": [{"id": 0, "name": "thing"}], "info": {}}'),
            ],
        ),
        [],
    ),
    "yolo: CVAT": (
        yolo(
            "obj_train_data",
            "obj_train_data",
            files=[
                ("obj.names", "thing\n"),
                ("obj.data", "classes = 1\ntrain = data/train.txt\n"),
                ("train.txt", LISTED),
            ],
        ),
        ["train"],
    ),
    "yolo: Roboflow, for darknet": (
        yolo("{}", "{}", ("train", "valid"), [(f"{part}/_darknet.labels", "thing") for part in ("train", "valid")]),
        ["train", "valid"],
    ),
    "coco: as downloaded": (
        coco_parts("{}", "annotations/instances_{}.json", ("train2017", "val2017")),
        ["train2017", "val2017"],
    ),
    "coco: Roboflow": (coco_parts("{}", "{}/_annotations.coco.json", ("train", "valid")), ["train", "valid"]),
    "coco: Label Studio on Windows": (named("images", "result.json", "images\\{}.jpg"), []),
    "coco: Label Studio, uploads": (
        named("images", "result.json", "..\\..\\label-studio\\media\\upload\\4\\{}.jpg"),
        [],
    ),
    "coco: of another machine": (named("images", "labels.json", "/home/user/set/images/{}.jpg"), []),
    "coco: FiftyOne": (named("data", "labels.json", "{}.jpg"), []),
    "coco: without suffix": (named("images", "result.json", "{}"), []),
    "coco: another case": (named("images", "result.json", "{}.JPG"), []),
    "labelme: beside the pictures": (beside(".", ".", labelme), []),
    "labelme: in a folder of their own, labelled on Windows": (
        beside("imgs", "annotations", lambda name: labelme(f"..\\imgs\\{name}")),
        [],
    ),
    "labelme: in parts": (beside("{}", "{}", labelme, BOTH), ["test", "train"]),
    "via: an export": (listed(".", "via_region_data.json", via), []),
    "via: a project": (listed("images", "annotations/my project.json", via_project), []),
    "via: Matterport's balloons": (listed("{}", "{}/via_region_data.json", via, BOTH), ["test", "train"]),
    "label studio: uploaded pictures under their own names": (
        listed("images", "annotations/project-1-at.json", lambda names: label_studio(map(upload, names))),
        [],
    ),
    "label studio: a local storage": (
        listed(
            "my pictures",
            "export.json",
            lambda names: label_studio([f"/data/local-files/?d=my%20pictures/{n.replace('#', '%23')}" for n in names]),
        ),
        [],
    ),
    "label studio: JSON-MIN, parts as folders": (
        listed("{}", "export.json", lambda names: label_studio_min([f"s3://bucket/{name}" for name in names]), BOTH),
        ["test", "train"],
    ),
    "cvat: a task": (listed("images", "annotations.xml", cvat), []),
    "cvat: files of two tasks": (listed("images", "{} task.xml", cvat, BOTH), ["test", "train"]),
    "csv: TensorFlow tutorials": (
        listed("images/{}", "images/{}_labels.csv", csv(XML_TO_CSV), BOTH),
        ["test", "train"],
    ),
    "csv: Roboflow, for TensorFlow": (listed("{}", "{}/_annotations.csv", csv(XML_TO_CSV), BOTH), ["test", "train"]),
    "csv: keras-retinanet": (
        listed("images", "annotations.csv", csv(KERAS), ("",), ("classes.csv", "other,1\nthing,0\n")),
        [],
    ),
    "csv: DeepForest": (listed("crops", "train.csv", csv(DEEP_FOREST)), ["train"]),
    "csv: makesense.ai": (listed(".", "labels_my-project-name_2024.csv", csv(MAKE_SENSE)), []),
    "csv: makesense.ai, without header": (listed(".", "labels_2021.csv", csv(("", MAKE_SENSE[1]))), []),
    "csv: SKU-110K": (listed("images", "annotations/annotations_{}.csv", csv(SKU), BOTH), ["test", "train"]),
    "csv: boxes in a column": (listed("train", "train.csv", csv(WHEAT)), ["train"]),
    "csv: LISA": (listed("vid0", "allAnnotations.csv", csv(LISA)), []),
    "createml: Roboflow": (listed("{}", "{}/_annotations.createml.json", createml, BOTH), ["test", "train"]),
    "createml: LabelImg": (beside(".", ".", lambda name: createml([name])), []),
    "csv: one file, parts as folders": (listed("{}", "labels.csv", csv(DEEP_FOREST), BOTH), ["test", "train"]),
    "csv: Open Images": (
        listed("{}", "oidv6-{}-annotations-bbox.csv", csv(OPEN_IMAGES), ("train", "validation"), DESCRIPTIONS),
        ["train", "validation"],
    ),
    "csv: Open Images, as FiftyOne downloads it": (
        listed(
            "{}/data", "{}/labels/detections.csv", csv(OPEN_IMAGES), BOTH, ("train/metadata/classes.csv", "/m/01,thing")
        ),
        ["test", "train"],
    ),
    "coco: beside the pictures": (named(".", "my annotations.json", "{}.jpg"), []),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(layout, tmp_path):
    make, splits = LAYOUTS[layout]
    root = tmp_path / "my set"
    make(root)
    assert list_splits(root) == splits
    for split in (None, *splits):
        dataset = open_dataset(root, split)
        parts = 1 if split else max(1, len(splits))
        assert len(dataset) == parts * len(STEMS)
        assert dataset.counts["thing"] == len(dataset)
        assert len(set(dataset.pictures)) == len(dataset)
        assert {path.stem[-1] for path in dataset.pictures} == {stem[-1] for stem in STEMS}
        for truth in dataset.truths:
            assert truth["boxes"].round().tolist() == [list(BOX)]
    if len(splits) > 1:
        each = [set(open_dataset(root, split).pictures) for split in splits]
        assert not set.intersection(*each)


def test_the_file_itself_may_be_the_data(tmp_path):
    LAYOUTS["yolo: another name of the YAML file"][0](tmp_path)
    LAYOUTS["coco: FiftyOne"][0](tmp_path / "coco")
    assert len(open_dataset(tmp_path / "my set.yaml")) == 2 * len(STEMS)
    assert len(open_dataset(tmp_path / "coco" / "labels.json")) == len(STEMS)


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    voc("JPEGImages", "Annotations")(tmp_path)
    write(tmp_path / "sample.json", coco(["a.jpg"]))
    with pytest.raises(ValueError, match=r"two data sets, 4 XML files, such as .* and COCO's sample\.json: name the"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path / "sample.json")) == 1


def test_a_name_that_two_pictures_have_is_refused(tmp_path):
    for folder in ("x", "y"):
        draw(tmp_path / folder / "a.jpg")
    write(tmp_path / "z" / "a.xml", xml("a.jpg"))
    with pytest.raises(
        FileNotFoundError, match=r"a\.xml: two pictures fit the name 'a\.jpg': .*x/a\.jpg and .*y/a\.jpg"
    ):
        open_dataset(tmp_path)


def test_a_missing_folder_of_a_yaml_file_is_named(tmp_path):
    yolo("images", "labels", files=described("train: images", "val: gone"))(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: 'val' names gone, which is not there; looked for"):
        open_dataset(tmp_path)


def test_a_yaml_file_of_the_working_folder(tmp_path, monkeypatch):
    LAYOUTS["yolo: another name of the YAML file"][0](tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("my set.yaml")) == len(open_dataset(".")) == 2 * len(STEMS)


def test_lists_and_files_of_one_name_are_refused(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        voc("JPEGImages", "Annotations")(tmp_path / year)
        write(tmp_path / year / "ImageSets" / "Main" / "train.txt", "a\n")
        assert len(open_dataset(tmp_path / year, "train")) == 1
    with pytest.raises(ValueError, match=r"two lists of one name, VOC2007/.*/train\.txt and VOC2012/.*/train\.txt"):
        open_dataset(tmp_path)
    (tmp_path / "VOC2012" / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(ValueError, match=r"train\.txt: two XML files have one of its names, VOC2007/.* and VOC2012/"):
        open_dataset(tmp_path, "train")


def test_the_cache_sees_lists_and_folders_that_a_yaml_file_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ssd.data.cache.WORTH_KEEPING", 0)
    monkeypatch.setattr("ssd.data.cache.YOUNG", -9e9)  # the files are new
    here, there = tmp_path / "here", tmp_path / "there"
    yolo("images", "labels")(there)
    listed = "".join(f"{there}/images/{stem}.jpg\n" for stem in STEMS)
    write(there / "all.txt", listed)
    write(here / "data.yaml", f"train: {there}/all.txt\nval: {there}/images\nnames: [thing]")
    assert [len(open_dataset(here, split)) for split in ("train", "val")] == [4, 4]
    assert list((tmp_path / "cache").rglob("*.npz"))
    write(there / "all.txt", listed.partition("\n")[0])
    assert [len(open_dataset(here, split)) for split in ("train", "val")] == [1, 4]
    draw(there / "images" / "new.jpg")
    assert len(open_dataset(here, "val")) == 5
