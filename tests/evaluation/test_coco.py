"""COCO's figures against pycocotools, which has its own code for every step; and the cases worked out by hand."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_inputs import CAT, CLASSES, DOG, GOOD, GOOD_TARGET, NOTHING, found, truth
from PIL import Image

from ssd.cli import main
from ssd.evaluation.coco import FIGURES, CocoOptions, coco_average_precision
from ssd.evaluation.evaluate import evaluate, score

COCO = pytest.importorskip("pycocotools.coco", reason="no pycocotools: pip install 'ssd-ext[dev]'").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
pytest.importorskip("faster_coco_eval", reason="no faster-coco-eval: pip install 'ssd-ext[coco]'")

SMALL, MEDIUM, LARGE = [0, 0, 31, 31], [40, 40, 100, 100], [150, 150, 300, 300]


def pycocotools(content: dict, results: list) -> dict[str, float]:
    """The twelve figures by the reference, from what COCO's files hold."""
    with contextlib.redirect_stdout(io.StringIO()):
        truths = COCO()
        truths.dataset = content
        truths.createIndex()
        evaluation = COCOeval(truths, truths.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES, evaluation.stats.tolist(), strict=True))


def pycocotools_with(content: dict, results: list, max_dets: int, sides: tuple[float, float]) -> dict[str, float]:
    """The same with other limits. `summarize` of the reference assumes 100 detections, so its means are made here."""
    small, large = (side * side for side in sides)
    with contextlib.redirect_stdout(io.StringIO()):
        truths = COCO()
        truths.dataset = content
        truths.createIndex()
        evaluation = COCOeval(truths, truths.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.params.areaRng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # IoU, recall, class, size, maxDets

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean())

    averages = [mean(precision[..., 0, 2]), mean(precision[0, ..., 0, 2]), mean(precision[5, ..., 0, 2])]
    averages += [mean(precision[..., size, 2]) for size in (1, 2, 3)]
    recalls = [mean(recall[..., 0, n]) for n in range(3)] + [mean(recall[..., size, 2]) for size in (1, 2, 3)]
    names = [name.replace("100", str(max_dets)) for name in FIGURES]
    return dict(zip(names, averages + recalls, strict=True))


def random_content(seed: int, n_images: int = 12):
    """COCO's JSON and results: ids in no order, crowds, masks smaller than boxes, many equal scores, class 4 unseen."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(n_images).tolist()
    objects, results = [], []
    for image_id in ids:
        for _ in range(rng.integers(0, 12)):
            size = np.exp(rng.uniform(np.log(8), np.log(200), 2)).round(2)
            corner = rng.uniform(0, 300 - size).round(2)
            category = int(rng.integers(1, 4))
            row = {"image_id": image_id, "category_id": category, "bbox": [*corner.tolist(), *size.tolist()]}
            area = float(size.prod() * rng.uniform(0.4, 1))
            objects.append({**row, "id": len(objects) + 1, "area": area, "iscrowd": int(rng.random() < 0.15)})
            for _ in range(rng.integers(0, 4)):
                box = (np.concatenate([corner, size]) + rng.normal(0, 0.07, 4) * np.tile(size, 2)).round(2)
                guess = category if rng.random() < 0.9 else int(rng.integers(1, 5))
                score = round(float(rng.random()), 1)
                results.append({"image_id": image_id, "category_id": guess, "bbox": box.tolist(), "score": score})
    results = [results[i] for i in rng.permutation(len(results))]
    images = [{"id": image_id, "file_name": f"{image_id}.jpg"} for image_id in ids]
    categories = [{"id": i, "name": str(i)} for i in range(1, 5)]
    return {"images": images, "annotations": objects, "categories": categories}, results


def edges(rows: list) -> torch.Tensor:
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def column(rows: list, key: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([row[key] for row in rows], dtype=dtype)


def columns_of(content: dict, results: list):
    detections, targets = [], []
    for image in content["images"]:
        rows = [row for row in results if row["image_id"] == image["id"]]
        labels = column(rows, "category_id", torch.int64)
        detections.append((edges(rows), labels, column(rows, "score", torch.float64)))
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        targets.append(
            {
                "boxes": edges(rows),
                "labels": column(rows, "category_id", torch.int64),
                "difficult": column(rows, "iscrowd", torch.bool),
                "areas": column(rows, "area", torch.float64),
                "image_id": image["id"],
            }
        )
    return detections, targets


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(seed: int) -> None:
    content, results = random_content(seed)
    result = coco_average_precision(*columns_of(content, results), ["1", "2", "3", "4"])

    assert result.figures == pytest.approx(pycocotools(content, results), abs=1e-12)
    assert all(0 < value < 1 for value in result.figures.values())  # the data decide something
    assert result.mAP == result.figures["AP"] == pytest.approx(np.mean([result.ap[c] for c in "123"]))
    assert math.isnan(result.ap["4"])
    assert result.n_truths["1"] == sum(row["category_id"] == 1 and not row["iscrowd"] for row in content["annotations"])
    assert sum(result.n_detections.values()) == len(results)
    recall, precision = result.curves["1"]
    assert recall.tolist() == pytest.approx([i / 100 for i in range(101)])
    assert (np.diff(precision) <= 0).all()
    assert [len(values) for values in result.curves["4"]] == [0, 0]


@pytest.mark.parametrize(("max_dets", "sides"), [(100, (32, 96)), (11, (32, 96)), (100, (20.5, 60)), (13, (40, 60))])
def test_other_limits_are_those_of_pycocotools(max_dets: int, sides: tuple[float, float]) -> None:
    content, results = random_content(1, n_images=8)
    content["categories"] = content["categories"][:1]  # so that a picture has more than 11 detections of a class
    for row in [*content["annotations"], *results]:
        row["category_id"] = 1
    options = CocoOptions(max_dets, sides)
    result = score(*columns_of(content, results), ["1"], method="coco", coco=options)
    assert result.figures == pytest.approx(pycocotools_with(content, results, max_dets, sides), abs=1e-12)
    assert list(result.figures)[8] == f"AR{max_dets}"
    plain = coco_average_precision(*columns_of(content, results), ["1"])
    assert (result.figures == plain.figures) == (options == CocoOptions())
    assert result.options == options


def test_more_than_100_objects_in_a_picture() -> None:
    boxes = [[20 * (i % 15), 20 * (i // 15), 20 * (i % 15) + 15, 20 * (i // 15) + 15] for i in range(150)]
    all_found = found(*((box, CAT, 0.9 - i / 1000) for i, box in enumerate(boxes)))
    target = truth(*((box, CAT) for box in boxes))
    assert coco([all_found], [target]).mAP == pytest.approx(67 / 101)  # of 101 recalls, those up to 100 / 150
    result = coco_average_precision([all_found], [target], CLASSES, CocoOptions(max_dets=500, size_limits=(8, 16)))
    assert result.mAP == pytest.approx(1)
    assert (result.figures["AR500"], result.figures["APm"]) == pytest.approx((1, 1))
    assert math.isnan(result.figures["APs"])
    last = "at most 500 detections of a class in a picture; small: up to 8 * 8 pixels, large: from 16 * 16 pixels"
    assert str(result).splitlines()[-1] == last
    plain = str(coco([all_found], [target])).splitlines()[-1]
    assert plain.endswith(
        "100 detections of a class in a picture; small: up to 32 * 32 pixels, large: from 96 * 96 pixels"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CocoOptions(10), "max_dets must be a whole number from 11 to 1000000, got 10"),
        (CocoOptions(500.0), r"max_dets must be a whole number from 11 to 1000000, got 500\.0"),
        (
            CocoOptions(size_limits=(96, 32)),
            "size_limits must be two sides in pixels, the smaller one first.* got 96,32",
        ),
        (CocoOptions(size_limits=(32,)), "size_limits must be two sides in pixels, .* got 32"),
        (CocoOptions(size_limits=(0, 32)), "size_limits must be two sides .* got 0,32"),
        (CocoOptions(size_limits=(32, math.nan)), "size_limits must be two sides .* got 32,nan"),
    ],
)
def test_impossible_options_are_named(options: CocoOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_average_precision([GOOD], [GOOD_TARGET], CLASSES, options)


def test_options_of_coco_are_for_its_method() -> None:
    for measure in (
        lambda **more: score([GOOD], [GOOD_TARGET], CLASSES, **more),
        lambda **more: evaluate(None, [], CLASSES, **more),
    ):
        with pytest.raises(
            ValueError, match="coco has options of the method 'coco', and the method is 'area': leave it out"
        ):
            measure(coco=CocoOptions())


def command_on_files(folder: Path, content: dict, results: list) -> list[str]:
    """Writes a data set with its pictures, and detections, and returns the command that measures them."""
    for image in content["images"]:
        Image.new("RGB", (300, 300)).save(folder / image["file_name"])
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(results))
    return ["eval", str(folder / "truth.json"), "--detections", str(folder / "results.json")]


def test_limits_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, results = random_content(5)
    command = command_on_files(tmp_path, content, results)
    limits = ["--max-dets", "12", "--size-limits", "25,70.5"]
    assert main([*command, "--method", "coco", *limits, "--report", str(tmp_path / "r.html")]) == 0
    words = capsys.readouterr().out.split("\n\n")[1].split()
    expected = pycocotools_with(content, results, 12, (25, 70.5))
    assert dict(zip(words[::2], words[1::2], strict=True)) == {name: f"{value:.4f}" for name, value in expected.items()}
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["coco_options"] == {"max_dets": 12, "size_limits": [25, 70.5]}
    assert numbers["coco"] == pytest.approx(expected)
    assert "at most 12 detections of a class in a picture" in (tmp_path / "r.html").read_text()
    assert main([*command, *limits]) == 2
    assert "--max-dets, --size-limits: can only be used with --method coco" in capsys.readouterr().err
    for wrong, says in (
        (["--max-dets", "10"], "argument --max-dets: must be a whole number from 11 to 1000000, got 10"),
        (["--size-limits", "64"], "argument --size-limits: must be two sides in pixels, the smaller one first"),
        (["--size-limits", "a,b"], "argument --size-limits: must be numbers separated by commas, got 'a,b'"),
    ):
        with pytest.raises(SystemExit):
            main([*command, "--method", "coco", *wrong])
        assert says in capsys.readouterr().err


def test_the_command_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, results = random_content(5)
    assert main([*command_on_files(tmp_path, content, results), "--method", "coco"]) == 0
    words = capsys.readouterr().out.split("\n\n")[1].split()
    expected = pycocotools(content, results)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {name: f"{value:.4f}" for name, value in expected.items()}


def coco(detections, targets):
    return coco_average_precision(detections, targets, CLASSES)


def test_sizes_by_area() -> None:
    target = truth((SMALL, CAT), (MEDIUM, CAT), (LARGE, CAT))
    figures = coco([found((SMALL, CAT, 0.9), (LARGE, CAT, 0.8))], [target]).figures
    assert [figures[name] for name in ("ARs", "ARm", "ARl")] == [1, 0, 1]
    assert [figures[name] for name in ("AR1", "AR10")] == pytest.approx([1 / 3, 2 / 3])
    # A mask may be smaller than its box.
    figures = coco([found((SMALL, CAT, 0.9))], [target | {"areas": torch.tensor([961.0, 1000, 1000])}]).figures
    assert figures["ARs"] == pytest.approx(1 / 3)
    assert math.isnan(figures["APm"])
    assert math.isnan(figures["ARl"])


def test_crowds_and_difficult_objects_count_neither_way() -> None:
    target = truth((SMALL, CAT), (LARGE, CAT, True))
    part, other = [150, 150, 200, 200], [160, 250, 220, 290]  # a ninth of the crowd, which IoU would not find
    result = coco([found((SMALL, CAT, 0.5), (part, CAT, 0.9), (other, CAT, 0.8))], [target])
    assert result.figures["AP"] == pytest.approx(1)
    assert result.n_truths == {"cat": 1, "dog": 0}
    assert coco([found((SMALL, CAT, 0.5), (MEDIUM, CAT, 0.9))], [target]).figures["AP"] == pytest.approx(0.5)


def test_nan_scores_come_last_and_boxes_that_are_not_finite_fit_nothing() -> None:
    target = truth((SMALL, CAT))
    nan, inf = math.nan, math.inf
    assert coco([found((MEDIUM, CAT, nan), (SMALL, CAT, 0.1))], [target]).mAP == pytest.approx(1)
    for box in ([nan, 0, 31, 31], [-inf, 0, inf, 31]):
        assert coco([found((box, CAT, 0.9))], [target]).mAP == 0
        assert coco([found((box, CAT, 0.9), (SMALL, CAT, 0.1))], [target]).mAP == pytest.approx(0.5)


def test_equal_scores_go_by_the_id_of_the_image() -> None:
    right, wrong = found((SMALL, CAT, 0.5)), found((MEDIUM, CAT, 0.5))
    targets = [truth((SMALL, CAT)), truth()]
    assert coco([right, wrong], targets).mAP == pytest.approx(1)
    with_ids = [target | {"image_id": image_id} for target, image_id in zip(targets, (9, 7), strict=True)]
    assert coco([right, wrong], with_ids).mAP == pytest.approx(0.5)


def test_label_0_is_left_out() -> None:
    result = coco([found((SMALL, 0, 0.9), (SMALL, CAT, 0.5))], [truth((SMALL, CAT))])
    assert result.mAP == pytest.approx(1)
    assert result.n_detections == {"cat": 1, "dog": 0}


@pytest.mark.parametrize(
    ("detections", "targets", "expected"),
    [
        ([], [], math.nan),
        ([NOTHING], [truth()], math.nan),
        ([found((SMALL, CAT, 0.9))], [truth()], math.nan),
        ([NOTHING], [truth((SMALL, CAT, True))], math.nan),
        ([NOTHING, NOTHING], [truth((SMALL, CAT)), truth()], 0),
    ],
    ids=["no images", "empty image", "only detections", "only a crowd", "no detections"],
)
def test_nothing_there(detections, targets, expected: float) -> None:
    result = coco(detections, targets)
    assert result.mAP == pytest.approx(expected, nan_ok=True)
    assert list(result.figures) == list(FIGURES)
    assert math.isnan(result.ap["dog"])
    assert str(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([GOOD], [], CLASSES), "detections has 1 images, targets has 0"),
        (([GOOD], [GOOD_TARGET], ("cat", "cat")), "classes has a name twice"),
        (([(*GOOD[:2], torch.zeros(3))], [GOOD_TARGET], CLASSES), r"detections\[0\]: scores must have shape \(2,\)"),
        (([GOOD], [GOOD_TARGET | {"areas": torch.zeros(1)}], CLASSES), r"targets\[0\]: areas must have shape \(2,\)"),
    ],
)
def test_mistakes_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_average_precision(*arguments)


def test_as_text() -> None:
    result = coco([found((SMALL, CAT, 0.9), (MEDIUM, DOG, 0.9))], [truth((SMALL, CAT), (LARGE, CAT))])
    lines = str(result).splitlines()
    assert lines[1].split() == ["cat", "2", "1", "0.5050"]  # the recalls 0 .. 0.5 are 51 of 101 points
    assert lines[4].split() == ["mAP@0.5:0.95", "(coco)", "2", "2", "0.5050"]
    assert lines[6].split() == ["AP", "0.5050", "AP50", "0.5050", "AP75", "0.5050"]
    assert lines[7].split() == ["APs", "1.0000", "APm", "-", "APl", "0.0000"]
    assert [line.split()[::2] for line in lines[8:10]] == [["AR1", "AR10", "AR100"], ["ARs", "ARm", "ARl"]]
    assert lines[10:] == ["", str(CocoOptions())]
    assert result.summary() == "mAP@0.5:0.95 0.5050 (cat 0.5050, dog -)"
