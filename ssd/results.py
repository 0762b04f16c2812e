"""What `ssd detect` leaves in a folder: a drawing of each picture, and detections.json.

It replaces only what it wrote itself before: drawings and detections.json carry its mark.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from ssd.atomic import replacing
from ssd.data.reading import SUFFIXES
from ssd.detector import Detections
from ssd.draw import MARK, is_drawing
from ssd.ranks import ALONE, Ranks

JSON_NAME = "detections.json"


def plan_drawings(
    paths: Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    draw: bool = True,
    on_error: Callable[[OSError], None] | None = None,
) -> dict[Path, Path]:
    """Finds the pictures and a place in the folder `out` for the drawing of each, before any work.

    Args:
        paths: pictures, and folders that are searched for pictures; drawings found there are passed over.
        out: folder of the results; need not exist.
        draw: whether there will be drawings; without, nothing is in their way.
        on_error: called with the error of a folder that cannot be searched, which is left out; None: raised.

    Returns:
        the drawing of each picture: its path inside the folder named, or its name, and a number where two are equal or
        one would be the folder of another.

    Raises:
        FileNotFoundError: a path does not exist.
        FileExistsError: an input, or a file that is not ours, would be replaced.
        OSError: a folder cannot be searched, without `on_error`.
        ValueError: there is no picture at all, or a path is neither a file nor a folder.
    """
    paths = list(map(Path, paths))
    names: dict[Path, Path] = {}  # of each picture inside of the folder of the results
    for path in paths:
        if path.is_dir():
            for picture in _search(path, on_error):
                names.setdefault(picture, picture.relative_to(path))
        elif path.is_file():
            names.setdefault(path, Path(path.name))
        elif path.exists():
            raise ValueError(f"{path}: neither a file nor a folder")
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not names:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    drawings: dict[Path, Path] = {}
    # Two folders may hold pictures of one name, and one may have the name of a drawing; some disks ignore case.
    taken = {str(folder).lower() for name in names.values() for folder in name.parents}
    for picture, name in names.items():
        target, n = name.with_suffix(".png"), 1
        while str(target).lower() in taken:
            n += 1
            target = name.with_name(f"{name.stem}_{n}.png")
        taken.add(str(target).lower())
        drawings[picture] = out / target
    inputs = {_identity(picture) for picture in drawings if os.path.exists(picture)}
    for target in (out / JSON_NAME, *(drawings.values() if draw else ())):
        _check_replaceable(target, inputs)
    return drawings


def _search(folder: Path, on_error: Callable[[OSError], None] | None) -> list[Path]:
    """What a folder and those in it hold under the name of a picture, in order, but for drawings."""

    def fail(error: OSError) -> None:
        if on_error is None:
            raise error
        on_error(error)

    found = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names)
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and not is_drawing(path))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_replaceable(target: Path, inputs: set[tuple[int, int]]) -> None:
    for folder in target.parents:
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder}: is a file, where {target} needs a folder; choose another --out")
    if not os.path.lexists(target):
        return
    if target.exists() and _identity(target) in inputs:
        raise FileExistsError(f"{target}: is an input, which its drawing would replace; choose another --out")
    ours = _is_results if target.name == JSON_NAME else is_drawing
    if not (target.is_file() and ours(target)):
        raise FileExistsError(f"{target}: would be replaced, and is not of `ssd detect`; choose another --out")


def _is_results(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["info"]["description"] == MARK
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextmanager
def coco_results(out: Path, classes: Sequence[str]) -> Iterator[CocoResults]:
    """Detections in COCO's format, written to detections.json as they come; the file is there when the block has ended.

    Args:
        out: folder of the file, made where missing.
        classes: names without background; the category of `classes[i - 1]` is i.
    """
    out.mkdir(parents=True, exist_ok=True)
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    with (
        replacing(out / JSON_NAME) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        TemporaryFile("w+", encoding="utf-8", dir=out) as images,
    ):
        file.write(f'{{"info": {json.dumps({"description": MARK})},\n"categories": {json.dumps(categories)},\n')
        file.write('"annotations": [')
        yield CocoResults(_Rows(file), _Rows(images))
        file.write('\n],\n"images": [')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write("\n]}\n")


@contextmanager
def shared_results(out: Path, classes: Sequence[str], ranks: Ranks = ALONE) -> Iterator[CocoResults]:
    """`coco_results` of several processes: each writes its part, of which the first one makes the whole.

    Args:
        out, classes: see `coco_results`.
        ranks: the processes; the pictures of each follow those of the one before.
    """
    if ranks.size == 1:
        with coco_results(out, classes) as results:
            yield results
        return
    parts = [out / f".part_{rank}" for rank in range(ranks.size)]
    try:
        with coco_results(parts[ranks.rank], classes) as results:
            yield results
        ranks.gather(None)  # all parts are there
        if ranks.first:
            with coco_results(out, classes) as whole:
                for part in parts:
                    whole.extend(json.loads((part / JSON_NAME).read_text(encoding="utf-8")))
        ranks.gather(None)
    finally:
        shutil.rmtree(parts[ranks.rank], ignore_errors=True)


class _Rows:
    """The elements of a JSON list, one a line."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.count = file, 0

    def add(self, **row: Any) -> None:
        """Adds a row with the next id, counted from 1."""
        self.file.write(",\n" if self.count else "\n")
        self.count += 1
        self.file.write(json.dumps({"id": self.count, **row}, allow_nan=False))


class CocoResults:
    """Where the rows go; the list under "annotations" is what COCO.loadRes takes."""

    def __init__(self, annotations: _Rows, images: _Rows) -> None:
        self.annotations, self.images = annotations, images

    def extend(self, part: dict[str, Any]) -> None:
        """Adds the pictures and objects of another such file, behind those that are there."""
        before = self.images.count
        for row in part["images"]:
            self.images.add(**row | {"id": self.images.count + 1})
        for row in part["annotations"]:
            self.annotations.add(**row | {"id": self.annotations.count + 1, "image_id": before + row["image_id"]})

    def add(self, found: Detections) -> None:
        """Adds one picture and what was found there."""
        picture = found.picture
        self.images.add(file_name=str(picture.path), width=picture.width, height=picture.height)
        for row in found.to_coco(self.images.count):
            self.annotations.add(**row)
