"""Detections and objects that do not fit are named, whichever metric takes them."""

from __future__ import annotations

import pytest
import torch
from evaluation_inputs import CAT, CLASSES, DOG, GOOD, GOOD_TARGET

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
        ("difficult", torch.zeros(1), r"targets\[1\]: difficult must have shape \(2,\).* got \(1,\)"),
    ],
)
def test_bad_rows(column: int | str, value: torch.Tensor, message: str) -> None:
    detection, target = list(GOOD), dict(GOOD_TARGET)
    (target if isinstance(column, str) else detection)[column] = value
    with pytest.raises(ValueError, match=message):
        average_precision([GOOD, tuple(detection)], [GOOD_TARGET, target], CLASSES)
