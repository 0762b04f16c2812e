"""Detections from files: by ids or by names, and what is wrong with an entry is said with its file, place and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation_inputs import all_methods
from PIL import Image

from ssd.cli import main
from ssd.data import open_dataset
from ssd.data.reading import PictureFile
from ssd.evaluation.detection_file import DetectionFile
from ssd.inference.detector import Detections
from ssd.inference.results import as_line, coco_results

IDS = {"a": 30, "b": 10, "c": 20}
TRUTHS = {"a": [(7, [0, 0, 20, 20])], "b": [(2, [5, 5, 30, 10]), (7, [30, 20, 25, 15])], "c": []}
CLASSES = ("cat", "dog")  # categories 2 and 7


def write_coco(root: Path) -> Path:
    """Three pictures with cats and dogs in COCO's JSON."""
    root.mkdir()
    for name in IDS:
        Image.new("RGB", (60, 40)).save(root / f"{name}.png")
    rows = [{"image_id": IDS[name], "category_id": c, "bbox": box} for name, its in TRUTHS.items() for c, box in its]
    content = {
        "images": [{"id": image_id, "file_name": f"{name}.png"} for name, image_id in IDS.items()],
        "annotations": rows,
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    (root / "truth.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "data")


def results() -> list[dict]:
    """A list as COCO has it: all objects but that of the picture a."""
    rows = [(IDS[name], c, box) for name, its in TRUTHS.items() for c, box in its if name != "a"]
    return [{"image_id": i, "category_id": c, "bbox": box, "score": 0.5} for i, c, box in rows]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def read(path: Path, data: Path):
    file = DetectionFile(path)
    return file.detections(open_dataset(data, classes=file.classes))


def test_a_list_goes_by_the_ids_of_the_data(data: Path, tmp_path: Path) -> None:
    a, b, c = read(write(tmp_path / "r.json", results()), data)
    assert [len(rows) for rows in (*a, *c)] == [0] * 6
    boxes, labels, scores = b
    assert boxes.tolist() == [[5, 5, 35, 15], [30, 20, 55, 35]]
    assert labels.tolist() == [1, 2]
    assert scores.tolist() == [0.5, 0.5]
    assert [column.dtype for column in b] == [torch.float64, torch.int64, torch.float64]
    assert all(len(rows) == 0 for image in read(write(tmp_path / "none.json", []), data) for rows in image)


def write_own(out: Path, pictures: list[Path]) -> Path:
    """What `ssd detect` writes of them, by a detector of dogs, cows and cats that finds all but the dog of a."""
    classes = ("dog", "cow", "cat")
    with coco_results(out, classes) as file:
        for path in pictures:
            rows = [row for row in TRUTHS.get(path.stem, []) if path.stem != "a"]
            boxes = torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h) in rows], dtype=torch.float32)
            labels = torch.tensor([{7: 1, 2: 3}[c] for c, _ in rows], dtype=torch.int64)
            scores = torch.full((len(rows),), 0.5)
            file.add(as_line(Detections(PictureFile(path), boxes.reshape(-1, 4), labels, scores, classes)))
    return out / "detections.json"


def test_the_file_of_ssd_detect_goes_by_names(data: Path, tmp_path: Path) -> None:
    path = write_own(tmp_path / "found", [data / f"{name}.png" for name in "cba"])
    assert DetectionFile(path).classes == ("dog", "cow", "cat")
    a, b, c = read(path, data)
    assert [len(a[0]), len(c[0])] == [0, 0]
    assert b[0].tolist() == [[5, 5, 35, 15], [30, 20, 55, 35]]
    assert b[1].tolist() == [3, 1]


def test_pictures_of_one_name_are_told_apart_by_their_folders(data: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "more")
    both = [data / "truth.json", tmp_path / "more" / "truth.json"]
    pictures = [folder / f"{name}.png" for folder in (tmp_path / "more", data) for name in IDS]
    path = write_own(tmp_path / "found", pictures)
    content = json.loads(path.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] <= 3]
    for row in content["images"]:  # as of another machine
        row["file_name"] = row["file_name"].replace(str(tmp_path), "D:\\pictures").replace("/", "\\")
    file = DetectionFile(write(path, content))
    found = file.detections(dataset := open_dataset(both, classes=file.classes))
    assert [len(boxes) for boxes, _, _ in found] == [0, 0, 0, 0, 2, 0]

    content["images"][0]["file_name"] = "a.png"
    with pytest.raises(ValueError, match=r"images\[0\]\['file_name'\] is 'a.png', which may be .*data.* or .*more"):
        DetectionFile(write(path, content)).detections(dataset)
    with pytest.raises(ValueError, match="image_id 30 is in two files of the data"):
        DetectionFile(write(path, results())).detections(dataset)


def test_ids_of_two_files_must_not_differ_in_meaning(data: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "more")
    file = tmp_path / "more" / "truth.json"
    content = json.loads(file.read_text())
    for row in content["images"] + content["annotations"]:
        row["id" if "file_name" in row else "image_id"] += 1
    listed = write(tmp_path / "r.json", results())
    assert [len(boxes) for boxes, _, _ in read(listed, [data, write(file, content)])] == [0, 2, 0, 0, 0, 0]
    content["categories"][0]["name"] = "cow"
    with pytest.raises(ValueError, match=r"more.truth.json: category 7 is 'cow', elsewhere 'dog'"):
        read(listed, [data, write(file, content)])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 11}, r"r.json: \[1\]\['image_id'\] is 11, which is not there"),
        ({"image_id": [30]}, r"\[1\]\['image_id'\] is \[30\], which is not there"),
        ({"category_id": 1}, r"\[1\]\['category_id'\] is 1, which is not there"),
        ({"bbox": [0, 0, -1, 5]}, r"\[1\]\['bbox'\] must be .* not negative, got \[0, 0, -1, 5\]"),
        ({"bbox": [0, 0, 5, -0.5]}, r"\[1\]\['bbox'\] must be "),
        ({"bbox": [0, NAN, 5, 5]}, r"\[1\]\['bbox'\] must be .* finite .* got \[0, nan, 5, 5\]"),
        ({"bbox": [0, 0, INF, 5]}, r"\[1\]\['bbox'\] must be "),
        ({"bbox": [0, 0, 5]}, r"\[1\]\['bbox'\] must be x, y, width and height"),
        ({"bbox": "0 0 5 5"}, r"\[1\]\['bbox'\] must be "),
        ({"score": NAN}, r"\[1\]\['score'\] must be a finite number, got nan"),
        ({"score": "0.5"}, r"\[1\]\['score'\] must be a finite number, got '0.5'"),
        ({"score": 10**400}, r"\[1\]\['score'\] must be a finite number"),
        *[({key: ...}, rf"r.json: \[1\] has no '{key}'") for key in ("image_id", "category_id", "bbox", "score")],
    ],
    ids=str,
)
def test_a_wrong_entry_is_named(change: dict, message: str, data: Path, tmp_path: Path) -> None:
    rows = results()
    rows[1] = {key: value for key, value in {**rows[1], **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "r.json", rows), data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "r.json: broken JSON"),
        ("[1]", r"r.json: \[0\] has no 'image_id'"),
        ("{}", "r.json: no list 'images'"),
        ("7", "r.json: no list 'images'"),
    ],
)
def test_a_file_of_something_else_is_named(content: str, message: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "r.json", data)


def test_a_wrong_entry_of_ssd_detect_is_named(data: Path, tmp_path: Path) -> None:
    path = write_own(tmp_path / "found", [data / f"{name}.png" for name in "abc"])

    def error(edit) -> str:
        content = json.loads(text)
        edit(content)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(write(path, content), data)
        assert str(path) in str(caught.value)
        return str(caught.value)

    text = path.read_text()
    assert "annotations[0]['image_id'] is 9" in error(lambda c: c["annotations"][0].update(image_id=9))
    assert "annotations[1]['category_id'] is 9" in error(lambda c: c["annotations"][1].update(category_id=9))
    assert "annotations[1] has no 'score'" in error(lambda c: c["annotations"][1].pop("score"))
    assert "'x/d.png', which is no picture" in error(lambda c: c["images"][1].update(file_name="x/d.png"))
    assert "images[1]['file_name'] is 'a.png', as is images[0]" in error(
        lambda c: c["images"][1].update(file_name="a.png")
    )
    assert "images[1]['id'] is 1, which another has" in error(lambda c: c["images"][1].update(id=1))
    assert "detections.json: lacks" in (message := error(lambda c: c["images"].pop()))
    assert "c.png" in message


@all_methods
def test_the_command(method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = write(tmp_path / "r.json", results())
    own = write_own(tmp_path / "found", [data / f"{name}.png" for name in "abc"])
    dogs, mean = {  # one of two dogs is found: at half of the recalls, at 6 of 11 points, at 51 of 101
        "area": ("0.5000", "0.7500"),
        "11point": ("0.5455", "0.7727"),
        "coco": ("0.5050", "0.7525"),
    }[method]
    for path in (listed, own):
        curves = tmp_path / f"{path.stem}.png"
        arguments = ["eval", str(data), "--detections", str(path), "--method", method, "--curves", str(curves)]
        assert main(arguments) == 0
        table = capsys.readouterr().out.split("\n\n")[0]
        rows = {line.split()[0]: line.split()[-1] for line in table.splitlines()[1:] if "---" not in line}
        assert rows.pop("cow", "-") == "-"
        assert (rows.pop("cat"), rows.pop("dog"), *rows.values()) == ("1.0000", dogs, mean)
        assert Image.open(curves).format == "PNG"


def test_mistakes_of_the_command_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = str(write(tmp_path / "r.json", results()))

    def error(*arguments) -> str:
        assert main(["eval", str(data), *map(str, arguments)]) == 2
        printed, errors = capsys.readouterr()
        assert printed == ""
        return errors

    for wrong in ([], ["--weights", "w", "--detections", "d"]):
        with pytest.raises(SystemExit) as stop:
            main(["eval", str(data), *wrong])
        assert stop.value.code == 2
        assert "--detections" in capsys.readouterr().err
    assert "nowhere.json: no such file" in error("--detections", tmp_path / "nowhere.json")
    assert "r.json: has its detections; leave out --min-score" in error("--detections", listed, "--min-score", 0.1)
    assert "--iou is not for --method coco" in error("--detections", listed, "--method", "coco", "--iou", 0.5)
    assert "iou_threshold must be in (0, 1], got 7" in error("--detections", listed, "--iou", 7)
    assert "no such folder" in error("--detections", listed, "--curves", tmp_path / "nowhere" / "c.png")
    own = write_own(tmp_path / "found", [data / f"{name}.png" for name in "abc"])
    content = json.loads(own.read_text())
    content["categories"][0]["name"] = "bird"
    message = error("--detections", write(own, content))
    assert "detections.json: its classes are not those of the data" in message
    assert "unknown class 'dog'; the classes are ('bird', 'cow', 'cat')" in message


def test_a_list_needs_ids(data: Path, tmp_path: Path) -> None:
    for folder, file in (("images", "a.png"), ("labels", "a.txt")):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
        (tmp_path / "yolo" / folder / file).write_bytes((data / file).read_bytes() if folder == "images" else b"")
    (tmp_path / "yolo" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"r.json: is a list, whose ids are of data in COCO's JSON, not a YOLODataset"):
        read(write(tmp_path / "r.json", results()), tmp_path / "yolo")
