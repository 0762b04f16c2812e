"""The numbers of a run, for programs: curve.csv with its steps, metrics.json with its results, and values for hooks."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssd.evaluation.voc import EvalResult
from ssd.reports import page
from ssd.runtime.files import replacing
from ssd.training.progress import COLUMNS, History
from ssd.training.settings import Settings

CURVE, CURVE_NUMBERS, METRICS = "curve.png", "curve.csv", "metrics.json"
AP = "AP/"  # begins the name of the list in a history that has the AP of a class, followed by the name of the class


class Step(NamedTuple):
    """A step of training, for the hook `on_step` of `ssd.training.run.train`.

    Attributes:
        step: its number, from 1.
        epoch: number of its epoch, from 1.
        loss: conf_loss + loc_loss; in float16 it may be infinite in single steps.
        conf_loss: loss of the classes.
        loc_loss: loss of the boxes.
        lr: learning rate of the weights; biases and a backbone may have a multiple of it.

    Examples:
        >>> from ssd.training.records import Step
        >>> def log(step: Step) -> None:  # for on_step
        ...     print(f"epoch {step.epoch}, step {step.step}: loss {step.loss:.2f}, lr {step.lr:g}")
        >>> log(Step(step=10, epoch=1, loss=9.1, conf_loss=6.3, loc_loss=2.8, lr=0.001))
        epoch 1, step 10: loss 9.10, lr 0.001
    """

    step: int
    epoch: int
    loss: float
    conf_loss: float
    loc_loss: float
    lr: float


class Validation(NamedTuple):
    """A validation, for the hook `on_eval` of `ssd.training.run.train`.

    Attributes:
        step: number of steps before it.
        epoch: number of epochs before it.
        mAP: in 0..1; NaN if the pictures held out have no objects.
        ap: average precision of each class by name, in 0..1; NaN for a class without objects.
        best: whether the network was saved as best.pt.

    Examples:
        >>> from ssd.training.records import Validation
        >>> def log(validation: Validation) -> None:  # for on_eval
        ...     print(f"epoch {validation.epoch}: mAP {validation.mAP:.3f}" + ", saved" * validation.best)
        >>> log(Validation(step=400, epoch=2, mAP=0.5, ap={"cat": 0.4, "dog": 0.6}, best=True))
        epoch 2: mAP 0.500, saved
    """

    step: int
    epoch: int
    mAP: float
    ap: dict[str, float]
    best: bool


def add_validation(history: History, step: int, result: EvalResult) -> None:
    """Appends the mAP and the AP of each class to a history; classes without objects have no AP in any validation."""
    before = len(history["eval_step"])
    history["eval_step"].append(step)
    history["mAP"].append(result.mAP)
    for name, ap in result.ap.items():
        if not math.isnan(ap):  # NaN would make equal histories differ
            history.setdefault(AP + name, [math.nan] * before).append(ap)  # older versions did not keep it


def write_curve(history: History, steps_per_epoch: int, path: Path) -> None:
    """Writes the steps and the validations of a run into a CSV file, complete or not at all.

    Args:
        history: see `ssd.training.run.train`; the whole file is written from it, so a resumed run has each step once.
        steps_per_epoch: number of steps of an epoch.
        path: the file, in an existing folder.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "epoch", *COLUMNS, "mAP"))
        writer.writerows(_rows(history, steps_per_epoch))


def _rows(history: History, steps_per_epoch: int) -> Iterator[tuple[Any, ...]]:
    """The rows of curve.csv. A validation behind a step that was joined with later ones has a row without losses."""
    maps = dict(zip(history["eval_step"], history["mAP"], strict=True))
    rows = dict(zip(history["step"], zip(*(history[name] for name in COLUMNS), strict=True), strict=True))
    for step in sorted(maps.keys() | rows.keys()):
        yield int(step), epoch_of(step, steps_per_epoch), *rows.get(step, ("",) * len(COLUMNS)), maps.get(step, "")


def epoch_of(step: float, steps_per_epoch: int) -> int:
    """The epoch, from 1, that a step, from 1, belongs to."""
    return int((step - 1) // steps_per_epoch) + 1


def best_of(history: History) -> int | None:
    """The index of the last validation with the highest mAP, that of best.pt; None if no validation has one."""
    maps = [(value, i) for i, value in enumerate(history["mAP"]) if math.isfinite(value)]
    return max(maps)[1] if maps else None


def write_metrics(
    path: Path,
    history: History,
    settings: Settings,
    *,
    steps_per_epoch: int,
    epoch_length: int,
    step: int,
    seconds: float,
    pictures: Mapping[str, int],
    test: EvalResult | None = None,
    mAP_interval: tuple[float, float] | None = None,
    finished: bool = False,
) -> None:
    """Writes the results of a run into a JSON file, complete or not at all; its keys are in docs/evaluation.md.

    Args:
        path: the file, in an existing folder.
        history: see `ssd.training.run.train`.
        settings: the settings of the run, with the network and the classes.
        steps_per_epoch, epoch_length: steps and pictures of an epoch.
        step: number of steps that were taken.
        seconds: how long these steps took.
        pictures: number of pictures of each part, "train", "val" and "test".
        test: the result on the test split.
        mAP_interval: the interval of the mAP that the report of the run shows.
        finished: whether the run is at its end.
    """
    best = best_of(history)
    last = len(history["mAP"]) - 1 if history["mAP"] else None

    def at(name: str, index: int | None) -> float | None:
        return history[name][index] if index is not None and name in history else None

    numbers = {
        "made_by": "ssd train",
        "date": page.now(),
        "finished": finished,
        "network": settings.network,
        "size": settings.input_size,
        "metric": "mAP@0.5",
        "mAP": at("mAP", last),
        "best_mAP": at("mAP", best),
        "best_epoch": None if best is None else epoch_of(history["eval_step"][best], steps_per_epoch),
        "test_mAP": test and test.mAP,
        "mAP_interval": mAP_interval,
        "classes": [
            {
                "name": name,
                "ap": at(AP + name, last),
                "best_ap": at(AP + name, best),
                "test_ap": test and test.ap[name],
            }
            for name in settings.classes or ()
        ],
        "epochs": step // steps_per_epoch,
        "planned_epochs": settings.epochs,
        "steps": step,
        "pictures_seen": step * min(settings.batch_size, epoch_length),
        "seconds": round(seconds, 3),
        "n_pictures": dict(pictures),
        "data": {name: getattr(settings, name) for name in ("data", "val_data", "split", "val_split", "test_split")},
        "settings": settings.as_dict(),
        "versions": page.versions(),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(page.known(numbers), indent=1, allow_nan=False) + "\n", encoding="utf-8")
