"""What a user should know about how a data set was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch import Tensor

from ssd.data.annotations import Annotations
from ssd.data.depth import FULL, Levels
from ssd.data.picture_sizes import Comparison
from ssd.data.reading import DEEP
from ssd.runtime.faults import first_of


def notes_of(
    read: Annotations,
    levels: Levels | None,
    rule: Literal["background", "ignore"],
    compared: Comparison,
    sizes: Tensor,
) -> Iterator[str]:
    """Describes what was read in another way than a user may expect.

    Args:
        read: the annotations.
        levels, sizes: see `BoxDataset`.
        rule: what was done with pictures without annotation.
        compared: how the sizes in the annotations compare with those of the pictures.
    """
    if deep := np.count_nonzero(read.headers[:, 3] == DEEP):
        low, high = (f"{value:.10g}" for value in levels or FULL)
        yield f"pictures with more than 8 bits per sample: {deep}; {low} becomes black and {high} white"
    if n := len(read.unreadable):
        yield f"pictures left out, because they cannot be read: {n} of {len(read.pictures) + n}"
        yield from (f"  {line}" for line in first_of([error for _, error in read.unreadable]))
    for remark, (number, file) in read.remarks.items():
        yield f"annotations with {remark}: {number}, such as {file}"
    if rule == "background" and read.n_unlabelled:
        yield (
            f"pictures without annotation, used as pictures without objects: {read.n_unlabelled} "
            "(to leave them out: --unlabelled ignore)"
        )
    elif read.n_unlabelled:
        yield (
            f"pictures without annotation, ignored: {read.n_unlabelled} "
            "(to use them as pictures without objects: --unlabelled background)"
        )
    for differ, what in (
        (compared.resized, "boxes that are scaled, because the picture was resized after annotation"),
        (
            compared.other,
            "boxes that may be wrong, because the annotation gives another size (if they were drawn on the "
            "pictures as stored, without EXIF's orientation: --boxes-as-stored)",
        ),
    ):
        for i in np.flatnonzero(differ)[:1]:
            (w, h), (width, height) = read.sizes[i], sizes[i].tolist()
            yield (
                f"pictures with {what}: {differ.sum()}, such as {read.pictures[i]}: {width} x {height}, and "
                f"{w} x {h} in {read.files[i]}"
            )
