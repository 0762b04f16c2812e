"""Which detections a detector returns: those of some classes, with a score that is high enough for their class."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd.runtime.text import read_text


def read_thresholds(path: str | PathLike[str]) -> dict[str, float]:
    """Reads the file of `ssd detect --thresholds`: a JSON object with a score in 0..1 for each name of a class.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such an object, or a score is out of range. The message names the file.
    """
    try:
        content = json.loads(read_text(Path(path)), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        check_thresholds(content)
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


def _check_known(option: str, names: Iterable[str], classes: Sequence[str]) -> None:
    """Raises ValueError if a name is not one of the classes, which the message lists."""
    if unknown := [name for name in dict.fromkeys(names) if name not in classes]:
        named = ", ".join(map(repr, unknown))
        raise ValueError(f"{option}: there is no class {named}; the classes are {', '.join(classes)}")


class Selection:
    """Selects detections by class and score.

    Args:
        classes: the C-1 class names without background.
        min_score: a detection of a class without threshold is kept if its score is above this, as in
            `ssd_ext.DetectionOptions`.
        only: names of the classes that are kept; None: all.
        thresholds: for some classes, the lowest score that is kept, in 0..1.

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
        _check_known("only", only or (), classes)
        _check_known("thresholds", thresholds, classes)
        if only is not None and not only:
            raise ValueError("only: no class is named")
        # As in the op, scores are compared in float32. A score is above `min_score` if it is at least the next number.
        above = np.nextafter(np.float32(min_score), np.float32(np.inf))
        least = {name: np.float32(thresholds[name]) if name in thresholds else above for name in classes}
        kept = [name for name in classes if only is None or name in only]
        least_of_all = min(least[name] for name in kept)
        self.lowest = max(0.0, float(np.nextafter(least_of_all, np.float32(-np.inf))))
        if least_of_all == above:
            self.lowest = min_score
        values = [np.inf, *(least[name] if name in kept else np.inf for name in classes)]
        self._least = torch.tensor(np.array(values, np.float32))

    def __call__(self, labels: Tensor, scores: Tensor) -> Tensor:
        """Tells which detections are kept.

        Args:
            labels: (k,) int64 in 0..C-1, on the CPU.
            scores: (k,) float32.

        Returns:
            (k,) bool.
        """
        return scores >= self._least[labels]
