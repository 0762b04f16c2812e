"""The options of reading a data set, and the overlap of tiles. This module imports nothing slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Literal, NamedTuple

LARGEST_OVERLAP = 0.9
OVERLAP = 0.2  # of neighbouring tiles, as a fraction of their side


def one_to_32(value: int) -> None:
    """Raises ValueError unless the value is a number of bits that a sample can have."""
    if not 1 <= value <= 32:
        raise ValueError(f"must be from 1 to 32, got {value}")


def an_overlap(value: float) -> None:
    """Raises ValueError unless the value can be the overlap of tiles."""
    if not 0 <= value <= LARGEST_OVERLAP:
        raise ValueError(f"must be from 0 to {LARGEST_OVERLAP}, got {value}")


def share(value: float) -> None:
    """Raises ValueError unless the value is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"must be from 0 to 1, got {value}")


def some_classes(names: object) -> None:
    """Raises ValueError unless there is at least one name."""
    if isinstance(names, str) or not isinstance(names, Collection) or not names:
        raise ValueError(f"must be a list of at least one class, got {names!r}")


def check_known(option: str, names: Iterable[str], classes: Sequence[str]) -> None:
    """Raises ValueError if a name in the value of an option is not one of the classes, which the message lists."""
    if unknown := [name for name in dict.fromkeys(names) if name not in classes]:
        named = ", ".join(map(repr, unknown))
        raise ValueError(f"{option}: there is no class {named}; the classes are {', '.join(classes)}")


class ReadOptions(NamedTuple):
    """How the annotations and pictures of a data set are read. These are also flags of `ssd info`, `train`, `eval`
    and `convert-data`.

    The annotation of each field has its type and its meaning.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import ReadOptions, open_dataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> Image.new("RGB", (80, 40)).save("empty.png")
        >>> _ = Path("boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\\na.png,cat,10,5,30,25")
        >>> len(open_dataset(".")), len(open_dataset(".", options=ReadOptions(unlabelled="background")))
        (1, 2)
    """

    unlabelled: Annotated[
        Literal["background", "ignore"] | None,
        "what to do with pictures that have no annotation; background: use them as pictures without objects; ignore: "
        "leave them out (default: background in YOLO's format, which defines them so; otherwise ignore)",
    ] = None
    only: Annotated[
        tuple[str, ...] | None,
        "classes whose objects are used; those of all other classes are left out, as if nobody had annotated them "
        "(default: all classes)",
        some_classes,
    ] = None
    boxes_as_stored: Annotated[
        bool, "the boxes were drawn on the pictures as they are stored, without the orientation that EXIF gives"
    ] = False
    bits: Annotated[
        int | None,
        "bits per sample that pictures with more than 8 use, such as 12 in files of 16: 0 becomes black, and the "
        "largest number of so many bits white (default: the smallest and the largest value of all pictures)",
        one_to_32,
    ] = None
    skip_unreadable: Annotated[
        float,
        "decode all pictures before the start, and leave out those that cannot be read, if they are at most this share "
        "of the pictures; without a number 0.01",
        share,
    ] = 0.0
    strict: Annotated[bool, "an object that cannot be used is an error; by default it is left out and listed"] = False
