"""Which detections a detector returns: those of some classes, with a score that is high enough for their class."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd.options import check_known, some_classes
from ssd.runtime.text import read_text
from ssd_ext._checks import check_value

REPORT = "ssd eval --report"  # the value of "made_by" in the JSON file of a report


def read_thresholds(path: str | PathLike[str]) -> dict[str, float]:
    """Reads the file of `ssd detect --thresholds`: a JSON object with a score in 0..1 for each name of a class.

    The JSON file of a report of `ssd eval` has the scores too: those with the highest F1 of each class.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such an object, or a score is out of range. The message names the file.
    """
    text = read_text(Path(path))
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
        if isinstance(content, dict) and content.get("made_by") == REPORT:
            content = {each["name"]: each["min_score"] for each in content["classes"] if each["min_score"] is not None}
        elif isinstance(content, dict) and (isinstance(content.get("made_by"), str) or "annotations" in content):
            raise ValueError(
                "has no thresholds; give the JSON file that ssd eval --report writes, such as run/report.json, or a "
                'JSON object of classes and scores, such as {"cat": 0.4, "dog": 0.6}'
            )
        check_thresholds(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None
    except (LookupError, TypeError):
        raise ValueError(f"{path}: is not a complete report of `ssd eval`") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return dict(content)


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} has two thresholds")
    return content


def check_thresholds(thresholds: Any) -> None:
    """Raises ValueError unless this is a mapping from names of classes to scores in 0..1."""
    if not isinstance(thresholds, Mapping):
        raise ValueError(f"thresholds: must be an object {{class name: score}}, got {str(thresholds)[:100]}")
    for name, score in thresholds.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"thresholds: the score of {name!r} must be a number from 0 to 1, got {str(score)[:100]}")


class Selection:
    """Selects detections by class and score.

    Args:
        classes: the C-1 class names without background.
        min_score: a detection is kept if its score is above this, as in `ssd_ext.DetectionOptions`.
        only: names of the classes that are kept; None: all.
        thresholds: for some classes, a number in 0..1 that takes the place of `min_score`.

    Attributes:
        lowest: the `min_score` with which a network finds all detections that are kept.

    Raises:
        ValueError: a name is not in `classes`, `only` is empty, or a threshold is out of range.
    """

    def __init__(
        self,
        classes: Sequence[str],
        min_score: float,
        only: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        thresholds = {} if thresholds is None else thresholds
        check_thresholds(thresholds)
        if only is not None:
            check_value("only", only, some_classes)
            check_known("only", only, classes)
        check_known("thresholds", thresholds, classes)
        kept = {name: thresholds.get(name, min_score) for name in classes if only is None or name in only}
        self.lowest = min(kept.values())
        # As in the op, scores are compared in float32.
        self._limits = torch.tensor([math.inf, *(kept.get(name, math.inf) for name in classes)], dtype=torch.float32)

    def __call__(self, labels: Tensor, scores: Tensor) -> Tensor:
        """Tells which detections are kept.

        Args:
            labels: (k,) int64 in 0..C-1, on the CPU.
            scores: (k,) float32.

        Returns:
            (k,) bool.
        """
        return scores > self._limits[labels]
