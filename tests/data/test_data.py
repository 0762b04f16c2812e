"""The same pictures and objects in every format; and what is wrong with a file is said with its name, entry and key."""

import json

import pytest
import torch
from small_datasets import NAMES, as_coco, as_yolo

from ssd.data import COCODataset, VOCDataset, YOLODataset, list_splits, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


LAYOUTS = [
    *((COCODataset, as_coco, layout) for layout in ("coco", "coco2017", "roboflow")),
    *((YOLODataset, as_yolo, layout) for layout in ("yolo", "roboflow", "polygons")),
]


def test_data_of_two_formats_is_an_error(voc, tmp_path):
    as_coco(voc, tmp_path / "coco", "coco")
    with pytest.raises(ValueError, match=r"voc.* is in the format of Pascal VOC and .*coco in that of COCO; write one"):
        open_dataset([voc, tmp_path / "coco"])


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


def test_what_is_no_data_set(tmp_path):
    for path, message in (
        (tmp_path, "no annotated pictures were found; the folder has nothing"),
        (tmp_path / "gone", "gone: no such folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            open_dataset(path)
