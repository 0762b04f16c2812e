"""The interval of the mAP, against draws of real pictures, and on data whose true mAP is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_inputs import CLASSES, GOOD, GOOD_TARGET, needs_coco, random_images

from ssd.evaluation import uncertainty
from ssd.evaluation.evaluate import score
from ssd.evaluation.uncertainty import describe, interval
from ssd.evaluation.voc import METHODS, EvalResult, Evidence, area_under, precision_over_recall

NAMES = ("one", "two", "three", "none")  # of `random_images`; the last has no objects


@pytest.mark.parametrize("method", METHODS)
def test_a_draw_has_the_map_of_its_pictures(method, monkeypatch):
    """The quantiles of the draws are those of `average_precision` on the drawn pictures."""
    detections, targets = random_images(3, 9)
    monkeypatch.setattr(uncertainty, "MOST_DRAWS", 40)
    monkeypatch.setattr(uncertainty, "FEWEST_DRAWS", 40)
    monkeypatch.setattr(uncertainty, "BLOCK", 300)  # several blocks
    draws = torch.randint(9, (40, 9), generator=torch.Generator().manual_seed(0)).tolist()
    each = [
        score([detections[i] for i in draw], [targets[i] for i in draw], NAMES, method=method).mAP for draw in draws
    ]
    expected = np.quantile(each, [0.025, 0.975])
    assert expected[0] < expected[1] - 0.1
    assert interval(score(detections, targets, NAMES, method=method)) == pytest.approx(tuple(expected), abs=1e-6)


def test_tiles_of_a_picture_are_drawn_together():
    detections, targets = random_images(1, 6)
    doubled = score(detections * 2, targets * 2, NAMES)
    alone = interval(score(detections, targets, NAMES))
    together, apart = interval(doubled, [*range(6), *range(6)]), interval(doubled)
    assert alone
    assert together
    assert apart
    assert together == pytest.approx(alone, abs=1e-6)
    assert apart[1] - apart[0] < 0.9 * (alone[1] - alone[0])


def world(n: int, rng: np.random.Generator) -> EvalResult:
    """Detections of three classes in n pictures, some of which are harder than others."""
    hard, detections, truths, aps = rng.normal(0, 1, n), [], [], []
    for objects, ease in ((1.0, 1.0), (0.6, 0.3), (0.3, -0.5)):
        places = np.arange(n).repeat(rng.poisson(objects, n))
        found = places[rng.random(len(places)) < 1 / (1 + np.exp(hard[places] - ease))]
        wrong = np.arange(n).repeat(rng.poisson(0.6 * objects * np.exp(0.5 * hard)))
        scores = np.concatenate([rng.beta(4, 2, len(found)), rng.beta(2, 4, len(wrong))])
        order = np.argsort(-scores)
        hits = order < len(found)
        detections.append((np.concatenate([found, wrong])[order], hits))
        truths.append(places)
        aps.append(area_under(*precision_over_recall(hits, len(places)), "area"))
    return EvalResult(float(np.mean(aps)), {}, {}, {}, 0.5, "area", {}, evidence=Evidence(n, detections, truths))


def test_the_interval_has_the_true_map_in_95_of_100_cases():
    """Of 400 test sets of 100 pictures. By chance, a share of 0.95 differs by at most 0.033 in 999 of 1000 runs."""
    rng = np.random.default_rng(0)
    true = world(100_000, rng).mAP
    covered = 0
    for _ in range(400):
        low, high = interval(world(100, rng)) or (0, 0)
        covered += low <= true <= high
    assert 0.917 <= covered / 400 <= 0.983


def test_what_has_no_interval():
    no_objects = [{"boxes": torch.empty(0, 4), "labels": torch.empty(0)}] * 2
    assert interval(score([GOOD], [GOOD_TARGET], CLASSES)) is None
    assert interval(score([GOOD] * 2, no_objects, CLASSES)) is None
    assert interval(score([GOOD] * 2, [GOOD_TARGET] * 2, CLASSES), [0, 0]) is None
    assert interval(score([], [], CLASSES)) is None
    assert describe(score([], [], CLASSES), None) is None


@needs_coco
def test_coco_has_no_interval():
    result = score([GOOD] * 2, [GOOD_TARGET] * 2, CLASSES, method="coco")
    assert interval(result) is None
    assert describe(result, interval(result)) == "few objects (2 in all), so small differences are chance"


def test_few_objects_are_said():
    boxes, labels, scores = torch.rand(60, 4), torch.tensor([1] * 55 + [2] * 5), torch.rand(60)
    boxes[:, 2:] += 1
    result = score([(boxes, labels, scores)] * 2, [{"boxes": boxes, "labels": labels}] * 2, CLASSES)
    few = describe(result, interval(result)) or ""
    assert few.startswith("mAP@0.5 ")
    assert "(95 % interval)" in few
    assert few.endswith("; few objects (10 of dog), so small differences are chance")
    result = score([(boxes, labels, scores)] * 10, [{"boxes": boxes, "labels": labels}] * 10, CLASSES)
    many = describe(result, interval(result)) or ""
    assert many.endswith("(95 % interval)")
