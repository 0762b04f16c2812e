"""Data of other formats is named, with what to do."""

import json

import pytest
from annotation_files import draw, write

from ssd.data import FORMATS, open_dataset

FILES = {
    "labels/a.txt": {
        "KITTI": "Car 0.00 0 -1.58 10.00 12.00 34.00 36.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n",
        "DOTA": "imagesource:GoogleEarth\ngsd:0.146\n10 12 34 12 34 36 10 36 small-vehicle 0\n",
        "VisDrone": "10,12,24,24,1,4,0,0\r\n",
        "Pascal": '# Compatible with PASCAL Annotation Version 1.00\nImage filename : "a.png"\n',
        "OIDv4": "Alarm clock 10.0 12.0 34.0 36.0\n",
        "text file of YOLO without names of classes": "0 0.5 0.5 0.2 0.2\n",
    },
    "split/val_gt.txt": {"WIDER FACE": "0--Parade/a.jpg\n1\n10 12 24 24 0 0 0 0 0 0 \n"},
    "train.txt": {"YOLOv4": "a.jpg 10,12,34,36,0 1,2,3,4,1\n"},
    "a.json": {
        "Supervisely": {"size": {}, "objects": [{"geometryType": "rectangle", "classTitle": "a"}]},
        "VoTT": {"name": "a", "securityToken": "b", "assets": {}},
        "BDD100K": [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}],
        "Datumaro": {"info": {}, "categories": {"label": {}}, "items": [{"id": "a", "annotations": []}]},
        "FiftyOne": {"samples": [{"filepath": "a.jpg"}]},
    },
    "a.csv": {
        r"unknown columns \(picture_name, boxes\)": "picture_name,boxes\na.jpg,1 2 3 4\n",
        "CSV file of Label Studio": "annotation_id,image,label,lead_time\n",
        "CSV file of VGG": "filename,file_size,region_shape_attributes\n",
    },
    "metadata.jsonl": {"JSON lines": '{"file_name": "a.jpg"}\n'},
    "voc.tfrecord-00000-of-00005": {"records": ""},
    "a.zip": {"archive": ""},
}


@pytest.mark.parametrize(
    ("file", "what", "content"), [(file, what, content) for file, its in FILES.items() for what, content in its.items()]
)
def test_other_formats(tmp_path, file, what, content):
    draw(tmp_path / "images" / "a.png")
    write(tmp_path / file, content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FileNotFoundError, match=rf"{file} looks like .*{what}.*which is not read: \w+"):
        open_dataset(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"The layouts that are read:\n  Pascal VOC: "):
        open_dataset(tmp_path)


def test_pictures_alone(tmp_path, monkeypatch):
    """First what is there and what to do, then the layouts, one in each line."""
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        open_dataset(".")
    first, *layouts = str(error.value).splitlines()
    assert first == (
        ".: 2 pictures, but no annotations were found (2 .png at the top). Label the objects first "
        "(docs/ten_minutes.md), or find objects without training (ssd detect). The layouts that are read:"
    )
    assert [line.split(":")[0].strip() for line in layouts] == [format.FORMAT for format in FORMATS]


def test_a_folder_without_pictures(tmp_path):
    write(tmp_path / "notes.md", "")
    with pytest.raises(FileNotFoundError, match=r"no annotated pictures were found; the folder has 1 \.md at the top"):
        open_dataset(tmp_path)
