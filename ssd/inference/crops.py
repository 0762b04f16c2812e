"""Writes each object that `ssd detect` finds as a picture of its own: crops/<class>/<picture>_<n>.png."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from PIL.Image import Image

from ssd.drawing import is_drawing, save_png
from ssd.runtime.files import Names

FOLDER = "crops"  # in the folder of the results
# A crop, or what a killed process left of one; the first group that matches is the name of the picture.
CROP = re.compile(r"(.+)_\d+\.png|\.(.+)_\d+\.png\.\d+\.tmp", re.DOTALL)


def plan_crops(pictures: Iterable[Path], out: Path, *, resume: bool) -> dict[Path, str]:
    """Chooses for each picture a name with which the files of its crops begin.

    Args:
        pictures: the pictures.
        out: folder of the results.
        resume: whether crops of an earlier run may be there.

    Raises:
        FileExistsError: without `resume`, the folder of the crops is not empty. People sort crops, and those of two
            runs would be mixed.
    """
    folder = out / FOLDER
    if folder.exists() and not (folder.is_dir() and (resume or not any(folder.iterdir()))):
        raise FileExistsError(
            f"{folder}: exists; continue its run with --resume, move it away, or choose another --out"
        )
    taken = Names()
    return {picture: taken.add(os.path.splitext(picture.name)[0]) for picture in pictures}


def save_crops(crops: Sequence[Image], labels: Sequence[int], out: Path, name: str, folders: Sequence[str]) -> None:
    """Writes the crops of a picture. The n-th crop is that of its n-th detection, counted from 1.

    Args:
        crops: see `Detections.crops`.
        labels: the label of each.
        out: folder of the results.
        name: see `plan_crops`.
        folders: name of the folder of each class, without background, see `ssd.runtime.files.file_names`.

    Raises:
        FileExistsError: a file that `ssd detect` did not write has the name of a crop.
    """
    for n, (crop, label) in enumerate(zip(crops, labels, strict=True), start=1):
        target = out / FOLDER / folders[label - 1] / f"{name}_{n}.png"
        if os.path.lexists(target) and not is_drawing(target):
            raise FileExistsError(f"{target}: would be replaced, but `ssd detect` did not write it")
        target.parent.mkdir(parents=True, exist_ok=True)
        save_png(crop, target)


def discard_crops(out: Path, names: Container[str]) -> None:
    """Removes crops of pictures whose results are missing, which a stopped run has left.

    Args:
        out: folder of the results.
        names: names of these pictures, see `plan_crops`.
    """
    for path in (out / FOLDER).glob("*/*"):
        match = CROP.fullmatch(path.name)
        if match and (match[1] or match[2]) in names and (match[2] or is_drawing(path)):
            path.unlink(missing_ok=True)
