"""`ssd eval`: of weights and of files of detections."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from detection_files import results, write, write_coco, write_own
from evaluation_inputs import all_methods
from PIL import Image

from ssd import SSD300
from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "data")


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
        report = tmp_path / f"{path.stem}_report.html"
        arguments = ["eval", str(data), "--detections", str(path), "--method", method, "--curves", str(curves)]
        arguments += ["--report", str(report)]
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert f"{report}: the report\n" in printed.err
        numbers = json.loads(report.with_suffix(".json").read_text())
        assert f"{numbers['mAP']:.4f}" == mean
        assert numbers["command"] == shlex.join(["ssd", *arguments])
        assert (numbers["data"], numbers["source"], numbers["options"]) == ([str(data)], str(path), {})
        assert [row["file"] for row in numbers["pictures"]] == [str(data / "a.png")]
        assert numbers["errors"][-1]["count"] == 1
        assert 'x="0.0" y="0.0" width="20.0" height="20.0"' in report.read_text("utf-8")  # the dog of a, in pixels
        table = printed.out.split("\n\n")[0]
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
    assert "r.json: the options of detection do not apply to detections in a file; leave out --min-score" in error(
        "--detections", listed, "--min-score", 0.1
    )
    assert "--iou cannot be used with --method coco" in error("--detections", listed, "--method", "coco", "--iou", 0.5)
    assert "iou_threshold must be in (0, 1], got 7" in error("--detections", listed, "--iou", 7)
    assert "no such folder" in error("--detections", listed, "--curves", tmp_path / "nowhere" / "c.png")
    assert "no such folder, for --report" in error("--detections", listed, "--report", tmp_path / "nowhere" / "r.html")
    assert "must end in .html" in error("--detections", tmp_path / "nowhere.json", "--report", tmp_path / "r.txt")
    assert "r.json: would be replaced" in error("--detections", listed, "--report", tmp_path / "r.html")
    own = write_own(tmp_path / "found", [data / f"{name}.png" for name in "abc"])
    content = json.loads(own.read_text())
    content["categories"][0]["name"] = "bird"
    message = error("--detections", write(own, content))
    assert "detections.json: its classes are not those of the data" in message
    assert "unknown class 'dog'; the classes are ('bird', 'cow', 'cat')" in message


def test_classes_that_are_not_those_of_the_data_are_named(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "w.pt", SSD300(3, width=0.01), ["circle", "square"])
    arguments = ["eval", str(shapes), "--weights", str(tmp_path / "w.pt"), "--device", "cpu", "--workers", "0"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "w.pt: its classes are not those of the data: " in message
    assert ".xml: unknown class 'triangle'; the classes are ('circle', 'square')" in message


def test_only_some_classes_are_trained_and_measured(shapes: Path, tmp_path: Path, capsys) -> None:
    narrow = ["--network", "ssd300", "--width", "0.01", "--epochs", "1", "--workers", "0"]
    run = str(tmp_path / "run")
    assert main(["train", str(shapes), "--out", run, "--only", "square,circle", *narrow]) == 0
    assert load_checkpoint(f"{run}/last.pt")["classes"] == ["circle", "square"]
    evaluate = ["eval", str(shapes), "--weights", f"{run}/last.pt", "--workers", "0", "--min-score", "0"]
    capsys.readouterr()
    assert main(evaluate) == 0  # on the data of the run, whose options it has
    rows = rows_of(capsys.readouterr().out)
    assert int(rows["circle"][0]) > 0
    assert int(rows["circle"][1]) > 0
    assert main([*evaluate, "--split", "test"]) == 0
    assert rows_of(capsys.readouterr().out) == rows
    other = str(write_shapes(tmp_path / "other", 2, 1, seed=1))
    assert main(["eval", other, *evaluate[2:]]) == 2
    assert "unknown class 'triangle'; the classes are ('circle', 'square') (--only leaves" in capsys.readouterr().err
    copy = str(shutil.copytree(shapes, tmp_path / "copy"))  # known by the names of its pictures
    assert main(["eval", copy, *evaluate[2:]]) == 0
    assert rows_of(capsys.readouterr().out) == rows
    assert main(["eval", copy, *evaluate[2:], "--split", "test", "--only", "circle,square"]) == 0
    assert rows_of(capsys.readouterr().out) == rows
    assert main([*evaluate, "--split", "test", "--only", "square"]) == 0
    of_squares = rows_of(capsys.readouterr().out)
    assert of_squares["square"] == rows["square"]
    assert of_squares["circle"] == ["0", "0", "-"]
    assert main([*evaluate, "--split", "test", "--only", "triangle"]) == 2
    assert "only: there is no class 'triangle'; the classes are circle, square" in capsys.readouterr().err
    listed = write(tmp_path / "r.json", results())
    data = write_coco(tmp_path / "data")
    detections = ["eval", str(data), "--detections", str(listed)]
    assert main(detections) == 0
    assert main([*detections, "--only", "cat"]) == 0
    all_classes, cats = map(rows_of, capsys.readouterr().out.split("class  ")[1:])
    assert (cats["cat"], "dog" in all_classes, "dog" in cats) == (all_classes["cat"], True, False)


def rows_of(table: str) -> dict[str, list[str]]:
    """The numbers of each class: truths, detections and average precision."""
    return {name: numbers for name, *numbers in map(str.split, table.splitlines()) if len(numbers) == 3}


def test_without_a_split_pictures_of_training_are_not_measured(tmp_path: Path, capsys) -> None:
    """And what is measured is said; with --split, the split that was asked for is measured."""
    folder, run = write_shapes(tmp_path / "data", 6, 2), tmp_path / "run"
    narrow = ["--network", "ssd300", "--width", "0.01", "--epochs", "1"]
    assert main(["train", str(folder), "--out", str(run), *narrow, "--workers", "0"]) == 0
    capsys.readouterr()
    report = tmp_path / "report.html"
    for arguments, n, line, part in (
        ([], 2, "measured on the split test, which was not used for training", "measured on the split test, which was"),
        (["--split", "train"], 6, None, "split train"),
    ):
        arguments += ["--report", str(report), "--top-k", "7"]
        assert main(["eval", str(folder), "--weights", str(run / "best.pt"), "--workers", "0", *arguments]) == 0
        said = capsys.readouterr()
        assert said.err.splitlines()[0].startswith(f"{n} pictures in JPEGImages, with annotations in the format of Pa")
        assert (line in said.err) if line else ("measured" not in said.err)
        numbers = json.loads(report.with_suffix(".json").read_text())
        assert numbers["part"].startswith(part)
        assert numbers["options"] == {"min_score": 0.01, "max_overlap": 0.45, "top_k": 7}
        assert (numbers["n_pictures"], numbers["source"]) == (n, str(run / "best.pt"))
        assert numbers["sizes"][2]["n_objects"] > n  # the shapes are large; in pixels their sides would be below 1/16
        low, high = numbers["mAP_interval"]
        assert f"on other pictures like these {low:.3f} to {high:.3f} (95 % interval); few objects (" in said.err
        table = said.out.splitlines()
        assert table[-1].split()[-1] == f"{numbers['mAP']:.4f}"
        assert report.read_text("utf-8").startswith("<!DOCTYPE html>")
