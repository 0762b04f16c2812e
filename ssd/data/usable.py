"""The usable objects of a data set: boxes in pixels of upright pictures, from what annotation files say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ssd.data.annotations import Annotations, Dropped, UnknownClassError
from ssd.data.picture_sizes import Comparison, compare, stored, turn_upright, upright
from ssd.data.plausibility import check_unit, describe_beyond, describe_other_unit, reaching_beyond
from ssd.options import ReadOptions
from ssd.runtime.faults import Faults
from ssd.runtime.packed import Packed


class BoxFormat(Protocol):
    """What the four numbers of a box mean in a format; `ssd.data.dataset.BoxDataset` has the documentation."""

    FORMAT: ClassVar[str]
    IN_FRACTIONS: ClassVar[bool]

    @staticmethod
    def _edges(written: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]: ...

    @staticmethod
    def _sound(
        written: np.ndarray, edges: np.ndarray, height: np.ndarray, width: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]: ...


class Usable(NamedTuple):
    """The objects that can be used, and what was noticed about all."""

    objects: Packed[dict[str, Tensor]]  # the entries of a target, and "areas", "crowd", "index" and "beyond"
    dropped: list[Dropped]
    doubts: list[str]  # see `BoxDataset`
    sizes: Comparison  # of the pictures with those in the annotations


def usable_objects(read: Annotations, classes: Sequence[str], form: type[BoxFormat], options: ReadOptions) -> Usable:
    """Clips all objects to their pictures and drops unusable ones.

    Args:
        read: the annotations.
        classes: names of the classes.
        form: the format of the boxes.
        options: see `BoxDataset`.

    Raises:
        ValueError: an object has a class that is not in `classes`, all boxes are in another unit than that of the
            format, or `options.strict` is set and an object cannot be used.
    """
    faults = Faults()
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    labels = np.array([label_of.get(name, 0) for name in read.names], np.int64)[read.labels]
    picture_of = np.arange(len(read.pictures)).repeat(np.diff(read.row_splits))
    for name in np.unique(read.labels[labels == 0]):
        file = read.files[picture_of[np.argmax(read.labels == name)]]
        known = f"the classes are {tuple(classes)} (--only leaves objects of other classes out)"
        faults.add(UnknownClassError(f"{file}: unknown class {read.names[name]!r}; {known}"))
    faults.check()
    check_unit(read, form.IN_FRACTIONS, form.FORMAT)
    finite = np.isfinite(read.boxes).all(1)
    written = np.where(finite[:, None], read.boxes, 0.0).T
    # The boxes are in pixels of this size. After that they are scaled by `factor` to the actual one.
    actual = stored(read.headers) if options.boxes_as_stored else upright(read.headers)
    sizes = compare(read.sizes, actual)
    size = np.where(sizes.resized[:, None], read.sizes, actual).astype(np.float64)
    width, height = size[picture_of].T
    edges = np.stack(form._edges(written, height, width))  # (4, R)
    extended, inside = form._sound(written, edges, height, width)
    dropped: list[Dropped] = []
    unusable = np.flatnonzero(~(finite & extended & inside))
    for row in unusable:
        box = tuple(read.boxes[row].tolist())
        if not finite[row]:
            reason = "no box" if np.isnan(box).all() else "not finite"
        elif not extended[row]:
            x0, y0, x1, y1 = edges[:, row]
            reason = "no width or height"
            if x1 < x0 or y1 < y0:
                reason += ", because its corners are swapped"
        else:
            reason = f"outside the picture of {width[row]:.0f} x {height[row]:.0f}"
        file, name = read.files[picture_of[row]], read.names[read.labels[row]]
        dropped.append(Dropped(file, int(read.indices[row]), name, box, reason))
    if options.strict:
        for drop in dropped:
            faults.add(ValueError(str(drop).replace(" left out:", " cannot be used:")))
        faults.check()
    beyond = reaching_beyond(read, edges, height, width)
    factor = (actual / size)[picture_of]
    areas = np.where(np.isnan(read.areas), np.nan, read.areas * factor.prod(1))
    edges = np.clip(edges, 0, np.stack([width, height] * 2)) * np.tile(factor.T, (2, 1))
    if options.boxes_as_stored:
        edges = turn_upright(edges, read.headers[picture_of])
    x0, y0, x1, y1 = edges
    columns = {
        "boxes": np.stack([x0, y0, x1, y1], 1).astype(np.float32),
        "labels": labels,
        "difficult": read.difficult | read.crowd,
        "areas": np.where(np.isnan(areas), (x1 - x0) * (y1 - y0), areas),
        "crowd": read.crowd,
        "index": read.indices.astype(np.int64),
        "beyond": np.isin(np.arange(len(labels)), beyond),
    }
    packed = Packed({name: torch.from_numpy(c) for name, c in columns.items()}, torch.from_numpy(read.row_splits))
    objects = packed.where(torch.from_numpy(finite & extended & inside))
    doubts = [
        *describe_other_unit(read, form.IN_FRACTIONS, unusable[finite[unusable]]),
        *describe_beyond(read, beyond),
    ]
    return Usable(objects, dropped, doubts, sizes)
