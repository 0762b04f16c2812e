"""The report: its numbers, its pictures, and that nothing in the data can run as a script."""

from __future__ import annotations

import base64
import json
import math
import re
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from evaluation_inputs import NOTHING, needs_coco, random_images
from PIL import Image
from report_pages import (
    EVIL,
    NAMES,
    PICTURE,
    RATIO,
    Page,
    assert_needs_no_other_file,
    assert_nothing_runs,
    in_browser,
    needs_browser,
    write_data,
)

from ssd.data import BoxDataset, open_dataset
from ssd.data.shapes import write_shapes
from ssd.evaluation import mistakes
from ssd.evaluation import report as report_module
from ssd.evaluation.evaluate import score, score_found
from ssd.evaluation.matching import KINDS, match
from ssd.evaluation.report import SHOWN_PICTURES, Origin, check_report, write_report
from ssd.evaluation.uncertainty import interval
from ssd.inference.selection import read_thresholds
from ssd_ext import DetectionOptions

ORIGIN = Origin(f"ssd eval '{EVIL}' --report out.html", [EVIL], "split test", "best.pt", DetectionOptions())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> BoxDataset:
    return write_data(tmp_path_factory.mktemp("data"))


def report(path: Path, dataset: BoxDataset, method: str = "area", seed: int = 0) -> tuple[Page, dict]:
    """Writes a report on random detections, and reads both of its files."""
    detections, targets = random_images(seed)
    result = score_found(detections, targets, dataset, NAMES, method=method)
    write_report(path, result, detections, targets, dataset, NAMES, ORIGIN)
    return Page(path.read_text("utf-8")), json.loads(path.with_suffix(".json").read_text("utf-8"))


@pytest.fixture(scope="module")
def written(dataset: BoxDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "out.html"
    report(path, dataset)
    return path


def test_numbers(written: Path) -> None:
    numbers = json.loads(written.with_suffix(".json").read_text("utf-8"))
    detections, targets = random_images(0)
    result, matches = score(detections, targets, NAMES), match(detections, targets, 5)
    assert list(numbers) == [
        *("made_by", "date", "command", "data", "part", "source", "options", "versions", "n_pictures", "n_objects"),
        *(
            "n_detections",
            "method",
            "metric",
            "mAP",
            "mAP_interval",
            "iou",
            "coco",
            "coco_options",
            "best",
            "classes",
            "errors",
            "confusion",
            "sizes",
        ),
        *("calibration", "pictures"),
    ]
    assert numbers["mAP"] == result.mAP
    assert tuple(numbers["mAP_interval"]) == interval(result)
    assert (numbers["method"], numbers["metric"], numbers["iou"]) == ("area", "mAP@0.5", 0.5)
    assert [row["name"] for row in numbers["classes"]] == list(NAMES)
    assert [row["ap"] for row in numbers["classes"]] == [*list(result.ap.values())[:3], None]  # NaN becomes null
    assert [row["n_objects"] for row in numbers["classes"]] == list(result.n_truths.values())
    assert numbers["n_objects"] == sum(result.n_truths.values())
    assert (numbers["n_pictures"], numbers["n_detections"]) == (8, sum(result.n_detections.values()))
    min_score, mean_f1 = mistakes.best_of_all(matches)
    assert numbers["best"] == {"min_score": min_score, "mean_f1": mean_f1}
    best = mistakes.best_of_classes(matches)[0]
    assert [numbers["classes"][0][key] for key in ("min_score", "precision", "recall", "f1")] == list(best)
    counts, costs = mistakes.count_errors(matches, min_score), mistakes.error_costs(matches)
    assert numbers["errors"] == [{"kind": k, "count": counts[k], "mAP_cost": costs[k]} for k in KINDS]
    assert numbers["confusion"]["labels"] == ["background", *NAMES]
    assert numbers["confusion"]["counts"] == mistakes.confusion(matches, min_score).tolist()
    assert [row["name"] for row in numbers["sizes"]] == ["small", "medium", "large"]
    assert numbers["sizes"][2]["high"] is None  # there is no limit
    assert sum(row["count"] for row in numbers["calibration"]["bins"]) > 50
    assert numbers["command"] == ORIGIN.command


def test_the_page_shows_the_numbers(written: Path) -> None:
    page, numbers = Page(written.read_text("utf-8")), json.loads(written.with_suffix(".json").read_text("utf-8"))
    assert page.all("div", "value")[0][1] == f"{numbers['mAP']:.3f}"
    low, high = numbers["mAP_interval"]
    assert page.all("div", "under")[0][1].startswith(f"{low:.3f} to {high:.3f} on other pictures like these")
    copied = [attributes["data-copy"] for attributes, _ in page.all("button", "copy")]
    thresholds = [f"--min-score {row['min_score']}" for row in numbers["classes"][:3]]
    assert copied == [f"--min-score {numbers['best']['min_score']}", numbers["command"], *thresholds]
    assert [attributes["data-value"] for attributes, _ in page.all("th", "name")] == [
        *NAMES[:3],
        NAMES[3].replace("\u2028", "\\u2028"),  # no printable character
    ]
    assert len(page.all("polyline", "line")) == 3  # a curve of each class with objects
    assert {text for _, text in page.all("th")} >= {*KINDS, "small", "medium", "large", "no object"}
    cells = [text for attributes, text in page.all("td") if "--share" in (attributes.get("style") or "")]
    counts = np.array(numbers["confusion"]["counts"])
    assert [int(cell) for cell in cells] == np.roll(counts, -1, (0, 1)).ravel()[:-1].tolist()
    assert len(page.all("rect", "column")) == sum(row["count"] > 0 for row in numbers["calibration"]["bins"])


def test_its_json_has_the_thresholds_of_ssd_detect(written: Path) -> None:
    rows = json.loads(written.with_suffix(".json").read_text("utf-8"))["classes"]
    best = {row["name"]: row["min_score"] for row in rows}
    known = {name: score for name, score in best.items() if score is not None}
    assert read_thresholds(written.with_suffix(".json")) == known
    assert 0 < len(known) < len(best)


def test_the_worst_pictures(written: Path, dataset: BoxDataset) -> None:
    page, numbers = Page(written.read_text("utf-8")), json.loads(written.with_suffix(".json").read_text("utf-8"))
    detections, targets = random_images(0)
    matches = match(detections, targets, 5)
    min_score = numbers["best"]["min_score"]
    without_hit, wrong = mistakes.count_by_picture(matches, min_score)
    errors = (matches.outcomes >= 0) & (matches.scores > min_score)
    highest = [max(matches.scores[errors & (matches.pictures == i)], default=0) for i in range(8)]
    missed = mistakes.missed_objects(matches, min_score)
    n_missed = [missed[matches.truth_pictures == i].sum() for i in range(8)]
    worst = [i for i in sorted(range(8), key=lambda i: (-highest[i], -n_missed[i])) if without_hit[i] + wrong[i]]
    assert len(worst) > 4
    assert highest[worst[-1]] == 0 < n_missed[worst[-1]]  # pictures whose objects were only missed come last
    rows = numbers["pictures"]
    assert [row["file"] for row in rows] == [str(dataset.pictures[i]) for i in worst]
    assert [(row["without_hit"], row["wrong"]) for row in rows] == [(without_hit[i], wrong[i]) for i in worst]
    assert all(row["shown"] and row["tile"] is None for row in rows)
    assert [text for _, text in page.all("span", "file")] == [f"{PICTURE[0]}/{i}{PICTURE[1]}" for i in worst]
    images = page.all("image")
    assert len(images) == len(worst) == len(page.all("svg", "picture"))
    for (attributes, _), i in zip(images, worst, strict=True):
        data = base64.b64decode((attributes["href"] or "").removeprefix("data:image/jpeg;base64,"))
        with Image.open(BytesIO(data)) as picture, Image.open(dataset.pictures[i]) as original:
            assert (picture.format, picture.size) == ("JPEG", (480, 480 // RATIO))
            difference = np.asarray(picture, float) - np.asarray(original.resize(picture.size), float)
            assert abs(difference).mean() < 5  # of 255: JPEG, and two ways to resize edges; another picture has 80
    kept = (matches.scores > numbers["best"]["min_score"]) & np.isin(matches.pictures, worst)
    boxes = [attributes for kind in ("hit", "error") for attributes, _ in page.all("g", kind)]
    kinds = sorted(int(box["data-kind"] or 0) for box in boxes)
    assert kinds == sorted(matches.outcomes[kept].tolist())
    assert len(page.all("g", "truth")) == np.isin(matches.truth_pictures, worst).sum()
    assert len(page.all("g", "missed")) == mistakes.missed_objects(matches, numbers["best"]["min_score"]).sum()


def test_objects_and_detections_are_listed(tmp_path: Path) -> None:
    """With the position of each object in its annotation file, so that a label can be found and corrected."""
    root = write_shapes(tmp_path / "shapes", 6, 0, (320, 240))
    data = open_dataset(root, "train")
    truths = list(data.truths)
    crowded = max(range(6), key=lambda i: len(truths[i]["labels"]))
    truth = truths[crowded]
    other = truth["labels"][0].item() % len(data.classes) + 1
    detections = [(each["boxes"], each["labels"], torch.full((len(each["labels"]),), 0.7)) for each in truths]
    sliver = truth["boxes"][:1].clone()
    sliver[:, 2] = sliver[:, 0] + (sliver[:, 2] - sliver[:, 0]) / 20  # IoU 0.05: it is a part of the background
    labels = torch.cat([truth["labels"][1:], torch.tensor([other]), truth["labels"][:1]])
    scores = torch.tensor([0.6] * (len(labels) - 2) + [0.9, 0.8])
    detections[crowded] = torch.cat([truth["boxes"][1:], truth["boxes"][:1], sliver]), labels, scores
    result = score(detections, truths, data.classes)
    write_report(tmp_path / "out.html", result, detections, truths, data, data.classes, ORIGIN, in_pixels=True)
    (row,) = json.loads((tmp_path / "out.json").read_text())["pictures"]
    assert row["file"] == str(data.pictures[crowded])
    kinds = [each["kind"] for each in row["detections"]]
    assert kinds == ["wrong class", "background", *["hit"] * (len(labels) - 2)]
    assert [each["object"] for each in row["detections"]] == [0, None, *range(1, len(truth["labels"]))]
    assert row["detections"][0]["class"] == data.classes[other - 1]
    assert [each["score"] for each in row["detections"]][:2] == [pytest.approx(0.9), pytest.approx(0.8)]
    assert row["detections"][1]["box"] == pytest.approx(sliver[0].tolist(), abs=0.01)
    assert not any(each["missed"] for each in row["objects"])
    nodes = ElementTree.parse(row["annotation"]).getroot().findall("object")
    assert len(nodes) == len(row["objects"]) > 1
    for each in reversed(row["objects"]):
        node = nodes[each["index"]]
        assert node.findtext("name") == each["class"]
        edges = [float(node.findtext(f"bndbox/{edge}") or 0) for edge in ("xmin", "ymin", "xmax", "ymax")]
        assert each["box"] == pytest.approx([edges[0] - 1, edges[1] - 1, *edges[2:]], abs=0.01)


def test_numbers_that_are_not_finite_are_null(dataset: BoxDataset, tmp_path: Path) -> None:
    boxes = torch.tensor([[math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, 0.5, 0.5]])
    detections = [(boxes, torch.tensor([1, 1, 1]), torch.tensor([0.9, 0.8, math.nan]))] * 8
    targets = [{"boxes": torch.tensor([[0.6, 0.6, 1, 1]]), "labels": torch.tensor([1])}] * 8
    result = score(detections, targets, NAMES)
    write_report(tmp_path / "out.html", result, detections, targets, dataset, NAMES, ORIGIN)
    (found, *_) = (row["detections"] for row in json.loads((tmp_path / "out.json").read_text())["pictures"])
    assert [each["box"] for each in found] == [None, None, [0, 0, 400, 200]]
    assert [each["score"] for each in found] == [pytest.approx(0.9), pytest.approx(0.8), None]


def test_confident_errors_come_first_and_missed_objects_have_places(
    dataset: BoxDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = dataset.part([0] * 100)
    box, one = torch.tensor([[0.1, 0.1, 0.5, 0.5]]), torch.tensor([1])
    detections, targets = [], []
    for i in range(100):
        missed = i >= 80  # in the others, one detection is wrong and one is a hit
        places = torch.cat([box, box + 0.45])
        scores = torch.tensor([0.99, 0.5 + i / 1000])
        detections.append(NOTHING if missed else (places, torch.tensor([1, 1]), scores))
        targets.append({"boxes": box.repeat(i - 70 if missed else 1, 1), "labels": one.repeat(i - 70 if missed else 1)})
    path = tmp_path / "out.html"
    monkeypatch.setattr(mistakes, "best_of_all", lambda matches: (0.4, 0.5))
    write_report(path, score(detections, targets, NAMES), detections, targets, many, NAMES, ORIGIN)
    rows = json.loads(path.with_suffix(".json").read_text())["pictures"]
    assert [row["shown"] for row in rows] == [True] * 40 + [False] * 60
    assert [row["detections"][1]["score"] for row in rows[:30]] == pytest.approx([0.579 - i / 1000 for i in range(30)])
    assert [row["without_hit"] for row in rows[30:40]] == list(range(29, 19, -1))
    assert [len(row["detections"]) for row in rows[40:]] == [2] * 50 + [0] * 10
    assert rows[0]["objects"][0]["index"] is None  # the targets are not those of the data set
    monkeypatch.setattr(report_module, "LISTED_BOXES", 12)
    write_report(path, score(detections, targets, NAMES), detections, targets, many, NAMES, ORIGIN)
    assert json.loads(path.with_suffix(".json").read_text())["pictures"] == rows[:4]  # of 3 boxes each


def test_boxes_are_where_they_belong(dataset: BoxDataset, tmp_path: Path) -> None:
    targets = [{"boxes": torch.tensor([[200.0, 100, 400, 300]]), "labels": torch.tensor([1])}] * 8
    detections = [(torch.tensor([[-80.0, 0, 80, 40]]), torch.tensor([2]), torch.tensor([0.7]))] * 8
    result = score(detections, targets, NAMES)
    write_report(tmp_path / "out.html", result, detections, targets, dataset, NAMES, ORIGIN, in_pixels=True)
    rectangles = Page((tmp_path / "out.html").read_text("utf-8")).all("rect", "halo")
    drawn = [[float(r[key] or 0) for key in ("x", "y", "width", "height")] for r, _ in rectangles]
    assert drawn == [[120, 60, 120, 120], [0, 0, 48, 24]] * 8  # the picture of 800 x 400 is drawn with 480 x 240


def test_nothing_of_the_data_runs(written: Path) -> None:
    page = assert_nothing_runs(written.read_text("utf-8"))
    assert "49" not in [text for _, text in page.all("th")]  # the braces of a class name are no expression
    numbers = json.loads(written.with_suffix(".json").read_text("utf-8"))
    assert numbers.pop("pictures")
    assert json.loads(page.all("script")[0][1]) == numbers


def test_the_page_needs_no_other_file(written: Path) -> None:
    assert_needs_no_other_file(written.read_text("utf-8"))


def test_the_size_is_bounded(dataset: BoxDataset, tmp_path: Path) -> None:
    """Also with 80 classes, 60 pictures and many detections."""
    names = [f"class {i}" for i in range(80)]
    rng = np.random.default_rng(0)
    many = dataset.part([i % 8 for i in range(60)])
    detections, targets = [], []
    for _ in range(60):
        corner = torch.from_numpy(rng.uniform(0, 0.8, (200, 2))).float()
        boxes = torch.cat([corner, corner + 0.1], 1)
        labels = torch.from_numpy(rng.integers(1, 81, 200))
        detections.append((boxes, labels, torch.from_numpy(rng.random(200)).float()))
        targets.append({"boxes": boxes[:50], "labels": labels[:50]})
    path = tmp_path / "out.html"
    write_report(path, score(detections, targets, names), detections, targets, many, names, ORIGIN)
    page = Page(path.read_text("utf-8"))
    assert len(page.all("image")) == 40
    assert len(page.all("g", "hit")) + len(page.all("g", "error")) <= 40 * 100
    assert not page.all("table", "matrix")
    assert path.stat().st_size < 8e6


@needs_coco
def test_metric_of_coco(dataset: BoxDataset, tmp_path: Path) -> None:
    page, numbers = report(tmp_path / "out.html", dataset, "coco")
    assert page.all("polyline") == report(tmp_path / "voc.html", dataset)[0].all("polyline")
    voc = score(*random_images(0), NAMES)
    coco = score_found(*random_images(0), dataset, NAMES, method="coco")
    assert (numbers["mAP"], numbers["metric"]) == (coco.mAP, "mAP@0.5:0.95")
    assert numbers["coco"]["AP50"] == coco.figures["AP50"]
    assert numbers["iou"] == 0.5
    assert numbers["classes"][0]["ap"] == coco.ap[NAMES[0]] != voc.ap[NAMES[0]]
    assert [row["mAP_cost"] for row in numbers["errors"]] == list(
        mistakes.error_costs(match(*random_images(0), 5)).values()
    )


def test_nothing_found_and_no_objects(dataset: BoxDataset, tmp_path: Path) -> None:
    for targets in (random_images(0)[1], [{"boxes": torch.empty(0, 4), "labels": torch.empty(0)}] * 8):
        detections = [NOTHING] * 8
        result = score(detections, targets, NAMES)
        write_report(tmp_path / "out.html", result, detections, targets, dataset, NAMES, ORIGIN)
        numbers = json.loads((tmp_path / "out.json").read_text())
        assert numbers["best"] == {"min_score": None, "mean_f1": None}
        assert numbers["mAP"] == (None if math.isnan(result.mAP) else 0)
        text = re.sub('base64,[^"]*', "", (tmp_path / "out.html").read_text("utf-8").partition("<body")[2])
        assert "nan" not in text.partition("<script")[0].lower()


def test_a_picture_that_is_gone_has_boxes_only(tmp_path: Path) -> None:
    dataset = write_data(tmp_path / "data")
    worst = report(tmp_path / "out.html", dataset)[1]["pictures"]
    Path(worst[0]["file"]).unlink()
    Path(worst[1]["file"]).write_bytes(b"no picture")
    page, numbers = report(tmp_path / "out.html", dataset)
    assert numbers["pictures"] == worst
    assert len(page.all("svg", "picture")) == len(worst) == len(page.all("image")) + 2


def test_pictures_of_a_set_of_tiles_are_tiles(tmp_path: Path) -> None:
    data = open_dataset(write_shapes(tmp_path / "shapes", 2, 0, (480, 320)), "train").tiled(200)
    targets = [dict(truth) for truth in data.truths]
    nothing = [(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0))] * len(data)
    result = score(nothing, targets, data.classes)
    write_report(tmp_path / "out.html", result, nothing, targets, data, data.classes, ORIGIN, in_pixels=True)
    images = Page((tmp_path / "out.html").read_text("utf-8")).all("image")
    filled = [i for i in range(len(data)) if len(targets[i]["boxes"])]
    assert len(images) == min(len(filled), SHOWN_PICTURES) > 2
    order = sorted(filled, key=lambda i: -len(targets[i]["boxes"]))
    for (attributes, _), i in zip(images, order, strict=False):
        shown = base64.b64decode((attributes["href"] or "").removeprefix("data:image/jpeg;base64,"))
        with Image.open(BytesIO(shown)) as picture:
            tile = data.picture(i).pixels().permute(1, 2, 0).numpy()
            assert picture.size == tile.shape[1::-1]
            assert np.abs(np.asarray(picture, float) - tile).mean() < 8  # JPEG of grainy pictures


def test_paths_are_checked(tmp_path: Path, dataset: BoxDataset) -> None:
    with pytest.raises(ValueError, match=r"out\.txt: the name of a report must end in \.html"):
        check_report(tmp_path / "out.txt")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder, for --report"):
        check_report(tmp_path / "nowhere" / "out.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.html: is a folder"):
        check_report(tmp_path / "folder.html")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(FileExistsError, match=r"results\.json: would be replaced, and is not from ssd eval --report"):
        report(tmp_path / "results.html", dataset)
    assert (tmp_path / "results.json").read_text() == "[]"
    for _ in range(2):  # an older report is replaced
        report(tmp_path / "out.htm", dataset)


def test_a_file_is_whole_or_not_replaced(dataset: BoxDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.html"
    report(path, dataset)
    whole = path.read_bytes()
    write = Path.write_text

    def half(self: Path, text: str, **how: str) -> None:
        write(self, text[:1000] if ".html" in self.name else text, **how)
        if ".html" in self.name:
            raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match=f"{re.escape(str(path))}: disk full"):
        report(path, dataset, seed=1)
    assert path.read_bytes() == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.html", "out.json"]


@needs_browser
def test_the_script_works_in_a_browser(written: Path, tmp_path: Path) -> None:
    page = in_browser(written, tmp_path)
    assert page.all("html")[0][0]["class"] == "scripted"
    assert [text for _, text in page.all("option")] == ["all classes", *NAMES, "all kinds of errors", *KINDS]
    assert len(page.all("script")) == 2
