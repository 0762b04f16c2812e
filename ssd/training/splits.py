"""Which pictures a run trains on, which it chooses best.pt on, and which it measures at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, Subset

from ssd.data import AUGMENTATIONS, BoxDataset, Dropped, list_splits, open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.networks.ssd300 import SSD300
from ssd.training.settings import Settings

WORDS = {  # the kind of a split by the word that its name begins with; the first of a kind is preferred
    "trainval": "trainval",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class Sets(NamedTuple):
    """The pictures of a run."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None
    names: dict[str, str | None]  # the lists that they are from, by the names of `Settings`
    classes: tuple[str, ...]
    notes: list[Dropped | str]  # what was left out


def open_sets(settings: Settings) -> Sets:
    """The pictures for training, validation and test; validation is a part of the first where no list is for it.

    Raises:
        FileNotFoundError, ValueError: see `ssd.data.open_dataset`.
    """
    input_size = SSD300.input_size
    names = _choose(settings)
    split, val_split, test_split = names["split"], names["val_split"], names["test_split"]
    augment = AUGMENTATIONS[settings.augment](input_size, flips=settings.flips)
    whole = train = open_dataset(settings.data, split, settings.classes, augment)

    def unaugmented(data: tuple[str, ...], split: str | None) -> BoxDataset:
        return open_dataset(data, split, whole.classes, EvalTransform(input_size), keep_crowds=True)

    val, notes = None, list(whole.dropped)
    if settings.val_data or val_split:
        val = unaugmented(settings.val_data or _with_split(settings.data, val_split), val_split)
        notes += val.dropped
    elif settings.held_out and len(whole) > 1:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        n = min(max(1, round(settings.held_out * len(order))), len(order) - 1)
        val = Subset(whole.view(EvalTransform(input_size), keep_crowds=True), sorted(order[:n]))
        train = Subset(whole, sorted(order[n:]))
    test = None
    if test_split:
        try:
            test = unaugmented(_with_split(settings.data, test_split), test_split)
            notes += test.dropped
        except (FileNotFoundError, ValueError) as error:  # a list without annotations, as of a competition
            if settings.test_split:
                raise
            notes.append(f"{test_split} will not be measured: {error}")
    return Sets(train, val, test, names, whole.classes, notes)


def _choose(settings: Settings) -> dict[str, str | None]:
    """The splits of a run: those that it names, or those that there are.

    Raises:
        ValueError: several could be meant.
    """
    known = {name for root in settings.data for name in list_splits(root)}
    split, val_split, test_split = settings.split, settings.val_split, settings.test_split
    splits = _by_kind(known)
    if split is None and known:
        plain = [splits[kind][""] for kind in ("trainval", "train") if "" in splits[kind]]
        names = plain[:1] or list((splits["trainval"] or splits["train"]).values())
        if len(names) != 1:
            raise ValueError(
                f"choose a split of {', '.join(settings.data)} to train on, with --split: "
                f"there are {', '.join(sorted(known))}"
            )
        (split,) = names
    own = _by_kind([split or ""])
    if val_split is None and settings.val_data is None and own["train"]:
        names = _partners(own, splits, "val")
        if len(names) > 1:
            raise ValueError(f"choose a split to validate {split} on, with --val-split: there are {', '.join(names)}")
        val_split = names[0] if names else None
    if test_split is None:
        names = _partners(own, _by_kind(known - {split, val_split}), "test")
        test_split = names[0] if len(names) == 1 else None
    return {"split": split, "val_split": val_split, "test_split": test_split}


def _by_kind(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The names of splits by their kind and by what follows the word for it: train2017 is {"train": {"2017": ...}}.

    A name with a second such word is of no kind: "train_test" is Pascal VOC's list of the class "train" in "test".
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in WORDS.values()}
    for word, kind in WORDS.items():
        for name in sorted(names):
            rest = name.removeprefix(word)
            others = set(re.findall("[a-z]+", rest))
            if name.startswith(word) and not rest[:1].isalpha() and not others & WORDS.keys():
                found[kind].setdefault(rest, name)
    return found


def _partners(own: dict[str, dict[str, str]], splits: dict[str, dict[str, str]], kind: str) -> list[str]:
    """The splits of a kind that may go with the one that is trained on, `own`: the one whose name differs only in the
    word for the kind, as val2017 from train2017, or else those that are not the partner of another."""
    rest = next((rest for names in own.values() for rest in names), "")
    if rest in splits[kind]:
        return [splits[kind][rest]]
    return [name for other, name in splits[kind].items() if other not in splits["train"]]


def _with_split(roots: tuple[str, ...], split: str | None) -> tuple[str, ...]:
    return tuple(root for root in roots if split in list_splits(root)) or roots
