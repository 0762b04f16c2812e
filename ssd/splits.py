"""Which pictures a run trains on, which it chooses best.pt on, and which it measures at the end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.data import Dataset, Subset

from ssd.data import AUGMENTATIONS, BoxDataset, Dropped, list_splits, open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.settings import Settings

TRAIN = ("trainval", "train")  # the first that there is
VAL = ("val", "valid")  # beside "train"
TEST = "test"


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
    names = _choose(settings)
    split, val_split, test_split = names["split"], names["val_split"], names["test_split"]
    augment = AUGMENTATIONS[settings.augment](flips=settings.flips)
    whole = train = open_dataset(settings.data, split, settings.classes, augment)

    def unaugmented(data: tuple[str, ...], split: str | None) -> BoxDataset:
        return open_dataset(data, split, whole.classes, EvalTransform(), keep_crowds=True)

    val, notes = None, list(whole.dropped)
    if settings.val_data or val_split:
        val = unaugmented(settings.val_data or _with_split(settings.data, val_split), val_split)
        notes += val.dropped
    elif settings.held_out and len(whole) > 1:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        n = min(max(1, round(settings.held_out * len(order))), len(order) - 1)
        val = Subset(whole.view(EvalTransform(), keep_crowds=True), sorted(order[:n]))
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
    """The lists of a run: those that it names, or those that there are."""
    known = {name for root in settings.data for name in list_splits(root)}
    split, val_split, test_split = settings.split, settings.val_split, settings.test_split
    if split is None and known:
        split = next((name for name in TRAIN if name in known), None)
        if split is None:
            raise ValueError(f"choose a split of {', '.join(settings.data)}: there are {', '.join(sorted(known))}")
    if val_split is None and settings.val_data is None and split == "train":
        val_split = next((name for name in VAL if name in known), None)
    if test_split is None and TEST in known - {split, val_split}:
        test_split = TEST
    return {"split": split, "val_split": val_split, "test_split": test_split}


def _with_split(roots: tuple[str, ...], split: str | None) -> tuple[str, ...]:
    return tuple(root for root in roots if split in list_splits(root)) or roots
