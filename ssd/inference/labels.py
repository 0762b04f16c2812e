"""Writes the detections of `ssd detect` as a data set, whose labels people correct in a labelling tool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ssd.data.writers import WRITERS, Written, annotated, check_name
from ssd.inference.results import Line
from ssd.runtime.files import Names, new_folder

FORMATS = ("yolo", "voc", "coco")  # each is also the name of the folder of its data set
LABELS_MARK = ".ssd_detect"  # an empty file in each folder of labels: searches for pictures leave out this folder


def plan_labels(pictures: Iterable[Path], folder: Path) -> dict[Path, str]:
    """Chooses a file name for each picture in the data set that `write_labels` writes.

    Args:
        pictures: the pictures.
        folder: the folder of the data set, see `write_labels`.

    Returns:
        For each picture its own name. A number is added if two pictures would have the same name without suffix.

    Raises:
        FileExistsError: the folder of the data set exists. It is never replaced, since people correct labels in it.
        ValueError: the name of a picture cannot be written into annotations.
    """
    if os.path.lexists(folder):
        raise FileExistsError(
            f"{folder}: exists and is not replaced, because its labels may have been corrected; move it away, or "
            "choose another --out"
        )
    taken, names = Names(), {}
    for picture in pictures:
        check_name(picture)
        names[picture] = WRITERS[folder.name].name(picture, taken)
    return names


def write_labels(
    folder: Path,
    lines: Iterable[Line],
    names: dict[Path, str],
    classes: Sequence[str],
    *,
    on_error: Callable[[Exception], None],
) -> list[str]:
    """Writes a data set, complete or not at all: the pictures, as hard links if possible, and their labels.

    Args:
        folder: the folder to write, which must not exist. Its name is one of `FORMATS`.
        lines: for each picture the rows of detections.json.
        names: see `plan_labels`.
        classes: class names without background.
        on_error: called with the error of each picture that no longer exists; the picture is left out.

    Returns:
        Lines for the user: what was written, then what was left out.

    Raises:
        OSError: a file cannot be written.
    """
    format = folder.name
    splits = ["train"] if format == "yolo" else []  # without a split, data.yaml would not name the pictures
    number = 0
    with new_folder(folder) as temporary:
        (temporary / LABELS_MARK).touch()
        writer = WRITERS[format](temporary, classes, splits)
        for line in lines:
            path, size = Path(line["image"]["file_name"]), (line["image"]["width"], line["image"]["height"])
            objects = annotated(line["annotations"], *size)
            picture = Written(number + 1, "", names[path], splits, size, objects)
            try:
                writer.place(picture, path, link=False)
            except FileNotFoundError as error:
                on_error(error)
                continue
            number += 1
            writer.add(picture)
        writer.finish()
    notes = [f"{count} {note}" for note, count in writer.notes.items() if count]
    return [f"labels of {number} pictures: {folder}", *notes]
