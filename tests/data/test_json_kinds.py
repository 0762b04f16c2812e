"""JSON files of several tools are told apart by their beginning."""

import json
import pathlib

import pytest
from annotation_files import createml, draw, label_studio, label_studio_min, labelme, via, via_project, write

from ssd.data import COCODataset, LabelMeDataset, LabelStudioDataset, VIADataset, open_dataset
from ssd.data.folder import Folder
from ssd.data.json_kinds import COCO, CREATEML, LABEL_STUDIO, LABELME, VIA, kinds

pytestmark = pytest.mark.usefixtures("one_thread")
PADDING = [[0.25, 0.5]] * 20_000
CONTENTS = [
    ({"images": [], "annotations": [], "categories": []}, COCO),
    ({"info": {"description": "{[ shapes"}, "licenses": [], "images": []}, COCO),
    (labelme("a.jpg"), LABELME),
    (labelme("a.jpg", []), LABELME),
    (labelme("a.jpg", [{"label": "a", "points": PADDING, "shape_type": "polygon"}]), LABELME),
    (via(["a.jpg"]), VIA),
    (via(["a.jpg"], [{"shape_attributes": {}, "region_attributes": {"categories": "x"}}]), VIA),
    (via_project(["a.jpg"]), VIA),
    (label_studio(["a.jpg"]), LABEL_STUDIO),
    (label_studio(["a.jpg"], []), LABEL_STUDIO),
    (label_studio(["a.jpg"])[0], LABEL_STUDIO),
    (label_studio_min(["a.jpg"]), LABEL_STUDIO),
    ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], ""),
    (createml(["a.jpg"]), CREATEML),
    ({"categories": [], "info": {}}, ""),  # notes.json of Label Studio
    ({"name": "package", "version": "1.0.0", "files": ["shapes"]}, ""),
    ({"learning_rate": 0.1}, ""),
    ("images", ""),
]


@pytest.mark.parametrize(("content", "kind"), CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_kinds(tmp_path, content, kind, encoding):
    (tmp_path / "a.json").write_bytes(json.dumps(content, indent=1).encode(encoding))
    assert kinds(Folder.of(tmp_path)) == {"a.json": kind}


@pytest.mark.parametrize(
    ("content", "format"),
    [(labelme("a.jpg"), LabelMeDataset), (via(["a.jpg"]), VIADataset), (label_studio(["a.jpg"]), LabelStudioDataset)],
)
def test_a_folder_named_annotations_may_have_files_of_any_kind(tmp_path, content, format):
    draw(tmp_path / "images" / "a.jpg")
    write(tmp_path / "annotations" / "a.json", content)
    assert type(open_dataset(tmp_path)) is format
    assert type(open_dataset(tmp_path / "annotations" / "a.json")) is format
    write(tmp_path / "annotations" / "a.json", "{")
    with pytest.raises(ValueError, match=r"a\.json: broken JSON"):  # of COCO, whose folder has this name
        open_dataset(tmp_path)
    assert COCODataset.claim(Folder.of(tmp_path))


def test_two_kinds_in_one_folder_are_refused(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.json", labelme("a.jpg"))
    write(tmp_path / "via.json", via(["a.jpg"]))
    with pytest.raises(
        ValueError, match=r"two data sets, 1 files of LabelMe, such as a\.json and via\.json of VGG Image"
    ):
        open_dataset(tmp_path)


def test_a_file_is_looked_at_only_once(tmp_path, monkeypatch):
    for stem in "abc":
        draw(tmp_path / f"{stem}.jpg")
        write(tmp_path / f"{stem}.json", labelme(f"{stem}.jpg"))
    opened, read = [], []
    real_open, real_read = open, pathlib.Path.read_bytes
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or real_open(path, *a, **k))
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: read.append(path.name) or real_read(path))
    assert len(open_dataset(tmp_path)) == 3
    assert sorted(name[-6:] for name in opened if name.endswith(".json")) == ["a.json", "b.json", "c.json"]
    assert sorted(name for name in read if name.endswith(".json")) == ["a.json", "b.json", "c.json"]
