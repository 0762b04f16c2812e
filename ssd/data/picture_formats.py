"""Which files are pictures, which of them can be read here, how Pillow opens them, and how they are turned upright."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from os import PathLike
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError, features

_ALWAYS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_HEIF = (".heic", ".heif", ".hif")
_AVIF = (".avif",)
_JPEG2000 = (".jp2", ".j2k")
_OTHERS = (".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf")  # JPEG XL, raw data of cameras

# Pictures that this installation cannot read, by their suffix; the value says what to do with {}.
UNREADABLE: dict[str, str] = {
    **({} if find_spec("pi_heif") else dict.fromkeys(_HEIF, "pip install 'ssd-ext[heif]'")),
    **({} if find_spec("PIL._avif") else dict.fromkeys(_AVIF, "pip install --upgrade pillow")),
    **({} if features.check("jpg_2000") else dict.fromkeys(_JPEG2000, "install a Pillow with JPEG 2000")),
    **dict.fromkeys(_OTHERS, "convert {} to JPEG or PNG"),
}
SUFFIXES = tuple(suffix for suffix in (*_ALWAYS, *_HEIF, *_AVIF, *_JPEG2000) if suffix not in UNREADABLE)

ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4
# For each EXIF orientation, the function that turns an array (H, W, 3) upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def is_picture(path: str | PathLike[str]) -> bool:
    """Tells by its name whether a file is a picture that can be read here."""
    return _suffix(path) in SUFFIXES


def is_unreadable(path: str | PathLike[str]) -> bool:
    """Tells by its name whether a file is a picture of a format that cannot be read here."""
    return _suffix(path) in UNREADABLE


def describe_unreadable(paths: Iterable[str | PathLike[str]]) -> list[str]:
    """Counts pictures that cannot be read here and names one: one line for each thing to do about them."""
    by_remedy: dict[str, list[str | PathLike[str]]] = {}
    for path in paths:
        by_remedy.setdefault(UNREADABLE[_suffix(path)], []).append(path)
    return [
        f"{len(some)} pictures cannot be read here, such as {some[0]}: {remedy.format('them')}"
        if len(some) > 1
        else f"{some[0]}: the picture cannot be read here: {remedy.format('it')}"
        for remedy, some in by_remedy.items()
    ]


def open_picture(source: str | PathLike[str] | IO[bytes]) -> Image.Image:
    """Opens a picture with Pillow, see `PIL.Image.open`. HEIF, which Pillow does not know, is read by pi-heif.

    Raises:
        Exception: Pillow's plugins raise many kinds of errors for damaged files.
    """
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if "HEIF" in Image.OPEN or not find_spec("pi_heif"):
            raise
        import pi_heif  # imported only here: this takes as long as reading a thousand headers

        pi_heif.register_heif_opener()
        return open_picture(source)


def _suffix(path: str | PathLike[str]) -> str:
    return os.path.splitext(path)[1].lower()
