"""Finds the pictures for `ssd detect`, and plans its drawings. Only files that `ssd detect` wrote are replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ssd.data.folder import walk
from ssd.data.picture_formats import SUFFIXES, describe_unreadable, is_picture, is_unreadable
from ssd.data.reading import ImageReadError
from ssd.drawing import is_drawing
from ssd.inference.labels import LABELS_MARK
from ssd.inference.results import JSON_NAME, info_of, parts_of
from ssd.runtime.files import Names


def plan_drawings(
    paths: Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    draw: bool = True,
    on_error: Callable[[Exception], None] | None = None,
) -> dict[Path, Path]:
    """Finds the pictures, and chooses in the folder `out` a file for the drawing of each of them.

    Args:
        paths: pictures, and folders that are searched for pictures. Drawings and labels by `ssd detect` in these
            folders are left out.
        out: folder of the results; need not exist.
        draw: whether drawings will be written; if not, existing files in their places do not matter.
        on_error: called with the error of a folder that cannot be searched, and with an `ImageReadError` that counts
            the pictures in folders whose format cannot be read here. Both are left out. None: the error is raised.

    Returns:
        For each picture the path of its drawing in `out`: the picture's path inside the given folder, or the file name
        of a picture that was given itself, with the suffix .png. A number is added if two drawings would have the same
        path, or if a drawing would have the path of a folder.

    Raises:
        FileNotFoundError: a path does not exist.
        FileExistsError: an input, or a file that `ssd detect` did not write, would be replaced.
        OSError, ImageReadError: see `on_error`.
        ValueError: there is no picture at all, or a path is neither a file nor a folder.
    """
    inputs = list(map(Path, paths))
    unreadable: list[str] = []

    def fail(error: Exception) -> None:
        if on_error is None:
            raise error
        on_error(error)

    names: dict[str, str] = {}  # path of each picture -> path in `out`, before it gets the suffix .png
    for path in inputs:
        if path.is_dir():
            for name in _search(path, fail):
                picture = name if str(path) == "." else os.path.join(path, name)
                if is_picture(name):
                    names.setdefault(picture, name)
                else:
                    unreadable.append(picture)
        elif path.suffix.lower() == ".tar":
            raise ValueError(f"{path}: archives are not read here; unpack it")
        elif path.is_file():
            names.setdefault(str(path), path.name)
        elif path.exists():
            raise ValueError(f"{path}: neither a file nor a folder")
        else:
            hint = "; URLs are not read here" if re.match(r"\w{2,}:/", str(path)) else ""
            raise FileNotFoundError(f"{path}: no such file or folder{hint}")
    for line in describe_unreadable(unreadable):
        fail(ImageReadError(line))
    if not names:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, inputs))}")
    drawings: dict[Path, Path] = {}
    # Two folders may have pictures of the same name, and a folder may have the name of a drawing.
    folders = set(map(Path, set(map(os.path.dirname, names.values()))))
    taken = Names(str(above) for folder in folders for above in (folder, *folder.parents))
    for picture, name in names.items():
        drawings[Path(picture)] = out / taken.add(os.path.splitext(name)[0], ".png")
    _check_replaceable([out / JSON_NAME, *parts_of(out), *(drawings.values() if draw else ())], drawings)
    return drawings


def _search(folder: Path, fail: Callable[[OSError], None]) -> list[str]:
    """Finds the pictures in a folder and its subfolders, without drawings: their paths inside the folder, sorted.

    Pictures that cannot be read here are among them, and those that `walk` leaves out are not. Folders of labels of
    `ssd detect` have copies of pictures, and are left out, unless `folder` is one.

    The paths are str, since creating a hundred thousand `Path`s takes seconds.
    """

    found = []
    for parent, below, names in walk(folder, fail):
        inside = os.path.relpath(parent, folder)
        if inside != "." and os.path.lexists(os.path.join(parent, LABELS_MARK)):
            below.clear()
            continue
        for name in names:
            drawn = name.lower().endswith(".png") and is_drawing(os.path.join(parent, name))
            if (is_picture(name) or is_unreadable(name)) and not drawn:
                found.append(name if inside == "." else os.path.join(inside, name))
    return sorted(found, key=lambda name: name.split(os.sep))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_replaceable(targets: Iterable[Path], pictures: Iterable[Path]) -> None:
    """Raises FileExistsError if a target would replace an input, or a file that `ssd detect` did not write."""
    needed_by = {target.parent: target for target in reversed(list(targets))}
    for parent, target in needed_by.items():
        for folder in (parent, *parent.parents):
            if folder.exists() and not folder.is_dir():
                raise FileExistsError(f"{folder}: is a file, and {target} needs a folder there; choose another --out")
    inputs: set[tuple[int, int]] | None = None
    for target in filter(os.path.lexists, targets):
        if inputs is None:
            inputs = {_identity(picture) for picture in pictures if picture.exists()}
        if target.exists() and _identity(target) in inputs:
            raise FileExistsError(f"{target}: is an input and would be replaced by its drawing; choose another --out")
        if not (target.is_file() and (is_drawing(target) if target.suffix == ".png" else info_of(target))):
            raise FileExistsError(
                f"{target}: would be replaced, but `ssd detect` did not write it; choose another --out"
            )
