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
from ssd.evaluation.coco import FIGURES, coco_average_precision

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


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(seed: int) -> None:
    content, results = random_content(seed)
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
    result = coco_average_precision(detections, targets, ["1", "2", "3", "4"])

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


def test_the_command_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, results = random_content(5)
    for image in content["images"]:
        Image.new("RGB", (300, 300)).save(tmp_path / image["file_name"])
    data, detections = tmp_path / "truth.json", tmp_path / "results.json"
    data.write_text(json.dumps(content))
    detections.write_text(json.dumps(results))
    assert main(["eval", str(data), "--detections", str(detections), "--method", "coco"]) == 0
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
    assert [line.split()[::2] for line in lines[8:]] == [["AR1", "AR10", "AR100"], ["ARs", "ARm", "ARl"]]
    assert result.summary() == "mAP@0.5:0.95 0.5050 (cat 0.5050, dog -)"
