"""The same pictures and objects in every format; and what is wrong with a file is said with its name, entry and key."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_datasets import add_picture, add_split

from ssd.data import COCODataset, VOCDataset, YOLODataset, list_splits, open_dataset
from ssd.data import prior_fit as fit

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("dog", "cat", "apple tree")  # not in the order of the alphabet
PICTURES = {  # split -> picture -> objects (class, xmin, ymin, xmax, ymax) as VOC writes them
    "train": {"a": [("dog", 1, 1, 30, 40), ("cat", 11, 5, 20, 30)], "b": [], "c": [("apple tree", 21, 11, 60, 20)]},
    "val": {"d": [("cat", 1, 21, 40, 40)]},
}
WIDTH, HEIGHT = 60, 40


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    for split, pictures in PICTURES.items():
        for name, objects in pictures.items():
            add_picture(root, name, objects, size=(WIDTH, HEIGHT))
        add_split(root, split, *pictures)
    return root


def coco_content(pictures):
    """COCO's numbers: ids that begin anywhere, categories in another order than their ids."""
    ids = {name: 100 + 7 * i for i, name in enumerate(pictures)}
    categories = [{"id": 3 * i + 5, "name": name} for i, name in enumerate(NAMES)]
    by_name = {row["name"]: row["id"] for row in categories}
    annotations = [
        {"image_id": ids[name], "category_id": by_name[label], "bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]}
        for name, objects in pictures.items()
        for label, x0, y0, x1, y1 in objects
    ]
    images = [{"id": ids[name], "file_name": f"{name}.jpg"} for name in pictures]
    return {"images": images, "annotations": annotations[::-1], "categories": categories[::-1]}


def as_coco(voc, root, layout):
    for split, pictures in PICTURES.items():
        file, folder = {
            "coco": (f"annotations/instances_{split}.json", f"images/{split}"),
            "coco2017": (f"annotations/instances_{split}.json", split),
            "roboflow": (f"{split}/_annotations.coco.json", split),
        }[layout]
        for path in (root / file, root / folder / "x"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(coco_content(pictures)))
        for name in pictures:
            shutil.copy(voc / "JPEGImages" / f"{name}.jpg", root / folder)
    if layout == "coco":
        (root / "annotations" / "captions_train.json").write_text("{}")


def as_yolo(voc, root, layout):
    for split, pictures in PICTURES.items():
        images, labels = [
            root / (f"{split}/{kind}" if layout == "roboflow" else f"{kind}/{split}") for kind in ("images", "labels")
        ]
        for folder in (images, labels):
            folder.mkdir(parents=True)
        for name, objects in pictures.items():
            shutil.copy(voc / "JPEGImages" / f"{name}.jpg", images)
            lines = []
            for label, x0, y0, x1, y1 in objects:
                edges = (x0 - 1) / WIDTH, (y0 - 1) / HEIGHT, x1 / WIDTH, y1 / HEIGHT
                box = (edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2, edges[2] - edges[0], edges[3] - edges[1]
                if layout == "polygons":
                    box = edges[0], edges[1], edges[2], edges[1], edges[2], edges[3], edges[0], edges[3]
                lines.append(" ".join(map(str, (NAMES.index(label), *box))))
            if objects:  # a picture without any need not have a file
                (labels / f"{name}.txt").write_text("\n".join(lines) + "\n\n")
    names = {"yolo": f"names: {json.dumps(NAMES)}", "roboflow": "names:\n  0: dog\n  1: cat\n  2: apple tree"}
    if layout == "polygons":
        (root / "classes.txt").write_text("\n".join(NAMES))
    else:
        (root / "data.yaml").write_text(f"path: .\ntrain: images/train # pictures\n{names[layout]}\nnc: 3\n")


LAYOUTS = [
    *((COCODataset, as_coco, layout) for layout in ("coco", "coco2017", "roboflow")),
    *((YOLODataset, as_yolo, layout) for layout in ("yolo", "roboflow", "polygons")),
]


@pytest.mark.parametrize(("format", "write", "layout"), LAYOUTS, ids=lambda x: x if isinstance(x, str) else "")
def test_every_format_holds_the_same(voc, tmp_path, format, write, layout):
    write(voc, tmp_path, layout)
    assert list_splits(tmp_path) == ["train", "val"]
    for split in ("train", "val", None):
        ours, reference = open_dataset(tmp_path, split), VOCDataset(voc, split, NAMES)
        assert type(ours) is format
        assert ours.classes == NAMES
        assert ours.counts == reference.counts
        found = {path.stem: target for path, (_, target) in zip(ours.pictures, ours, strict=True)}
        expected = {path.stem: target for path, (_, target) in zip(reference.pictures, reference, strict=True)}
        assert found.keys() == expected.keys()
        for name, target in expected.items():
            order = found[name]["boxes"][:, 0].argsort(stable=True)
            torch.testing.assert_close(found[name]["boxes"][order], target["boxes"], atol=1e-4, rtol=0)
            assert torch.equal(found[name]["labels"][order], target["labels"])


def test_given_classes_map_the_names(voc, tmp_path):
    as_coco(voc, tmp_path, "coco")
    dataset = open_dataset(tmp_path, "val", ("cat", "dog", "apple tree", "bird"))
    assert dataset[0][1]["labels"].tolist() == [1]
    with pytest.raises(ValueError, match=r"instances_val\.json: unknown class 'cat'; the classes are \('dog',\)"):
        open_dataset(tmp_path, "val", ("dog",))


def test_one_file_of_coco_beside_its_pictures(voc, tmp_path):
    as_coco(voc, tmp_path, "roboflow")
    assert len(open_dataset(tmp_path / "train" / "_annotations.coco.json")) == 3
    assert len(open_dataset(tmp_path / "train")) == 3
    assert list_splits(tmp_path / "train") == []


def test_crowds_are_for_evaluation_alone(voc, tmp_path):
    as_coco(voc, tmp_path, "coco")
    file = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"].append(content["annotations"][0] | {"bbox": [0, 0, 10, 10], "iscrowd": 1})
    file.write_text(json.dumps(content))
    assert len(open_dataset(tmp_path, "val")[0][1]["labels"]) == 1
    opened = open_dataset(tmp_path, "val", keep_crowds=True), open_dataset(tmp_path, "val").view(None, keep_crowds=True)
    for dataset in opened:
        target = dataset[0][1]
        assert target["difficult"].tolist() == [False, True]
        assert target["boxes"][1].tolist() == [0, 0, 10, 10]


def test_unusable_boxes_are_dropped(voc, tmp_path):
    (tmp_path / "coco").mkdir()
    as_coco(voc, tmp_path / "coco", "coco")
    file = tmp_path / "coco" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    (row,) = content["annotations"]
    content["annotations"] += [
        row | {"bbox": box} for box in ([1, 1, 0, 5], [60, 1, 5, 5], [-9, 0, 9, 5], [1, 1, 5, -5])
    ]
    file.write_text(json.dumps(content))
    dropped = open_dataset(tmp_path / "coco", "val").dropped
    assert [(entry.path, entry.index) for entry in dropped] == [(file, i) for i in (1, 2, 3, 4)]
    assert [entry.reason.split()[0] for entry in dropped] == ["no", "outside", "outside", "no"]

    (tmp_path / "yolo").mkdir()
    as_yolo(voc, tmp_path / "yolo", "yolo")
    labels = tmp_path / "yolo" / "labels" / "val" / "d.txt"
    labels.write_text("0 nan 0.5 0.1 0.1\n0 1.5 0.5 0.5 0.5\n1 0.9 0.9 0.5 0.5\n")
    dataset = open_dataset(tmp_path / "yolo", "val")
    assert [str(entry).partition("left out: ")[2] for entry in dataset.dropped] == [
        "not finite",
        "outside the picture of 60 x 40",
    ]
    torch.testing.assert_close(dataset[0][1]["boxes"].as_subclass(torch.Tensor), torch.tensor([[39.0, 26, 60, 40]]))


def change(file, edit):
    def damage(root: Path):
        content = json.loads((root / file).read_text())
        edit(content)
        (root / file).write_text(json.dumps(content))

    return damage


VAL = "annotations/instances_val.json"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: (p / VAL).write_text("{"), ValueError, r"instances_val\.json: broken JSON"),
        (lambda p: (p / VAL).write_text("[]"), ValueError, r"instances_val\.json: no list 'images'"),
        (change(VAL, lambda c: c.pop("annotations")), ValueError, "no list 'annotations'"),
        (change(VAL, lambda c: c["images"][0].pop("file_name")), ValueError, r"images\[0\] has no 'file_name'"),
        (change(VAL, lambda c: c["annotations"][0].pop("bbox")), ValueError, r"annotations\[0\] has no 'bbox'"),
        (
            change(VAL, lambda c: c["annotations"][0].update(bbox=[1, 2, 3])),
            ValueError,
            r"must be 4 numbers, got \[1, 2",
        ),
        (
            change(VAL, lambda c: c["annotations"][0].update(image_id=9)),
            ValueError,
            r"\['image_id'\] is 9, which is not",
        ),
        (change(VAL, lambda c: c["annotations"][0].update(category_id=9)), ValueError, r"\['category_id'\] is 9"),
        (
            change(VAL, lambda c: c["images"][0].update(file_name="z.jpg")),
            FileNotFoundError,
            r"no picture 'z\.jpg' in any",
        ),
        (
            change(VAL, lambda c: c["images"][0].update(id=[1])),
            ValueError,
            r"images\[0\]\['id'\] must be a number or a",
        ),
        (change(VAL, lambda c: c["images"][0].update(file_name=1)), ValueError, r"'file_name'\] must be a text, got 1"),
        (change(VAL, lambda c: c["categories"].append(c["categories"][0])), ValueError, r"categories\[3\]\['id'\] is"),
        (lambda p: (p / VAL).unlink(), FileNotFoundError, "no such split 'val'; there are: none"),
    ],
)
def test_errors_of_coco(voc, tmp_path, damage, error, message):
    as_coco(voc, tmp_path, "coco")
    damage(tmp_path)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path, "val")


LABELS = "labels/val/d.txt"


@pytest.mark.parametrize(
    ("file", "text", "error", "message"),
    [
        (LABELS, "0 0.5 0.5 0.1", ValueError, r"d\.txt: line 1 must have 4 numbers, or pairs"),
        (LABELS, "\n0 0.5 0.5 0.1 0.1 0.2", ValueError, "line 2 must have 4 numbers, or pairs of a polygon"),
        (LABELS, "dog 0.5 0.5 0.1 0.1", ValueError, "line 1 is not a class and numbers: 'dog"),
        (LABELS, "3 0.5 0.5 0.1 0.1", ValueError, r"line 1 has the class 3, there are 3: \['dog'"),
        ("data.yaml", "names: [a, b", ValueError, r"data\.yaml: broken YAML"),
        ("data.yaml", "nc: 3", ValueError, r"data\.yaml: 'names' must be a list, or numbered from 0, got None"),
        ("data.yaml", "names: {1: a}", ValueError, "numbered from 0, got {1: 'a'}"),
    ],
)
def test_errors_of_yolo(voc, tmp_path, file, text, error, message):
    as_yolo(voc, tmp_path, "yolo")
    (tmp_path / file).write_text(text)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path, "val")


def test_a_split_that_is_not_there(voc, tmp_path):
    as_yolo(voc, tmp_path, "yolo")
    with pytest.raises(FileNotFoundError, match=r"no such split 'test'; there are: \['train', 'val'\]"):
        open_dataset(tmp_path, "test")


def test_what_is_no_data_set(tmp_path):
    for path, message in ((tmp_path, "holds no data set"), (tmp_path / "gone", "gone: no such folder")):
        with pytest.raises(FileNotFoundError, match=message):
            open_dataset(path)


def test_which_objects_no_prior_fits():
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]])
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.51], [0.4, 0.4, 0.6, 0.49], [0.0, 0.0, 0.01, 0.01]])
    assert fit.without_prior(boxes, priors).tolist() == [False, False, True, True]
    assert fit.without_prior(boxes[:0], priors).shape == (0,)


def test_the_fit_of_a_data_set(voc):
    lines = list(fit.describe_fit(VOCDataset(voc, classes=(*NAMES, "bird"))))
    side = 300 * (40 / 60 * 10 / 40) ** 0.5  # of the apple tree
    assert f"  apple tree: {side:.0f}, {side:.0f} to {side:.0f}" in lines
    assert sum(line.startswith("  tutorial: ") for line in lines) == 1
    assert not any("bird" in line for line in lines)


def test_many_objects_are_a_sample(voc, monkeypatch):
    monkeypatch.setattr(fit, "SAMPLE", 3)
    assert next(iter(fit.describe_fit(VOCDataset(voc)))).startswith("of 3 objects, drawn from ")
