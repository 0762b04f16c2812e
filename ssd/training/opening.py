"""Opens a run: finds its settings and its checkpoint, opens its pictures, and builds its network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from ssd.data.findings import counted
from ssd.data.loader import epoch_length
from ssd.networks import Network
from ssd.networks.priors import FITTED
from ssd.runtime.processes import Ranks
from ssd.training.budget import Budget
from ssd.training.choice import Choice, choose_network, open_chosen
from ssd.training.fingerprint import Fingerprint, difference, fingerprint
from ssd.training.recipes import epochs_for, lr_for
from ssd.training.records import CURVE, CURVE_NUMBERS, METRICS
from ssd.training.resuming import BEST, LAST, absolute_paths, check_same, existing_run, load_run
from ssd.training.sampling import repeats_of
from ssd.training.settings import Settings, resolved
from ssd.training.splits import Sets, open_sets
from ssd.training.summary import REPORT, REPORT_NUMBERS, SHEET
from ssd.weights.checkpoint import build_model, levels_of
from ssd.weights.loading import Initial

State = dict[str, Any]  # a checkpoint, which has values of many types
# What a run writes, besides its last checkpoint.
FILES = (BEST, CURVE, CURVE_NUMBERS, METRICS, SHEET, REPORT, REPORT_NUMBERS)


class Opened(NamedTuple):
    """A run before its first step.

    Attributes:
        settings: all settings, also those that the data, the device and the weights have decided. `epochs` is None
            until `budget` chooses it.
        sets: the pictures.
        fingerprints: what a resumed run recognises its data by.
        repeats: how often an epoch has each training picture; None: once.
        per_epoch: number of pictures of an epoch.
        budget: the time that the run may take; None: the number of epochs is known.
        model: the network on the CPU, with the first weights of the run, or those of `state`.
        state: the checkpoint of a resumed run; None: the run is new.
    """

    settings: Settings
    sets: Sets
    fingerprints: dict[str, Fingerprint]
    repeats: Tensor | None
    per_epoch: int
    budget: Budget | None
    model: Network
    state: State | None


def open_run(
    asked: Settings | None,
    out: Path,
    *,
    resume: bool,
    given: Collection[str] | None,
    device: torch.device,
    ranks: Ranks,
    say: Callable[[object], None],
) -> Opened:
    """Opens a run.

    Args:
        asked: the settings that were given; None: those of the run that is resumed.
        out: folder of the run.
        resume: whether to continue the run in this folder.
        given: see `ssd.training.run.train`.
        device: where the run will train.
        ranks: the processes of the run.
        say: prints what was found in the data and what was chosen.

    Raises:
        FileNotFoundError, OSError, ValueError: see `ssd.training.run.train`.
    """
    if asked is not None and asked.epochs and asked.minutes:
        raise ValueError(f"give epochs {asked.epochs} or minutes {asked.minutes:g}, but not both")
    # Only the first process needs to see the folder.
    opened = ranks.from_first(lambda: _resumed(asked, out, given)) if resume else _new(asked, out, device)
    state, choice, initial = opened
    minutes = None if choice.settings.epochs else choice.settings.minutes
    budget = Budget(minutes) if minutes else None
    sets, fingerprints, choice = ranks.from_first(lambda: _open_pictures(choice, state))
    for note in (*sets.notes, *choice.notes):
        say(note)
    settings, repeats = choice.settings, None
    if settings.repeat_factor:
        repeats, note = repeats_of(sets.train, sets.classes, settings.repeat_factor)
        say(note)
    per_epoch = epoch_length(len(sets.train), repeats)
    if settings.epochs is None and settings.minutes is None:
        epochs = epochs_for(resolved(settings.recipe), str(settings.network), per_epoch)
        settings = replace(settings, epochs=epochs)
    settings = replace(
        settings,
        classes=sets.classes,
        split=sets.names["split"],
        val_split=sets.names["val_split"],
        test_split=sets.names["test_split"],
    )
    if state is not None:
        _check_unchanged(state, fingerprints, out)
    _check_settings(settings, fingerprints, device)

    torch.manual_seed(settings.seed)
    if state is not None:
        model = build_model(state, out / LAST)
    else:
        options = settings.network_options()
        if settings.priors == FITTED:
            options["priors"] = asdict(resolved(choice.priors))
        model = resolved(initial).build(len(sets.classes) + 1, **options)
        head_batch_norm = model.config.get("head_batch_norm", False)
        rate = settings.lr or lr_for(resolved(settings.recipe), str(settings.network), head_batch_norm)
        settings = replace(settings, lr=rate)
    if settings.sync_batch_norm and ranks.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    few = ""
    if per_epoch < settings.batch_size:
        few = f"; an epoch has only {counted(per_epoch, 'picture', 'pictures')}: add pictures"
        if isinstance(sets.val, Subset):
            few += ", or hold out none (held_out 0)"
    _check_share(model, min(settings.batch_size, per_epoch), settings.accumulate, ranks.size, few)
    return Opened(settings, sets, fingerprints, repeats, per_epoch, budget, model, state)


def _resumed(asked: Settings | None, out: Path, given: Collection[str] | None) -> tuple[State, Choice, None]:
    """The checkpoint of a run that is continued, and its settings."""
    state = load_run(out / LAST)
    choice = Choice(Settings.from_dict(state["settings"]))
    if asked is not None:
        check_same(asked, choice.settings, given, out)
    return state, choice, None


def _new(asked: Settings | None, out: Path, device: torch.device) -> tuple[None, Choice, Initial]:
    """The settings of a new run, and the first weights of its network."""
    if (out / LAST).exists():
        raise ValueError(existing_run(out))
    for name in FILES:
        if (out / name).exists():
            raise ValueError(f"{out / name} would be replaced, and there is no {LAST} to resume: choose another folder")
    if asked is None:
        raise ValueError(f"{out / LAST} does not exist, and a new run needs settings")
    # Absolute paths: the run may be resumed from another working directory.
    return None, *choose_network(absolute_paths(asked), device)


def _open_pictures(choice: Choice, state: State | None) -> tuple[Sets, dict[str, Fingerprint], Choice]:
    """Opens the pictures of a run, and computes the fingerprints of its training and validation data."""
    sets, choice = open_chosen(choice) if state is None else (open_sets(choice.settings, levels_of(state)), choice)
    return sets, {"training": fingerprint(sets.train), "validation": fingerprint(sets.val)}, choice


def _check_unchanged(state: State, fingerprints: dict[str, Fingerprint], out: Path) -> None:
    """Raises ValueError if the data of a resumed run has changed."""
    for name, before in state.get("fingerprints", {}).items():
        if change := difference(before, fingerprints[name]):
            raise ValueError(
                f"the {name} data of {out} has changed: {change}; to start a new run from the weights of this run, "
                f"use --weights {out / LAST}"
            )


def _check_settings(settings: Settings, fingerprints: dict[str, Fingerprint], device: torch.device) -> None:
    """Raises ValueError if a setting does not suit the data or the device."""
    if settings.patience and not fingerprints["validation"]["objects"]:
        raise ValueError(
            f"patience: {settings.patience} was given, but there are no objects to validate on; give val_split, "
            "val_data or held_out, or leave out patience"
        )
    if settings.sync_batch_norm and device.type != "cuda":
        raise ValueError(f"sync_batch_norm: torch supports it only on GPUs, and this run is on {device}")


def _check_share(model: nn.Module, batch: int, parts: int, processes: int, few: str) -> None:
    """Raises ValueError if a process has too few pictures at once.

    Args:
        model: the network.
        batch: number of pictures of a batch.
        parts: number of parts of a batch, see `Settings.accumulate`.
        processes: number of processes that share a batch.
        few: what to add to the message.
    """
    share = batch // processes // parts
    if not share:
        each = f" in {parts} parts each" if parts > 1 else ""
        raise ValueError(f"a batch of {batch} pictures cannot be shared by {processes} processes{each}{few}")
    if share == 1 and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError(
            f"batch normalisation needs at least 2 pictures at once, but a batch of {batch} pictures leaves 1 "
            f"(processes: {processes}, accumulate: {parts}){few}"
        )
