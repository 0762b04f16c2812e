"""What `ssd detect` leaves in a folder: a drawing of each picture, and detections.json.

It replaces only what it wrote itself before: drawings and detections.json carry its mark.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from ssd.atomic import replacing
from ssd.data.reading import SUFFIXES, PictureFile
from ssd.detector import Detections
from ssd.draw import MARK, is_drawing
from ssd.ranks import ALONE, Ranks

JSON_NAME = "detections.json"


def plan_drawings(paths: Iterable[str | os.PathLike[str]], out: Path, *, draw: bool = True) -> dict[Path, Path]:
    """Finds the pictures and a place in the folder `out` for the drawing of each, before any work.

    Args:
        paths: pictures, and folders that are searched for pictures; drawings found there are passed over.
        out: folder of the results; need not exist.
        draw: whether there will be drawings; without, nothing is in their way.

    Returns:
        the drawing of each picture: its path inside the folder named, or its name, and a number where two are equal.

    Raises:
        FileNotFoundError: a path does not exist.
        FileExistsError: an input, or a file that is not ours, would be replaced.
        ValueError: there is no picture at all.
    """
    paths = list(map(Path, paths))
    drawings: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found = [(p, p.relative_to(path)) for p in inside if not is_drawing(p)]
        elif path.exists():
            found = [(path, Path(path.name))]
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
        for picture, name in found:
            if picture in drawings:
                continue
            target, n = name.with_suffix(".png"), 1
            while str(target).lower() in taken:  # two folders may hold pictures of one name; some disks ignore case
                n += 1
                target = name.with_name(f"{name.stem}_{n}.png")
            taken.add(str(target).lower())
            drawings[picture] = out / target
    if not drawings:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    inputs = {_identity(picture) for picture in drawings}
    for target in (out / JSON_NAME, *(drawings.values() if draw else ())):
        _check_replaceable(target, inputs)
    return drawings


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
    if not ours(target):
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
        self.file.write(json.dumps({"id": self.count, **row}))


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

    def add(self, picture: PictureFile, found: Detections) -> None:
        """Adds one picture and what was found there."""
        self.images.add(file_name=str(picture.path), width=picture.width, height=picture.height)
        for (x0, y0, x1, y1), label, score in zip(*(column.tolist() for column in found), strict=True):
            self.annotations.add(
                image_id=self.images.count,
                category_id=label,
                bbox=[round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                area=round((x1 - x0) * (y1 - y0), 2),
                iscrowd=0,
                score=round(score, 5),
            )
