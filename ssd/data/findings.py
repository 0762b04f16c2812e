"""What a user should know about a data set before training: what was understood, and what looks like a mistake."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from ssd.data.dataset import BoxDataset
from ssd.data.duplicates import equal_files
from ssd.data.members import AnyFile, shown

WHOLE = 0.98  # share of both sides of a picture from which a box counts as the whole picture
# Least IoU of two boxes that count as the same. In three real data sets with 15,076 boxes, 7 pairs with one class reach
# it, one reaches 0.8, and no other 0.7.
TWICE = 0.9
THIN = 2  # pixels; a smaller side is rather a slip of the mouse than an object
# The size of an object is unusual if it differs from the median of its class by more than this factor and by more than
# so many standard deviations, which are estimated from the median of the differences. Both are of logarithms.
UNUSUAL_FACTOR, UNUSUAL_DEVIATIONS = 3.0, 5.0
DEVIATION = 1.4826  # standard deviation of a normal distribution, divided by the median of the absolute differences
FEWEST = 20  # objects of a class; with fewer, its sizes are not compared
SHOWN = 3  # folders and names that a line shows
# A class may be misspelt if its name has this number of characters or more, it has few objects, and another class has
# this many times its objects.
SHORTEST, FEW, RARE = 5, 3, 20
KINDS = {  # what looks like a mistake in single annotations, and the rule
    "boxes that are there twice, with the same class": f"An IoU of at least {TWICE:g} with a box before it.",
    "boxes that are there twice, with different classes": f"An IoU of at least {TWICE:g} with a box before it.",
    "boxes of nearly the whole picture": f"At least {WHOLE:.0%} of both sides of the picture.",
    "boxes that reach beyond their picture": "By more than 2 pixels and 2 % of a side. They are cut at its edges.",
    "boxes with a tiny side": f"Less than {THIN} pixels.",
    "boxes of an unusual size for their class": f"The side, the square root of the area in fractions of the picture, "
    f"is more than {UNUSUAL_FACTOR:g} times the median of the class or less than 1/{UNUSUAL_FACTOR:g} of it, and "
    f"further from it than {UNUSUAL_DEVIATIONS:g} standard deviations. Classes with less than {FEWEST} objects are "
    "left out.",
    "pictures without objects": "Right if there is nothing to find. They may have objects that were left out. "
    "Training uses them only in mosaics, or with --min-negatives.",
}
SAME, OTHER_CLASS, WHOLE_PICTURE, BEYOND, TINY, UNUSUAL, EMPTY = KINDS


class Finding(NamedTuple):
    """The n boxes or pictures of a data set that look like one kind of mistake."""

    kind: str  # a key of KINDS
    pictures: np.ndarray  # (n,) int64, indices
    boxes: np.ndarray  # (n, 4) float64 xyxy in fractions of the picture; NaN for pictures without objects
    labels: np.ndarray  # (n,) int64; 0 for pictures without objects
    indices: np.ndarray  # (n,) int64, the position of the object in its annotation, from 0; -1 without an object
    others: np.ndarray  # (n,) int64, the label of the box before it that is the same; 0 if it is another kind
    other_indices: np.ndarray  # (n,) int64, the position of this box in the annotation; -1 if it is another kind


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
        f"{counted(len(dataset), 'picture', 'pictures')} in {_places(pictures, dataset)}, with annotations in the "
        f"format of {dataset.FORMAT} {where}; {', '.join(counted(*content) for content in contents)}"
    )


def warnings(dataset: BoxDataset) -> Iterator[str]:
    """Describes what looks like a mistake in the annotations."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dataset.classes:
        alike["".join(name.split()).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"classes that differ only by case or blanks: {_listed(list(map(repr, names)), len(names))}"
    for rare, common in _misspelt(dataset.counts):
        few = counted(dataset.counts[rare], "object", "objects")
        many = dataset.counts[common]
        yield f"a class that may be misspelt: {rare!r} ({few}), nearly the name of {common!r} ({many})"
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
    for kind, pictures, *_ in find_odd(dataset):
        if kind not in (BEYOND, EMPTY):  # boxes beyond their pictures are among the doubts; others are no mistake
            yield f"{kind}: {len(pictures)}, such as one in {dataset.files[int(pictures[0])]}"


def _misspelt(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs of a rare and a common class whose names differ by a letter, or by two that are exchanged.

    Digits, and letters that stand alone as in "hand_l", do not count.
    """
    alike: dict[str, set[str]] = defaultdict(set)
    for name in counts:
        if len(name) >= SHORTEST:
            for form in (name.casefold(), *_without_a_letter(name.casefold())):
                alike[form].add(name)
    for rare, common in sorted({pair for names in alike.values() for pair in permutations(names, 2)}):
        if 0 < counts[rare] <= FEW and RARE * counts[rare] <= counts[common] and rare.casefold() != common.casefold():
            yield rare, common


def _without_a_letter(name: str) -> Iterator[str]:
    """The name without each of the letters that are part of a word, and with a gap in their place."""
    padded = f" {name} "
    for i, letter in enumerate(name):
        if letter.isalpha() and (padded[i].isalpha() or padded[i + 2].isalpha()):
            yield name[:i] + name[i + 1 :]
            yield f"{name[:i]}\0{name[i + 1 :]}"


def find_odd(dataset: BoxDataset) -> list[Finding]:
    """Finds boxes and pictures whose annotations look like a mistake: those of each of `KINDS`, if there are any."""
    objects, sizes = dataset.objects, dataset.sizes.numpy()
    boxes, labels = objects.columns["boxes"].double().numpy(), objects.columns["labels"].numpy()
    indices = dataset.truths.columns["index"].numpy()
    picture_of = np.arange(len(dataset)).repeat(objects.counts.numpy())
    sides = boxes[:, 2:] - boxes[:, :2]
    again, before = _same_boxes(picture_of, boxes)
    same_class = labels[again] == labels[before]

    def finding(kind: str, pictures: np.ndarray, boxes: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Finding:
        nothing = np.zeros_like(labels)
        return Finding(kind, pictures, boxes, labels, indices, nothing, nothing - 1)

    def found(kind: str, rows: np.ndarray) -> Finding:
        return finding(kind, picture_of[rows], boxes[rows], labels[rows], indices[rows])

    def twice(kind: str, rows: np.ndarray, others: np.ndarray) -> Finding:
        return found(kind, rows)._replace(others=labels[others], other_indices=indices[others])

    annotated = dataset.annotated
    cut = annotated.columns["beyond"].numpy()
    beyond = np.arange(len(dataset)).repeat(annotated.counts.numpy())[cut]
    cut_boxes = annotated.columns["boxes"].double().numpy()[cut] / np.tile(sizes[beyond], 2)
    empty = np.flatnonzero(annotated.counts.numpy() == 0)
    findings = [
        twice(SAME, again[same_class], before[same_class]),
        twice(OTHER_CLASS, again[~same_class], before[~same_class]),
        found(WHOLE_PICTURE, np.flatnonzero((sides >= WHOLE).all(1))),
        finding(BEYOND, beyond, cut_boxes, *(annotated.columns[name].numpy()[cut] for name in ("labels", "index"))),
        found(TINY, np.flatnonzero((sides * sizes[picture_of] < THIN).any(1))),
        found(UNUSUAL, _unusual(np.log(sides.prod(1)) / 2, labels)),
        finding(EMPTY, empty, np.full((len(empty), 4), np.nan), np.zeros_like(empty), np.full_like(empty, -1)),
    ]
    return [finding for finding in findings if len(finding.pictures)]


def _same_boxes(picture_of: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds boxes that are the same as a box before them in their picture.

    Args:
        picture_of: (R,) int64, sorted, the picture of each box.
        boxes: (R, 4) float64 xyxy.

    Returns:
        The sorted rows of these boxes, (n,) int64, and for each the first row with the same box.
    """
    order = np.lexsort([boxes[:, 0], picture_of])
    picture, (x0, y0, x1, y1) = picture_of[order], boxes[order].T
    area = (x1 - x0) * (y1 - y0)
    places: np.ndarray = np.arange(len(order))
    pairs: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    for shift in range(1, len(order)):
        places = places[: np.searchsorted(places, len(order) - shift)]
        others: np.ndarray = places + shift
        # The IoU is at most the share of the width of the first box that is right of the left edge of the second one.
        near = x0[others] - x0[places] <= (1 - TWICE) * (x1 - x0)[places]
        places = places[(picture[places] == picture[others]) & near]
        if not len(places):
            break
        others = places + shift
        width = np.minimum(x1[places], x1[others]) - x0[others]
        height = np.minimum(y1[places], y1[others]) - np.maximum(y0[places], y0[others])
        inter = width.clip(0) * height.clip(0)
        same = inter >= TWICE * (area[places] + area[others] - inter)
        pairs.append(np.sort(np.stack([order[places[same]], order[others[same]]], 1)))
    before, again = np.concatenate(pairs).T
    order = np.lexsort([before, again])
    rows, first = np.unique(again[order], return_index=True)
    return rows, before[order][first]


def _unusual(sides: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The sorted rows of the objects whose size is unusual for their class.

    Args:
        sides: (R,) float64, logarithms of the sides.
        labels: (R,) int64.
    """
    order = np.argsort(labels, kind="stable")
    ends: np.ndarray = np.flatnonzero(np.diff(labels[order])) + 1
    rows = []
    for its in np.split(order, ends):
        if len(its) >= FEWEST:
            apart = np.abs(sides[its] - np.median(sides[its]))
            limit = max(np.log(UNUSUAL_FACTOR), UNUSUAL_DEVIATIONS * DEVIATION * float(np.median(apart)))
            rows.append(its[apart > limit])
    return np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)


def in_two_splits(splits: Mapping[str, Iterable[AnyFile]]) -> Iterator[str]:
    """Finds pictures that are in two splits: the same file, or a copy of it under any name.

    Args:
        splits: the pictures of each split.
    """
    if len(splits) < 2:
        return
    places = [(name, picture) for name, pictures in splits.items() for picture in pictures]
    groups = equal_files([picture for _, picture in places], [name for name, _ in places])
    for a, b in combinations(splits, 2):
        same = []
        for group in groups:
            of_a = [picture for name, picture in map(places.__getitem__, group) if name == a]
            of_b = [picture for name, picture in map(places.__getitem__, group) if name == b]
            same += [(of_a[0], picture) for picture in of_b if of_a]
        if same:
            first = min(same)
            yield f"pictures that are in {a} and in {b}: {len(same)}, such as {first[0]} and {first[1]}"


def counted(n: int, one: str, many: str) -> str:
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
