"""What a user should know about a data set before training: what was understood, and what looks like a mistake."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import combinations

import numpy as np

from ssd.data.dataset import BoxDataset
from ssd.data.members import AnyFile, identity, shown

WHOLE = 0.98  # share of both sides of a picture from which a box counts as the whole picture
HEAD = 1 << 16  # bytes at the beginning of two files of the same size that are compared
SHOWN = 3  # folders and names that a line shows


def summary(dataset: BoxDataset) -> str:
    """Describes in one line what was found: the pictures, the annotations, and where both are."""
    pictures = Counter(map(os.path.dirname, dataset.pictures.texts()))
    files = dict.fromkeys(map(shown, dataset.files.texts()))
    annotations = Counter(map(os.path.dirname, files))
    if len(files) <= SHOWN and len(files) < len(dataset):
        where = f"in {_listed([_relative(path, dataset) for path in files])}"
    elif annotations.keys() == pictures.keys():
        where = "beside them"
    else:
        where = f"in {_places(annotations, dataset)}"
    contents = ((len(dataset.classes), "class", "classes"), (sum(dataset.counts.values()), "object", "objects"))
    return (
        f"{_counted(len(dataset), 'picture', 'pictures')} in {_places(pictures, dataset)}, with annotations in the "
        f"format of {dataset.FORMAT} {where}; {', '.join(_counted(*content) for content in contents)}"
    )


def warnings(dataset: BoxDataset) -> Iterator[str]:
    """Describes what looks like a mistake in the annotations."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dataset.classes:
        alike["".join(name.split()).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"classes that differ only by case or blanks: {_listed(list(map(repr, names)), len(names))}"
    if missing := [name for name, count in dataset.counts.items() if not count]:
        yield f"classes without objects: {_listed(missing)}"
    yield from dataset.doubts
    times = Counter(dataset.pictures.texts())
    if again := [picture for picture, n in times.items() if n > 1]:
        its = [
            shown(file)
            for file, picture in zip(dataset.files.texts(), dataset.pictures.texts(), strict=True)
            if picture == again[0]
        ]
        yield f"pictures with two annotations: {len(again)}, such as {shown(again[0])}, with {_listed(its)}"
    objects, sizes = dataset.objects, dataset.sizes
    if not len(sizes):
        return
    boxes = objects.columns["boxes"].numpy()
    picture_of = np.arange(len(dataset)).repeat(objects.counts.numpy())
    rows = np.column_stack([picture_of, objects.columns["labels"].numpy(), boxes])
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if (twice := first[counts > 1]).size:
        file = dataset.files[picture_of[twice.min()]]
        yield f"boxes that are there twice, with the same class: {(counts - 1).sum()}, such as one in {file}"
    if (whole := np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= WHOLE).all(1))).size:
        yield f"boxes of nearly the whole picture: {len(whole)}, such as one in {dataset.files[picture_of[whole[0]]]}"


def in_two_splits(splits: Mapping[str, Iterable[AnyFile]]) -> Iterator[str]:
    """Finds pictures that are in two splits: the same file, or a copy of it under any name.

    Args:
        splits: the pictures of each split.
    """
    sizes: dict[str, dict[tuple[int, int], list[AnyFile]]] = {name: defaultdict(list) for name in splits}
    for name, pictures in splits.items():
        for picture in pictures:
            sizes[name][identity(picture)].append(picture)
    heads: dict[AnyFile, bytes] = {}

    def head(picture: AnyFile) -> bytes:
        if picture not in heads:
            with picture.open("rb") as file:
                heads[picture] = blake2b(file.read(HEAD), digest_size=16).digest()
        return heads[picture]

    for a, b in combinations(splits, 2):
        same = []
        for size in sizes[a].keys() & sizes[b].keys():
            others = {head(picture): picture for picture in sizes[a][size]}
            same += [(others[head(picture)], picture) for picture in sizes[b][size] if head(picture) in others]
        if same:
            first = min(same)
            yield f"pictures that are in {a} and in {b}: {len(same)}, such as {first[0]} and {first[1]}"


def _counted(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _places(folders: Counter[str], dataset: BoxDataset) -> str:
    return _listed([_relative(folder, dataset) for folder, _ in folders.most_common()])


def _relative(path: str, dataset: BoxDataset) -> str:
    """The path relative to the folder of the data, or to the folder above for the folder itself."""
    for root in dataset.roots:
        if path == root:
            return os.path.basename(os.path.abspath(root))
        if path.startswith(root + os.sep):
            return path[len(root) + 1 :]
    return path


def _listed(names: list[str], at_most: int = SHOWN) -> str:
    """Joins names with commas and "and"; of many, the first ones and the number of the others."""
    shown = names if len(names) <= at_most else [*names[:at_most], f"{len(names) - at_most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
