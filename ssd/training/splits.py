"""Chooses the pictures for training, for validation (which selects best.pt) and for the test at the end."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from ssd.data import AUGMENTATIONS, BoxDataset, Dropped, list_splits, open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.data.folder import SPLIT_WORDS, Folder, Root
from ssd.networks.ssd300 import SSD300
from ssd.training.settings import Settings, resolved

# A data set or a part of one. Any: an image is whatever the transform returns.
Pictures = BoxDataset | Subset[tuple[Any, dict[str, Tensor]]]


class Sets(NamedTuple):
    """The pictures of a run."""

    train: Pictures
    val: Pictures | None
    test: Pictures | None
    names: dict[str, str | None]  # the chosen values of the settings "split", "val_split" and "test_split"
    classes: tuple[str, ...]
    notes: list[Dropped | str]  # objects and splits that were left out


def whole_of(pictures: Pictures) -> tuple[BoxDataset, Sequence[int]]:
    """Returns the whole data set, and the indices of these pictures in it."""
    if isinstance(pictures, BoxDataset):
        return pictures, range(len(pictures))
    assert isinstance(pictures.dataset, BoxDataset)
    return pictures.dataset, pictures.indices


def open_sets(settings: Settings) -> Sets:
    """Opens the pictures for training, validation and test.

    If there is no validation split, a part of the training pictures is held out for validation.

    Raises:
        FileNotFoundError: see `ssd.data.open_dataset`.
        ValueError: see `ssd.data.open_dataset`; or several splits are possible, and the settings do not name one.
    """
    input_size = SSD300.input_size
    folders = list(map(Folder.of, settings.data))  # listed once
    names = _choose(settings, folders)
    split, val_split, test_split = names["split"], names["val_split"], names["test_split"]
    augment = AUGMENTATIONS[resolved(settings.augment)](input_size, flips=settings.flips)
    whole = open_dataset(folders, split, settings.classes, augment)

    train: Pictures = whole
    val: Pictures | None = None
    test: Pictures | None = None
    notes: list[Dropped | str] = [*whole.dropped]

    def unaugmented(data: Sequence[Root], split: str | None) -> BoxDataset:
        opened = open_dataset(data, split, whole.classes, EvalTransform(input_size), keep_crowds=True)
        notes.extend(opened.dropped)
        return opened

    if settings.val_data or val_split:
        val = unaugmented(settings.val_data or _with_split(folders, val_split), val_split)
    elif settings.held_out and len(whole) > 1:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        n = min(max(1, round(settings.held_out * len(order))), len(order) - 1)
        val = Subset(whole.view(EvalTransform(input_size), keep_crowds=True), sorted(order[:n]))
        train = Subset(whole, sorted(order[n:]))
    if test_split:
        try:
            test = unaugmented(_with_split(folders, test_split), test_split)
        except (FileNotFoundError, ValueError) as error:  # the test split of a competition has no annotations
            if settings.test_split:
                raise
            notes.append(f"{test_split} will not be measured: {error}")
    return Sets(train, val, test, names, whole.classes, notes)


def _choose(settings: Settings, folders: Sequence[Folder]) -> dict[str, str | None]:
    """Chooses the splits of a run: those that the settings name, or those that the data has.

    Raises:
        ValueError: several splits are possible.
    """
    known = {name for folder in folders for name in list_splits(folder)}
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
            raise ValueError(
                f"choose a validation split for the training split {split}, with --val-split: "
                f"there are {', '.join(names)}"
            )
        val_split = names[0] if names else None
    if test_split is None:
        names = _partners(own, _by_kind(known - {split, val_split}), "test")
        test_split = names[0] if len(names) == 1 else None
    return {"split": split, "val_split": val_split, "test_split": test_split}


def _by_kind(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Groups the names of splits by their kind and by the rest of the name: train2017 is {"train": {"2017": ...}}.

    A name with two of the words has no kind: "train_test" is Pascal VOC's list of the class "train" in "test".
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in SPLIT_WORDS.values()}
    for word, kind in SPLIT_WORDS.items():
        for name in sorted(names):
            rest = name.lower().removeprefix(word)
            others = set(re.findall("[a-z]+", rest))
            if name.lower().startswith(word) and not rest[:1].isalpha() and not others & SPLIT_WORDS.keys():
                found[kind].setdefault(rest, name)
    return found


def _partners(own: dict[str, dict[str, str]], splits: dict[str, dict[str, str]], kind: str) -> list[str]:
    """Finds the splits of a kind that may belong to the training split, `own`.

    A split matches a training split if their names differ only in the first word, as val2017 and train2017 do. If a
    split of the kind matches `own`, only this split is returned. Otherwise all splits of the kind are returned, except
    splits that match another training split.
    """
    rest = next((rest for names in own.values() for rest in names), "")
    if rest in splits[kind]:
        return [splits[kind][rest]]
    return [name for other, name in splits[kind].items() if other not in splits["train"]]


def _with_split(folders: Sequence[Folder], split: str | None) -> Sequence[Folder]:
    """The folders that have the split; all folders if none has it."""
    return [folder for folder in folders if split in list_splits(folder)] or folders
