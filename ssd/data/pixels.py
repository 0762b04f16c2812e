"""Work that decodes all pictures of a data set: finding damaged ones, and measuring the range of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from ssd.data.annotations import PATIENCE
from ssd.data.cache import cached
from ssd.data.depth import FULL, Levels, extremes
from ssd.data.loader import worker_count
from ssd.data.members import AnyFile, text_of
from ssd.data.picture_formats import open_picture
from ssd.data.reading import DEEP, ImageReadError, PictureFile
from ssd.runtime.faults import Faults
from ssd.runtime.remote import PartError, absolute
from ssd.runtime.threads import in_threads

Result = TypeVar("Result")


def measure_levels(pictures: Sequence[AnyFile], headers: np.ndarray) -> Levels | None:
    """Measures the smallest and the largest value of all pictures with more than 8 bits per sample.

    Args:
        pictures: paths of N pictures.
        headers: (N, 4) int32, their `Header`s. Only pictures that are `DEEP` by them are decoded.

    Returns:
        The two values; None if there is no such picture, or none with a finite value.

    Raises:
        FileNotFoundError, ImageReadError: a picture cannot be read. Several errors become one, see `Faults`.
    """

    def measure(index: int) -> Levels | Exception | None:
        path = pictures[index]
        try:
            with path.open("rb") as file, open_picture(file) as picture:
                return extremes(picture, file)
        except (FileNotFoundError, PartError) as error:
            return error
        except Exception as error:  # see header_of
            return ImageReadError(f"{path}: cannot decode the picture ({error})")

    faults, found = Faults(), []
    for levels in over_pictures(measure, np.flatnonzero(headers[:, 3] == DEEP).tolist(), "measuring"):
        if isinstance(levels, Exception):
            faults.add(levels)
        elif levels:
            found.append(levels)
    faults.check()
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def find_levels(pictures: Sequence[AnyFile], headers: np.ndarray, bits: int | None = None) -> Levels | None:
    """Chooses the levels of the pictures that have more than 8 bits per sample.

    Args:
        pictures, headers: see `measure_levels`.
        bits: number of bits that are used. None: the levels are measured; if that takes long, they are cached.

    Returns:
        The levels. None if they are to be measured, and no picture has more than 8 bits per sample.

    Raises:
        FileNotFoundError, ImageReadError: see `measure_levels`.
    """
    if bits is not None:
        return 0, 2**bits - 1
    deep = [absolute(text_of(pictures[i])) for i in np.flatnonzero(headers[:, 3] == DEEP).tolist()]
    if not deep:
        return None
    arrays = cached(
        ("levels", *deep),
        lambda: {"levels": np.array(measure_levels(pictures, headers) or FULL)},
        lambda _: deep,
    )
    low, high = arrays["levels"].tolist()
    return low, high


class Damage(NamedTuple):
    """What is wrong with the pixels of pictures."""

    unreadable: list[Exception]  # the error of each picture that cannot be read; its message names the file
    cut: list[AnyFile]  # pictures that lack their last bytes, and are read


def check_pixels(pictures: Sequence[AnyFile]) -> Damage:
    """Decodes all pictures, and finds those that are damaged."""

    def check(index: int) -> Exception | AnyFile | None:
        try:
            picture = PictureFile(pictures[index], levels=FULL)  # with any levels, no value is out of range
            picture.pixels()
        except (ImageReadError, FileNotFoundError, PartError) as error:
            return error
        return picture.path if picture.cut else None

    found = list(over_pictures(check, range(len(pictures)), "checking"))
    return Damage([f for f in found if isinstance(f, Exception)], [f for f in found if isinstance(f, AnyFile)])


def over_pictures(function: Callable[[int], Result], indices: Sequence[int], name: str) -> Iterator[Result]:
    """Yields a function's result for each index, computed in threads; shows a progress bar if that takes long."""
    workers = worker_count(None)
    results = in_threads(function, indices, workers, ahead=2 * workers)
    yield from tqdm(results, name, len(indices), unit="picture", delay=PATIENCE, leave=False, disable=None)
