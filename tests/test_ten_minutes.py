"""The commands and scripts of docs/ten_minutes.md, run in their order on photographs as a phone stores them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from phone_pictures import HEIC, STORED, label, photograph
from PIL import Image

from ssd.cli import main
from ssd.data.shapes import SHAPE_CLASSES, write_shapes

PAGE = (Path(__file__).parents[1] / "docs" / "ten_minutes.md").read_text()
START, LOW = PAGE.split("## When the mAP is low\n")
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# A smaller network and fewer passes than the page has. In the list about a low mAP, nothing is trained again.
SHORTER = {"--minutes 8": "--epochs 2 --network ssdlite --size 224 --width 0.1 --workers 0 --lr 0.01"}
PICTURES = {"train": 12, "test": 6}
pytestmark = pytest.mark.usefixtures("one_thread")


def run(command: str) -> None:
    for text, shorter in SHORTER.items():
        command = command.replace(text, shorter)
    program, *arguments = shlex.split(command, comments=True)
    assert program == "ssd"
    assert main(arguments) == 0, command


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of the page: labelled photographs of 1200 x 900 pixels, stored in all ways, and others without."""
    folder = tmp_path_factory.mktemp("home")
    shapes = write_shapes(folder / "shapes", *PICTURES.values(), (300, 225))
    (folder / "from_phone").mkdir()
    (folder / "from_phone" / "IMG_9.HEIC").write_bytes(HEIC)
    (folder / "photos").mkdir()
    for split in PICTURES:
        (folder / "my_pictures" / split).mkdir(parents=True)
        names = (shapes / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        for i, name in enumerate(names):
            to, orientation = folder / "my_pictures" / split / f"IMG_{name}.jpg", list(STORED)[i % len(STORED)]
            photograph(next((shapes / "JPEGImages").glob(f"{name}.*")), to, orientation, 4)
            label(shapes / "Annotations" / f"{name}.xml", to.with_suffix(".xml"), 4)
            if split == "test":
                (folder / "photos" / to.name).write_bytes(to.read_bytes())
    return folder


def test_the_page_runs_as_it_stands(home, monkeypatch, capsys):
    pytest.importorskip("pi_heif")
    monkeypatch.chdir(home)
    printed = []
    for language, code in BLOCK.findall(START):
        if language == "python":
            exec(compile(code, "ten_minutes.md", "exec"), {})
        elif not language:
            for line in code.splitlines():
                run(line)
        printed.append(capsys.readouterr().out)
    layout, convert, info, train, measure, detect, script = printed  # the blocks of the page
    assert (layout, convert) == ("", "")
    with Image.open("my_pictures/train/IMG_9.jpg") as converted:
        assert converted.size == (64, 96)
        assert converted.getpixel((30, 10))[0] > 150  # orange above blue
    n_pictures = sum(PICTURES.values())
    assert f"{n_pictures} pictures in train and test, with annotations in the format of Pascal VOC beside them" in info
    assert all(name in info for name in SHAPE_CLASSES)
    assert "warning" not in info
    assert "data.html: the report" in info
    assert "epoch 2 of 2: mAP@0.5" in train
    assert "mAP@0.5 (area)" in measure
    report = json.loads(Path("report.json").read_text())
    assert report["n_pictures"] == PICTURES["test"]
    photos = sorted(path.name for path in Path("photos").iterdir())
    assert sorted(row["file_name"] for row in json.loads(Path("found/detections.json").read_text())["images"]) == [
        f"photos/{name}" for name in photos
    ]
    assert len(list(Path("found").glob("*.png"))) == len(photos), detect
    assert [line.split()[0] for line in script.splitlines()] == photos


def test_the_questions_about_a_low_map_can_be_answered(home, monkeypatch, capsys):
    """After the test above, which has trained the network."""
    monkeypatch.chdir(home)
    if not Path("run/best.pt").exists():
        run("ssd train my_pictures --out run --minutes 8")
    commands = [line.strip() for _, code in BLOCK.findall(LOW) for line in code.splitlines()]
    for command in commands:
        if not command.startswith(("ssd train", "ssd demo")):
            run(command)
    assert "fit" in capsys.readouterr().out
    assert json.loads(Path("train.json").read_text())["n_pictures"] == PICTURES["train"]
