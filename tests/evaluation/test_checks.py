"""Detections and objects that do not fit are named, whichever metric takes them."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation_inputs import CAT, CLASSES, DOG, GOOD, GOOD_TARGET, NOTHING, found, needs_coco, truth

from ssd.evaluation.evaluate import score
from ssd.evaluation.voc import average_precision


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, torch.zeros(2, 5), r"detections\[1\]: boxes must have shape \(k, 4\), got \(2, 5\)"),
        (0, torch.zeros(4), r"detections\[1\]: boxes .* got \(4,\)"),
        (0, torch.zeros(3, 4), r"detections\[1\]: labels must have shape \(3,\).* got \(2,\)"),
        (1, torch.tensor([CAT]), r"detections\[1\]: labels must have shape \(2,\).* got \(1,\)"),
        (1, torch.tensor([[CAT, DOG]]), r"detections\[1\]: labels .* got \(1, 2\)"),
        (1, torch.tensor([CAT, 3]), r"detections\[1\]: labels must be in 0\.\.2, got 3"),
        (1, torch.tensor([-1, CAT]), r"detections\[1\]: labels must be in 0\.\.2, got -1"),
        (2, torch.zeros(3), r"detections\[1\]: scores must have shape \(2,\).* got \(3,\)"),
        (2, torch.zeros(2, 1), r"detections\[1\]: scores .* got \(2, 1\)"),
        ("boxes", torch.zeros(2, 3), r"targets\[1\]: boxes must have shape \(k, 4\), got \(2, 3\)"),
        ("boxes", torch.zeros(1, 4), r"targets\[1\]: labels must have shape \(1,\).* got \(2,\)"),
        ("labels", torch.tensor([CAT, CAT, CAT]), r"targets\[1\]: labels must have shape \(2,\).* got \(3,\)"),
        ("labels", torch.tensor([CAT, 0]), r"targets\[1\]: labels must be in 1\.\.2, got 0"),
        ("labels", torch.tensor([3, CAT]), r"targets\[1\]: labels must be in 1\.\.2, got 3"),
        ("boxes", torch.tensor([[0, 0, 9, 9], [60, 2, 30, 40]]), r"targets\[1\]: .* got 60, 2, 30, 40 \(xywh\?\)"),
        ("boxes", torch.tensor([[0, 0, 9, math.nan], [0, 0, 9, 9]]), r"targets\[1\]: .* got 0, 0, 9, nan"),
        ("difficult", torch.zeros(1), r"targets\[1\]: difficult must have shape \(2,\).* got \(1,\)"),
    ],
)
def test_bad_rows(column: int | str, value: torch.Tensor, message: str) -> None:
    detection, target = list(GOOD), dict(GOOD_TARGET)
    (target if isinstance(column, str) else detection)[column] = value
    with pytest.raises(ValueError, match=message):
        average_precision([GOOD, tuple(detection)], [GOOD_TARGET, target], CLASSES)


IN_FRACTIONS = found(([0, 0, 0.1, 0.1], CAT, 0.9), ([0.2, 0, 0.3, 0.1], DOG, 0.8))
FRACTIONS_TARGET = truth(([0, 0, 0.1, 0.1], CAT), ([0.2, 0, 0.3, 0.1], DOG))


def test_different_units_are_named() -> None:
    message = "in one unit: those of detections look like {} and those of targets look like {}"
    with pytest.raises(ValueError, match=message.format("pixels", "fractions of the picture")):
        score([GOOD], [FRACTIONS_TARGET], CLASSES)
    with pytest.raises(ValueError, match=message.format("fractions of the picture", "pixels")):
        score([IN_FRACTIONS], [GOOD_TARGET], CLASSES)


def test_one_unit_with_boxes_that_look_like_the_other() -> None:
    """A box far beyond the picture, a box of 1 pixel, and the row of `ssd.detect` for no detections."""
    beyond = found(([0, 0, 0.1, 0.1], CAT, 0.9), ([-3, -3, 3, 3], CAT, 0.8), ([0.2, 0, 0.3, 0.1], DOG, 0.8))
    assert score([beyond], [FRACTIONS_TARGET], CLASSES).mAP == 1
    small = found(([0, 0, 10, 10], CAT, 0.9), ([0, 0, 1, 1], CAT, 0.1), ([20, 0, 30, 10], DOG, 0.9))
    assert score([small], [GOOD_TARGET], CLASSES).ap["cat"] == 1
    nothing = found(([0, 0, 1, 1], 0, 0.0))
    for detection in (nothing, NOTHING):
        assert score([detection], [GOOD_TARGET], CLASSES).ap["cat"] == 0
    assert math.isnan(score([GOOD], [truth()], CLASSES).mAP)


@needs_coco
def test_coco_needs_pixels() -> None:
    """Its sizes of small and large objects are in pixels."""
    message = "must be in pixels: those of detections look like fractions of the picture and those of targets"
    with pytest.raises(ValueError, match=message):
        score([IN_FRACTIONS], [FRACTIONS_TARGET], CLASSES, method="coco")


@pytest.mark.parametrize(
    ("detection", "target", "message"),
    [
        (
            dict(zip(("boxes", "labels", "scores"), GOOD, strict=True)),
            GOOD_TARGET,
            r'detections\[0\] .* got dict; .*d\["b',
        ),
        (GOOD, tuple(GOOD_TARGET.values()), r'targets\[0\] must be a dict with "boxes" and "labels", got tuple'),
    ],
)
def test_other_forms_are_named(detection: object, target: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        score([detection], [target], CLASSES)


@pytest.mark.parametrize("name", ["boxes", "labels"])
def test_missing_entries_are_named(name: str) -> None:
    target = {key: value for key, value in GOOD_TARGET.items() if key != name}
    with pytest.raises(ValueError, match=rf"targets\[0\] must have boxes and labels, and has no {name}"):
        score([GOOD], [target], CLASSES)
