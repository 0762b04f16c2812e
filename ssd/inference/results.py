"""What `ssd detect` writes of its detections: detections.json, and the lines that it is made of.

While it runs, a line for each picture is in detections.RANK.jsonl, from which a run that was stopped goes on. It
replaces only what it wrote itself before: drawings, detections.json and its parts carry its mark.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import FileIO
from itertools import compress, groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, TextIO

from ssd.drawing import MARK
from ssd.inference.detector import Detections
from ssd.runtime.files import discard_leftovers, locked, naming, replacing
from ssd.runtime.processes import ALONE, Ranks
from ssd_ext import DetectionOptions

JSON_NAME = "detections.json"
INFO, IMAGE = '{"info": ', b'{"image": '  # how detections.json and its parts begin, and how a line of a picture does
LONGEST_INFO = 1 << 16
DECODER = json.JSONDecoder()

Line = dict[str, Any]  # "image": the row of a picture; "annotations": those of its objects; without ids


@contextmanager
def coco_results(out: Path, classes: Sequence[str], info: Mapping[str, Any] = {}) -> Iterator[CocoResults]:
    """Detections in COCO's format, written to detections.json as they come; the file is there when the block has ended.

    Args:
        out: folder of the file, made where missing.
        classes: names without background; the category of `classes[i - 1]` is i.
        info: what made them, see `made_by`.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out / JSON_NAME) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        TemporaryFile("w+", encoding="utf-8", dir=out) as images,
    ):
        file.write(_head(classes, info) + ',\n"annotations": [')
        yield CocoResults(_Rows(file), _Rows(images))
        file.write('\n],\n"images": [')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write("\n]}\n")


def _head(classes: Sequence[str], info: Mapping[str, Any]) -> str:
    """What detections.json and its parts begin with."""
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return f'{INFO}{json.dumps({"description": MARK, **info})},\n"categories": {json.dumps(categories)}'


def info_of(path: Path) -> dict[str, Any]:
    """What made a detections.json or a part of one; empty where the file is not of `ssd detect`."""
    try:
        with open(path, encoding="utf-8") as file:
            head = file.read(LONGEST_INFO)
        info, _ = DECODER.raw_decode(head, len(INFO))
        return info if head.startswith(INFO) and info["description"] == MARK else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


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

    def add(self, line: Line) -> None:
        """Adds one picture and what was found there."""
        self.images.add(**line["image"])
        for row in line["annotations"]:
            self.annotations.add(image_id=self.images.count, **row)


def as_line(found: Detections, drawing: str | None = None) -> Line:
    """The rows of one picture and of its objects, without ids.

    Args:
        found: in a picture with a path.
        drawing: name of its drawing inside the folder of the results; None: it has none.
    """
    picture = found.picture
    image = {"file_name": str(picture.path), "width": picture.width, "height": picture.height}
    if drawing is not None:
        image["drawing"] = drawing
    objects = found.to_coco()
    for row in objects:
        del row["image_id"]
    return {"image": image, "annotations": objects}


def made_by(weights: str, options: DetectionOptions) -> dict[str, Any]:
    """What decides over detections: results of one file are all made by the same.

    Args:
        weights: a file, of which the content counts, or "coco".
        options: see `ssd_ext.DetectionOptions`.
    """
    name, path = weights, Path(weights)
    if path.is_file():
        digest = hashlib.blake2b(digest_size=8)
        for file in filter(Path.is_file, (path, path.with_suffix(".bin"))):  # OpenVINO has weights beside its .xml
            with open(file, "rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
        name = f"{path.name} ({digest.hexdigest()})"
    return {"weights": name, **options._asdict()}


@contextmanager
def open_results(
    out: Path,
    drawings: Mapping[Path, Path],
    classes: Sequence[str],
    info: Mapping[str, Any],
    *,
    draw: bool = True,
    resume: bool = False,
    ranks: Ranks = ALONE,
    say: Callable[[str], None] = print,
) -> Iterator[Results]:
    """The results of a run in its folder, which no other run may have meanwhile.

    Args:
        out: the folder, made where missing.
        drawings: pictures and their drawings, see `plan_drawings`.
        classes, info: see `coco_results`.
        draw: whether there are drawings.
        resume: go on from what a run that was stopped, or one of fewer pictures, has left; begin where there is none.
        ranks: the processes of the run; each has a part of its own.
        say: what tells of pictures that are no longer there.

    Raises:
        ValueError: without `resume`, a run that was stopped has left results; with it, they were made by something
            else, or are of pictures that are not in `drawings`; or another run has the folder.
    """
    part, head = _part(out, ranks.rank), _head(classes, info)
    folder = f"{out}{os.sep}"
    plan = {str(p): str(target).removeprefix(folder) if draw else None for p, target in drawings.items()}

    def begin() -> bytes:
        """Which pictures are left, one byte each, once all parts are as they have to be."""
        parts = (_part(out, rank) for rank in range(ranks.size))
        discard_leftovers(out / JSON_NAME, *parts, *(drawings.values() if draw else ()))
        _begin(out, plan, head, info, resume, say)
        done = _index(parts_of(out), plan)
        return bytes(name not in done or (draw and done[name].drawing != drawing) for name, drawing in plan.items())

    with locked(out) if ranks.first else nullcontext():
        left = ranks.from_first(begin)
        if len(left) != len(plan):
            raise ValueError(f"process {ranks.rank} finds {len(plan)} pictures where the first one finds {len(left)}")
        if not part.exists():
            _write_part(part, head)
        with open(part, "rb") as file:
            whole = sum(len(line) for line in file if line.endswith(b"\n"))
        os.truncate(part, whole)  # what a kill has cut
        with open(part, "ab", buffering=0) as file:
            yield Results(out, plan, list(compress(plan, left)), classes, info, ranks.size, file)


def _part(out: Path, rank: int) -> Path:
    return out / f"detections.{rank}.jsonl"


def parts_of(out: Path) -> list[Path]:
    """The parts that are there, of whatever number of processes."""
    return sorted(path for path in out.glob("detections.*.jsonl") if path.name.split(".")[1].isdigit())


def _begin(
    out: Path,
    plan: Container[str],
    head: str,
    info: Mapping[str, Any],
    resume: bool,
    say: Callable[[str], None],
) -> None:
    """Makes sure that there is a part, and that all parts are of this run, see `open_results`."""
    parts, before = parts_of(out), out / JSON_NAME
    if not resume:
        if done := len(_index(parts)):
            raise ValueError(
                f"{out}: holds unfinished results of {done} pictures; continue with --resume, or delete "
                f"{', '.join(map(str, parts))} to start over"
            )
        for empty in parts:
            empty.unlink()
        _write_part(_part(out, 0), head)
        return
    earlier = [] if parts or not before.exists() else [before]
    for path in parts or earlier:
        made = info_of(path)
        for name, value in info.items():
            if made.get(name) != value:
                raise ValueError(
                    f"{path}: was made with {name} {made.get(name)}, and this run has {value}; resume with the same "
                    f"value, or {'delete the file' if parts else 'leave out --resume'} to start over"
                )
    done = _index(parts) if parts else [line["image"]["file_name"] for path in earlier for line in _unfold(path)]
    _check_named(out, done, plan, say)
    if not parts:
        _write_part(_part(out, 0), head, (line for path in earlier for line in _unfold(path)))


def _write_part(part: Path, head: str, lines: Iterable[Line] = ()) -> None:
    with replacing(part) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head.replace("\n", " ") + "}\n")
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _check_named(out: Path, done: Collection[str], plan: Container[str], say: Callable[[str], None]) -> None:
    """Raises ValueError where results would be lost, as their pictures are there and not named."""
    unnamed = [name for name in done if name not in plan]
    lost = next((name for name in unnamed if os.path.exists(name)), None)
    if unnamed and (lost is not None or len(unnamed) == len(done)):
        raise ValueError(
            f"{out}: holds results of {len(unnamed)} pictures that this run does not name, such as "
            f"{lost or unnamed[0]}; name them as before, from the same working folder, or choose another --out"
        )
    if unnamed:
        say(f"results left out, as their pictures no longer exist: {len(unnamed)}, such as {unnamed[0]}")


class _Place(NamedTuple):
    """Where the line of a picture is."""

    part: Path
    offset: int
    drawing: str | None


def _index(parts: Iterable[Path], plan: Mapping[str, str | None] = {}) -> dict[str, _Place]:
    """Of each picture in the parts a line, by its name: the one with the drawing that is planned, or else the last.

    A line that was cut, and what is none, is passed over.
    """
    places: dict[str, _Place] = {}
    for part in parts:
        with open(part, "rb") as file:
            offset = 0
            for line in file:
                if line.startswith(IMAGE) and line.endswith(b"}\n"):
                    with suppress(ValueError, LookupError, TypeError):
                        image, _ = DECODER.raw_decode(line.decode(), len(IMAGE))
                        name, place = image["file_name"], _Place(part, offset, image.get("drawing"))
                        if name not in places or places[name].drawing != plan.get(name):
                            places[name] = place
                offset += len(line)
    return places


def _unfold(path: Path) -> Iterator[Line]:
    """The lines that a detections.json was made of; takes what it was written by, a row a line."""

    def rows(file: TextIO, name: str) -> Iterator[dict[str, Any]]:
        for line in file:
            if line.startswith(f'"{name}": ['):
                break
        for line in file:
            if line.startswith("]"):
                break
            yield json.loads(line.rstrip(",\n"))

    with open(path, encoding="utf-8") as images, open(path, encoding="utf-8") as annotations:
        groups = groupby(rows(annotations, "annotations"), key=lambda row: row["image_id"])
        image_id, objects = next(groups, (None, ()))
        for image in rows(images, "images"):
            found = []
            if image["id"] == image_id:
                found = [{key: row[key] for key in row if key not in ("id", "image_id")} for row in objects]
                image_id, objects = next(groups, (None, ()))
            del image["id"]
            yield {"image": image, "annotations": found}


class Results:
    """What a run has found: each process adds lines to its part, detections.RANK.jsonl, and the first one makes
    detections.json of them.

    Attributes:
        left: pictures without a line, in order.
    """

    def __init__(
        self,
        out: Path,
        plan: Mapping[str, str | None],
        left: Sequence[str],
        classes: Sequence[str],
        info: Mapping[str, Any],
        processes: int,
        file: FileIO,
    ) -> None:
        self.out, self.left = out, left
        self._plan, self._head, self._file = plan, (classes, info), file
        self._own = [_part(out, rank) for rank in range(processes)]

    def add(self, found: Detections) -> None:
        """Adds one picture, which is drawn already; after that a kill does not lose it."""
        line = json.dumps(as_line(found, self._plan[str(found.picture.path)]), allow_nan=False).encode() + b"\n"
        with naming(self._file.name):
            while line:  # of a full disk, the first call tells by writing less
                line = line[self._file.write(line) :]

    def close(self) -> None:
        """Ends the part of this process, so that others see all of it, on other machines too."""
        self._file.close()

    def done(self) -> int:
        """How many pictures all processes have added by now."""
        return len(_index(parts_of(self.out)))

    def finish(self) -> tuple[int, int]:
        """Makes detections.json of all parts and removes them; no process may add anything more.

        Returns:
            how many pictures and objects it has.

        Raises:
            FileNotFoundError: the part of a process is not there, as where the machines do not share the folder.
        """
        parts = sorted({*self._own, *parts_of(self.out)})
        places = _index(parts, self._plan)
        with ExitStack() as stack, coco_results(self.out, *self._head) as whole:
            files = {part: stack.enter_context(open(part, "rb")) for part in parts}
            for picture in self._plan:
                if place := places.get(picture):
                    files[place.part].seek(place.offset)
                    whole.add(json.loads(files[place.part].readline()))
        for part in parts:
            part.unlink()
        return whole.images.count, whole.annotations.count
