"""`ssd detect --save labels`: what data sets and labelling tools read of it, and what it never replaces."""

import errno
import json
import os
import shutil
from xml.etree import ElementTree

import pytest
import torch
import yaml
from detect_command import contents, detect

from ssd.data import COCODataset, VOCDataset, YOLODataset, open_dataset
from ssd.data.writers import Writer, YoloWriter
from ssd.inference.results import Results

CLASSES = ("circle", "square", "triangle")
KINDS = {"yolo": YOLODataset, "voc": VOCDataset, "coco": COCODataset}
HOW = ["--min-score", "0.1", "--top-k", "9", "--workers", "1"]


def saved(format):
    return [*HOW, "--save", "labels", "--format", format]


def expected(out):
    """Boxes and labels of each picture in detections.json, by the bytes of the picture."""
    content = json.loads((out / "detections.json").read_text())
    found = {}
    for image in content["images"]:
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        with open(image["file_name"], "rb") as file:
            found[file.read()] = boxes, [row["category_id"] for row in rows]
    return found


def assert_same(dataset, out, boxes_in=1.0):
    reference = expected(out)
    assert len(dataset) == len(reference)
    assert dataset.dropped == []
    for picture, truth in zip(dataset.pictures, dataset.truths, strict=True):
        boxes, labels = reference[picture.read_bytes()]
        assert truth["labels"].tolist() == labels
        torch.testing.assert_close(truth["boxes"], boxes, atol=0.011 * boxes_in, rtol=0)  # edges of 0.01, cut


@pytest.mark.parametrize("format", KINDS)
def test_a_data_set_of_ours_reads_the_labels(photos, weights, capsys, format):
    """With pictures of one name in two folders, and one without objects."""
    (photos / "deeper" / "a.png").write_bytes((photos / "b.jpg").read_bytes()[:-1] + b"\0")
    assert detect(".", *saved(format), weights=weights, out="found") == 0
    assert f"labels of 4 pictures: {os.path.join('found', format)}" in capsys.readouterr().out
    assert {path.name for path in (photos / "found").iterdir()} == {"detections.json", ".lock", format}
    dataset = open_dataset(photos / "found" / format, classes=CLASSES)
    assert type(dataset) is KINDS[format]
    assert sum(dataset.counts.values()) == 36
    assert_same(dataset, photos / "found")
    assert {path.name for path in dataset.pictures} == {"a.png", "b.jpg", "a_2.png", "c.PNG"}
    before = contents(photos / "found")
    assert detect(".", "--resume", *HOW, "--no-drawings", weights=weights, out="found") == 0  # finds no new pictures
    assert contents(photos / "found") == before
    assert detect(".", "--resume", *saved(format), weights=weights, out="found") == 2
    assert f"{os.path.join('found', format)}: exists and is not replaced" in capsys.readouterr().err
    assert contents(photos / "found") == before
    shutil.copytree(photos / "found" / format, photos / "named" / "it")
    assert detect("named/it", "--no-drawings", weights=weights, out="again") == 0
    assert len(json.loads((photos / "again" / "detections.json").read_text())["images"]) == 4


def test_yolo_is_laid_out_as_labelling_tools_expect(photos, weights):
    (photos / "classes.png").write_bytes((photos / "a.png").read_bytes())  # whose labels are not in classes.txt
    assert detect(".", *saved("yolo"), weights=weights, out="found") == 0
    root = photos / "found" / "yolo"
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {".ssd_detect"}
    stems = ("a", "b", "c", "classes_1")
    assert files == {
        *("data.yaml", "train.txt", "classes.txt", "labels/classes.txt"),
        *(f"labels/{stem}.txt" for stem in stems),
        *("images/a.png", "images/b.jpg", "images/c.PNG", "images/classes_1.png"),
    }
    for place in ("classes.txt", "labels/classes.txt"):
        assert (root / place).read_text() == "circle\nsquare\ntriangle\n"
    described = yaml.safe_load((root / "data.yaml").read_text())
    assert described == {"train": "train.txt", "names": dict(enumerate(CLASSES))}
    listed = (root / "train.txt").read_text().splitlines()
    assert sorted(listed) == ["./images/a.png", "./images/b.jpg", "./images/c.PNG", "./images/classes_1.png"]
    assert (root / "images" / "a.png").samefile(photos / "a.png")


def test_voc_and_coco_are_laid_out_as_labelling_tools_expect(photos, weights):
    for format in ("voc", "coco"):
        assert detect("a.png", "b.jpg", *saved(format), "--resume", weights=weights, out="found") == 0
    root = ElementTree.parse(photos / "found" / "voc" / "Annotations" / "a.xml").getroot()
    assert (root.findtext("filename"), root.findtext("size/width")) == ("a.png", "300")
    assert len(root.findall("object/bndbox/xmin")) == 9
    assert (photos / "found" / "voc" / "JPEGImages" / "a.png").exists()
    coco = json.loads((photos / "found" / "coco" / "annotations" / "instances_all.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.jpg"]
    assert coco["categories"] == [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    assert {row["iscrowd"] for row in coco["annotations"]} == {0}
    assert all(row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3]) for row in coco["annotations"])


def test_a_picture_without_objects_has_labels_that_say_so(photos, weights):
    nothing = ["--min-score", "0.99"]
    assert detect("a.png", *saved("yolo"), *nothing, weights=weights, out="found") == 0
    assert (photos / "found" / "yolo" / "labels" / "a.txt").read_text() == ""
    assert len(open_dataset(photos / "found" / "yolo")) == 1


@pytest.mark.parametrize("format", KINDS)
def test_a_stopped_run_goes_on_to_the_same_labels(photos, weights, monkeypatch, format):
    """Whether it is stopped before the last picture or while the labels are written."""
    assert detect(".", *saved(format), "--save", "drawings,labels", weights=weights, out="../whole") == 0
    add, place, calls = Results.add, Writer.place, []

    def stop_at(number, function):
        def stopping(*arguments, **named):
            calls.append(number)
            if calls.count(number) == number:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return stopping

    monkeypatch.setattr(Results, "add", stop_at(2, add))
    arguments = [".", *saved(format), "--save", "drawings,labels"]
    assert detect(*arguments, weights=weights, out="../found") == 130
    assert not (photos.parent / "found" / format).exists()
    monkeypatch.setattr(Writer, "place", stop_at(3, place))
    assert detect(*arguments, "--resume", weights=weights, out="../found") == 130
    assert sorted(path.name for path in (photos.parent / "found").iterdir() if path.suffix != ".png") == [
        ".lock",
        "deeper",
        "detections.json",
    ]
    (photos.parent / "found" / f".{format}.123.tmp" / "images").mkdir(parents=True)  # left by a kill
    assert detect(*arguments, "--resume", weights=weights, out="../found") == 0
    whole, found = (
        {path.relative_to(photos.parent / name): text for path, text in contents(photos.parent / name).items()}
        for name in ("whole", "found")
    )
    assert found == whole
    assert not (photos.parent / "found" / f".{format}.123.tmp").exists()


def test_a_full_disk_leaves_no_labels_but_all_detections(photos, weights, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(YoloWriter, "finish", full)
        assert detect(".", *saved("yolo"), weights=weights, out="found") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name for path in (photos / "found").iterdir()} == {"detections.json", ".lock"}
    assert detect(".", *saved("yolo"), "--resume", weights=weights, out="found") == 0
    assert_same(open_dataset(photos / "found" / "yolo"), photos / "found")


def test_a_picture_that_is_gone_before_its_labels_are_written(photos, weights, monkeypatch, capsys):
    finish = Results.finish

    def remove(results):
        done = finish(results)
        (photos / "b.jpg").unlink()
        return done

    monkeypatch.setattr(Results, "finish", remove)
    assert detect(".", *saved("voc"), weights=weights, out="found") == 1
    printed = capsys.readouterr()
    assert "labels of 2 pictures" in printed.out
    assert "b.jpg" in printed.err
    assert len(open_dataset(photos / "found" / "voc")) == 2


def test_a_name_that_cannot_be_written_is_noticed_at_the_start(photos, weights, capsys):
    (photos / "x\ny.png").write_bytes((photos / "a.png").read_bytes())
    assert detect(".", *saved("coco"), weights=weights, out="found") == 2
    assert "the name of the picture has characters that cannot be written; rename it" in capsys.readouterr().err
    assert not (photos / "found").exists()


@pytest.mark.parametrize("save", ["drawings,labels", "drawings,crops"])
def test_drawings_never_are_in_the_folder_of_other_results(photos, weights, capsys, save):
    """A folder of the pictures may have the name of this folder, in capital letters too."""
    name = "Coco" if "labels" in save else "Crops"
    (photos / name).mkdir()
    shutil.copy(next(photos.glob("*.png")), photos / name / "a.png")
    how = [*HOW, "--save", save, *(["--format", "coco"] if "labels" in save else [])]
    assert detect(".", *how, weights=weights, out="found") == 2
    message = capsys.readouterr().err
    assert f"found/{name.lower()}: the drawing found/{name}/a.png would be in this folder" in message
    assert not (photos / "found").exists()
    assert detect(name, *how, weights=weights, out="found") == 0  # the drawing is found/a.png
