"""The options of reading a data set."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple


class ReadOptions(NamedTuple):
    """How the annotations and pictures of a data set are read. These are also flags of `ssd info`, `train` and `eval`.

    The annotation of each field has its type and its meaning.
    """

    unlabelled: Annotated[
        Literal["background", "ignore"] | None,
        "what to do with pictures that have no annotation; background: use them as pictures without objects; ignore: "
        "leave them out (default: background in YOLO's format, which defines them so; otherwise ignore)",
    ] = None
    boxes_as_stored: Annotated[
        bool, "the boxes were drawn on the pictures as they are stored, without the orientation that EXIF gives"
    ] = False
    strict: Annotated[bool, "an object that cannot be used is an error; by default it is left out and listed"] = False
