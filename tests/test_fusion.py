"""Soft-NMS and weighted box fusion against implementations in loops, and the cases worked out by hand."""

import math
import sys

import numpy as np
import pytest
import torch
from slow_fusion import slow_fusion, slow_soft_nms

import ssd


def drawn(seed, n=60):
    """Boxes in groups around a few places, labels, and scores of which some are equal."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 100, (6, 2)).repeat(n // 6, 0) + rng.normal(0, 4, (n, 2))
    boxes = np.concatenate([places, places + rng.uniform(15, 30, (n, 2))], 1)
    return torch.from_numpy(boxes), torch.from_numpy(rng.integers(1, 3, n)), torch.from_numpy(rng.random(n).round(2))


def as_rows(boxes, labels, scores):
    return list(zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize(
    "options", [("gaussian", 0.5, 0.3, 0.001), ("gaussian", 0.1, 0, 0.2), ("linear", 1, 0.3, 0.05)]
)
@pytest.mark.parametrize("seed", range(4))
def test_soft_nms_follows_the_rules(seed, options):
    boxes, labels, scores = drawn(seed)
    for idxs in (labels, None):
        expected = slow_soft_nms(
            boxes.tolist(), scores.tolist(), [1] * 60 if idxs is None else labels.tolist(), *options
        )
        named = dict(zip(("method", "sigma", "iou_threshold", "min_score"), options, strict=True))
        keep, new = ssd.soft_nms(boxes, scores, idxs, **named)
        assert keep.tolist() == [i for i, _ in expected]
        assert new.tolist() == pytest.approx([score for _, score in expected], rel=1e-9)
        assert 5 < len(keep) <= 60
        assert (new < scores[keep]).any()


def test_equal_boxes_and_scores_that_are_nan():
    boxes = torch.tensor([[0.0, 0, 2, 2]] * 4)
    scores = torch.tensor([0.5, math.nan, 0.8, 0.5])
    keep, new = ssd.soft_nms(boxes, scores, method="linear", iou_threshold=0, min_score=0)
    assert (keep.tolist(), new.tolist()) == ([2], [pytest.approx(0.8)])  # an IoU of 1 leaves nothing of the others
    keep, new = ssd.soft_nms(boxes, scores, sigma=1.0)
    assert keep.tolist() == [2, 0, 3]
    assert new.tolist() == pytest.approx([0.8, 0.5 * math.exp(-1), 0.5 * math.exp(-2)])
    assert torch.isnan(scores[1])  # the arguments are not changed
    assert ssd.soft_nms(boxes[:0], scores[:0])[0].shape == ssd.soft_nms(boxes[:0], scores[:0])[1].shape == (0,)


@pytest.mark.parametrize("options", [([1, 1, 1], 0.55, 0.0), ([2, 1, 0.5], 0.4, 0.1)])
@pytest.mark.parametrize("seed", range(4))
def test_fusion_follows_the_rules(seed, options):
    detectors = [drawn(10 * seed + i, n) for i, n in enumerate((60, 30, 42))]
    detectors = [detectors[0], (detectors[0][0][:30] + detectors[1][0] / 50, *detectors[1][1:]), detectors[2]]
    weights, iou_threshold, min_score = options
    expected = slow_fusion([as_rows(*each) for each in detectors], *options)
    found = ssd.weighted_box_fusion(detectors, weights=weights, iou_threshold=iou_threshold, min_score=min_score)
    np.testing.assert_allclose(found.scores, [score for *_, score in expected], rtol=1e-6)  # float32
    # Scores that are equal but for the rounding of float32 may be in another order.
    rows = zip(*(column.tolist() for column in found), strict=True)
    ours, wanted = (sorted(each, key=lambda row: (-round(row[2], 5), row[1], row[0][0])) for each in (rows, expected))
    assert [label for _, label, _ in ours] == [label for _, label, _ in wanted]
    np.testing.assert_allclose([box for box, *_ in ours], [box for box, *_ in wanted], rtol=1e-5)
    assert 10 < len(expected) < 132


def test_an_object_that_two_detectors_find():
    both = [
        (torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([1, 2]), torch.tensor([0.9, 0.8])),
        (torch.tensor([[2.0, 0, 10, 10], [math.nan, 0, 1, 1]]), torch.tensor([1, 1]), torch.tensor([0.3, 0.7])),
    ]
    found = ssd.weighted_box_fusion(both)
    assert found.boxes.flatten().tolist() == pytest.approx([0.5, 0, 10, 10, 50, 50, 60, 60])
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([0.6, 0.4])
    nothing = ssd.weighted_box_fusion([tuple(column[:0] for column in both[0])])
    assert [tuple(column.shape) for column in nothing] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize("seed", range(3))
def test_fusion_equals_ensemble_boxes(seed):
    pytest.importorskip("ensemble_boxes", reason="no ensemble-boxes: pip install ensemble-boxes")
    fusion = sys.modules["ensemble_boxes.ensemble_boxes_wbf"].weighted_boxes_fusion
    detectors = []
    for i in range(2):
        boxes, labels, _ = drawn(seed + 10 * i)
        scores = torch.from_numpy(
            np.random.default_rng([seed, i]).random(60)
        )  # no equal ones: their order is undefined
        detectors.append(((boxes / 200).clamp(0, 1), labels, scores))  # it takes fractions of the picture
    theirs = fusion(*([each[i].numpy() for each in detectors] for i in (0, 2, 1)), weights=[2, 1], iou_thr=0.5)
    found = ssd.weighted_box_fusion(detectors, weights=[2, 1], iou_threshold=0.5)
    np.testing.assert_allclose(found.scores, theirs[1], rtol=1e-5)
    np.testing.assert_allclose(found.boxes, theirs[0], atol=1e-5)
    assert found.labels.tolist() == theirs[2].tolist()


BOXES, LABELS, SCORES = torch.zeros(3, 4), torch.ones(3, dtype=torch.int64), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((BOXES, SCORES), {"method": "hard"}, "method must be one of gaussian, linear, got 'hard'"),
        ((BOXES, SCORES), {"sigma": 0}, "sigma must be above 0, .* got 0, 0.3 and 0.001"),
        ((BOXES, SCORES[:2]), {}, r"scores must be \(3,\), one for each box, got \(2,\)"),
        ((BOXES, SCORES, LABELS[:1]), {}, r"idxs must be \(3,\), one for each box, got \(1,\)"),
        ((BOXES, LABELS), {}, "scores must be floating, got torch.int64"),
        ((BOXES[:, :3], SCORES), {}, r"boxes must be \(n, 4\), got \(3, 3\)"),
    ],
)
def test_mistakes_of_soft_nms_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ssd.soft_nms(*arguments, **options)


@pytest.mark.parametrize(
    ("detections", "options", "message"),
    [
        ([], {}, "detections must have those of at least one detector"),
        ([(BOXES, LABELS, SCORES)], {"weights": [1, 2]}, r"weights must be 1 numbers above 0, .* got \[1, 2\]"),
        ([(BOXES, LABELS, SCORES)], {"weights": [0]}, r"weights must be 1 numbers above 0, .* got \[0\]"),
        ([(BOXES, LABELS, SCORES)], {"iou_threshold": 2}, "iou_threshold must be from 0 to 1 .* got 2 and 0"),
        ([(BOXES, LABELS, SCORES[:1])], {}, r"detections\[0\]: scores must be \(3,\), one for each box, got \(1,\)"),
        ([(BOXES[0], LABELS, SCORES)], {}, r"detections\[0\]: boxes must be \(n, 4\), got \(4,\)"),
    ],
)
def test_mistakes_of_fusion_are_named(detections, options, message):
    with pytest.raises(ValueError, match=message):
        ssd.weighted_box_fusion(detections, **options)
