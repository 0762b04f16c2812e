"""Resuming of runs: reads the checkpoint, and compares the settings of the run with those that are given."""

import json
import shlex
from collections.abc import Collection
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from ssd.options import ReadOptions
from ssd.runtime.remote import absolute
from ssd.training.records import METRICS
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint
from ssd_ext import LossOptions

LAST = "last.pt"  # the checkpoint from which a run is resumed
BEST = "best.pt"  # that of the network with the highest mAP on the pictures held out
TRAINED = "trained"  # its entry with the weights that are trained, if its network has the average of the weights

LENGTHS = ("epochs", "minutes")  # the settings of which LONGER tells why they cannot be changed
LONGER = (
    "To train longer, start a new run: ssd train DATA --out FOLDER --epochs N. The learning rate of a run falls until "
    "its last epoch, so more epochs cannot be added to it"
)


def load_run(path: Path) -> dict[str, Any]:  # see `load_checkpoint`
    """Loads the checkpoint of a run, and raises ValueError if the run cannot be resumed from it."""
    state = load_checkpoint(path)
    lacking = [key for key in ("settings", "step", "optimizer", "history") if key not in state]
    if lacking:
        raise ValueError(
            f"{path}: cannot be resumed, because it has no {', '.join(lacking)}: only {LAST} of a run has all of them. "
            f"To start a new run from the weights in this file, use --weights {path}"
        )
    return state


def existing_run(out: Path) -> str:
    """Says that a folder already has a run, and what to do."""
    try:
        finished = json.loads((out / METRICS).read_text(encoding="utf-8"))["finished"] is True
    except (OSError, ValueError, KeyError, TypeError):  # stopped before it was written, or of another program
        finished = False
    if finished:
        return f"{out} already has a run, which is finished; choose another folder. {LONGER}"
    resume = shlex.join(["ssd", "train", "--out", str(out), "--resume"])
    return f"{out} already has a run. To continue it: {resume}. For a new run, choose another folder"


def check_same(asked: Settings, run: Settings, given: Collection[str] | None, out: Path) -> None:
    """Raises ValueError if settings differ from those of the run that is resumed."""
    asked = absolute_paths(asked)
    changes: list[str] = []
    if given is None:
        own = [field.name for field in fields(Settings) if field.name not in ("loss", "reading")]
        nested = {"loss": LossOptions._fields, "reading": ReadOptions._fields}
        given = own + [f"{name}.{option}" for name, options in nested.items() for option in options]
    for name in given:
        wanted, has = attrgetter(name)(asked), attrgetter(name)(run)
        if wanted is not None and wanted != has:
            changes.append(f"{name} is {_shown(has)} in the run, but {_shown(wanted)} was given")
    if changes:
        longer = f". {LONGER}" if any(change.split()[0] in LENGTHS for change in changes) else ""
        raise ValueError(
            f"{out} has a run with other settings: {'; '.join(changes)}. To continue it, give the settings of the run, "
            f"or leave them out; for a new run, choose another folder{longer}"
        )


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def absolute_paths(settings: Settings) -> Settings:
    """The same settings with absolute paths of the folders."""
    data = tuple(map(absolute, settings.data))
    val_data = settings.val_data and tuple(map(absolute, settings.val_data))
    return replace(settings, data=data, val_data=val_data)
