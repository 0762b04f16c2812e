"""Chooses the pictures for training, for validation (which selects best.pt) and for the test at the end."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from ssd.data import AUGMENTATIONS, BoxDataset, list_splits, open_dataset
from ssd.data.archives import folders_of
from ssd.data.augmentation import EvalTransform
from ssd.data.depth import Levels
from ssd.data.findings import in_two_splits, summary, warnings
from ssd.data.folder import SPLIT_WORDS, Folder, Root, kind_of_split
from ssd.data.loader import Samples
from ssd.data.members import AnyFile
from ssd.data.mosaic import Mosaic
from ssd.runtime.faults import first_of
from ssd.runtime.packed import Packed
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
    notes: list[str]  # what was found, what was left out, and warnings


def whole_of(pictures: Pictures) -> tuple[BoxDataset, Sequence[int]]:
    """Returns the whole data set, and the indices of these pictures in it."""
    if isinstance(pictures, BoxDataset):
        return pictures, range(len(pictures))
    assert isinstance(pictures.dataset, BoxDataset)
    return pictures.dataset, pictures.indices


def objects_of(pictures: Pictures) -> Packed[dict[str, Tensor]]:
    """Returns the objects of these pictures, in their order; see `BoxDataset.objects`."""
    dataset, indices = whole_of(pictures)
    return dataset.objects.take(torch.tensor(indices))


def open_sets(settings: Settings, levels: Levels | None = None) -> Sets:
    """Opens the pictures for training, validation and test.

    If there is no validation split, a part of the training pictures is held out for validation.

    Args:
        settings: the settings of the run.
        levels: see `BoxDataset`; those of the run if it is resumed. None: those of the training pictures, for all sets.

    Raises:
        FileNotFoundError: see `ssd.data.open_dataset`.
        ValueError: see `ssd.data.open_dataset`; or several splits are possible, and the settings do not name one.
    """
    folders = folders_of(settings.data)  # listed once
    names = choose_splits(settings, folders)
    split, val_split, test_split = names["split"], names["val_split"], names["test_split"]
    notes: list[str] = []

    def opened(
        data: Sequence[Root], split: str | None, classes: Sequence[str] | None, levels: Levels | None
    ) -> BoxDataset:
        dataset = open_dataset(data, split, classes, keep_crowds=True, options=settings.reading, levels=levels)
        notes.extend((summary(dataset), *dataset.notes, *first_of(dataset.dropped)))
        return dataset

    whole = opened(folders, split, settings.classes, levels)
    _check_objects(whole, folders)
    val = test = None
    if settings.val_data or val_split:
        val = opened(settings.val_data or _with_split(folders, val_split), val_split, whole.classes, whole.levels)
    if test_split:
        try:
            test = opened(_with_split(folders, test_split), test_split, whole.classes, whole.levels)
        except (FileNotFoundError, ValueError) as error:  # the test split of a competition has no annotations
            if settings.test_split:
                raise
            notes.append(f"{test_split} will not be measured: {error}")
    notes += [f"warning: {warning}" for warning in warnings(whole)]
    parts = [part for part in (whole, val, test) if part is not None]
    pictures: dict[str, Sequence[AnyFile]] = {}
    for role, name, part in (("training", split, whole), ("validation", val_split, val), ("test", test_split, test)):
        if part is not None:
            pictures[f"{name} ({role})" if name in pictures else name or role] = part.pictures
    notes += [f"warning: {warning}" for warning in in_two_splits(pictures)]

    classes = whole.classes
    if settings.classes is None:
        used = set().union(*(part.used_classes for part in parts))
        classes = tuple(name for name in whole.classes if name in used)
        if len(classes) < len(whole.classes):
            unused = [name for name in whole.classes if name not in used]
            notes.append(f"classes left out, since they have no objects: {', '.join(unused)}")
    whole, val = whole.with_classes(classes), val and val.with_classes(classes)
    sets = Sets(whole, val, test and test.with_classes(classes), names, classes, notes)
    if val is None:
        train, held_out = divided(whole, settings)
        sets = sets._replace(train=train, val=held_out)
    return prepared(_tiled(sets, settings) if settings.tiles else sets, settings)


def _tiled(sets: Sets, settings: Settings) -> Sets:
    """The same pictures in tiles."""
    train = tiles_of(sets.train, settings)
    val, test = (None if part is None else tiles_of(part, settings) for part in (sets.val, sets.test))
    notes = [*sets.notes, *(line for part in (train, val, test) if part is not None for line in part.notes)]
    return sets._replace(train=train, val=val, test=test, notes=notes)


def tiles_of(pictures: Pictures, settings: Settings) -> BoxDataset:
    """The pictures in the tiles of the settings; as they are if these have none."""
    whole, indices = whole_of(pictures)
    part = whole if indices == range(len(whole)) else whole.part(indices)
    return part.tiled(settings.tiles, settings.overlap) if settings.tiles else part


def prepared(sets: Sets, settings: Settings) -> Sets:
    """The same pictures, for the size of the input in the settings; those for training are augmented."""
    size = settings.input_size
    return sets._replace(
        train=_augmented(sets.train, settings, size),
        val=sets.val and _view(sets.val, EvalTransform(size), keep_crowds=True),
        test=sets.test and _view(sets.test, EvalTransform(size), keep_crowds=True),
    )


def samples_of(train: Pictures, settings: Settings) -> Samples[int]:
    """The samples of a run, from its prepared training pictures: mosaics among them, if the settings ask for them."""
    if not settings.mosaic:
        return train
    size = settings.input_size
    return Mosaic(train, _augmented(train, settings, (size + 1) // 2), size, settings.mosaic)


def _augmented(pictures: Pictures, settings: Settings, size: int) -> Pictures:
    """The same pictures, augmented to images of this size."""
    augment = AUGMENTATIONS[resolved(settings.augment)](size, flips=settings.flips)
    return _view(pictures, augment, keep_crowds=False)


def _view(pictures: Pictures, transform: Callable[..., Any], keep_crowds: bool) -> Pictures:
    """The same pictures with another transform, see `BoxDataset.view`."""
    if isinstance(pictures, Subset):
        return Subset(whole_of(pictures)[0].view(transform, keep_crowds), pictures.indices)
    return pictures.view(transform, keep_crowds)


def divided(whole: BoxDataset, settings: Settings) -> tuple[Pictures, Pictures | None]:
    """Divides the pictures of a run without a validation split: those for training, and those that are held out."""
    if not settings.held_out or len(whole) < 2:
        return whole, None
    held_out = held_out_pictures(len(whole), settings.held_out, settings.seed)
    trained = sorted(set(range(len(whole))).difference(held_out))
    return Subset(whole, trained), Subset(whole, held_out)


def held_out_pictures(n: int, share: float, seed: int) -> list[int]:
    """Chooses the pictures that are held out for validation: sorted indices of at least one of n >= 2 pictures."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: min(max(1, round(share * n)), n - 1)])


def _check_objects(dataset: BoxDataset, folders: Sequence[Folder]) -> None:
    """Raises ValueError if no picture has an object to learn from."""
    if sum(dataset.counts.values()):
        return
    why = []
    if dataset.n_unlabelled:
        why.append(f"{dataset.n_unlabelled} have no annotation, such as {dataset.files[0]}, which is not there")
    if dataset.dropped:
        why.append(f"{len(dataset.dropped)} objects cannot be used: {dataset.dropped[0]}")
    if dataset.options.only:
        why.append(f"only objects of {', '.join(dataset.options.only)} are used")
    there = "; ".join(f"{folder.path} has {folder.contents()}" for folder in folders)
    raise ValueError(
        f"nothing to learn from: none of {len(dataset)} pictures has an object"
        + "".join(f"; {reason}" for reason in why)
        + f". {there}"
    )


def choose_splits(settings: Settings, folders: Sequence[Folder] | None = None) -> dict[str, str | None]:
    """Chooses the splits of a run: those that the settings name, or those that the data has.

    Args:
        settings: the settings of the run.
        folders: the folders of the data, if they were listed before.

    Returns:
        The values of the settings "split", "val_split" and "test_split"; None for a split that is not there.

    Raises:
        FileNotFoundError: see `ssd.data.list_splits`.
        ValueError: several splits are possible, or the test split is one of the others.
    """
    folders = folders_of(settings.data) if folders is None else folders
    known = {name for folder in folders for name in list_splits(folder)}
    split, val_split, test_split = settings.split, settings.val_split, settings.test_split
    splits = _by_kind(known)
    if split is None and known:
        plain = [splits[kind][""] for kind in ("trainval", "train") if "" in splits[kind]]
        names = plain[:1] or list((splits["trainval"] or splits["train"]).values())
        if not names and len(known) == 1 and not any(map(kind_of_split, known)):  # CVAT's only list is "default"
            names = list(known)
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
    used = {split} | ({val_split} if settings.val_data is None else set())
    if test_split is not None and test_split in used:
        raise ValueError(f"test_split: {test_split} is already used to train or validate; choose another split")
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
