"""Writes and reads the detections of `ssd detect`: detections.json, and the parts that it is made of.

During a run each process writes one line per picture to its part, detections.RANK.jsonl, from which a stopped run can
be resumed. Drawings, detections.json and its parts carry a mark, and only files with this mark are replaced.
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
from ssd.inference.crops import discard_crops
from ssd.inference.detections import Detections
from ssd.runtime.files import discard_leftovers, locked, naming, replacing
from ssd.runtime.processes import ALONE, Ranks
from ssd.weights.hub import local_file
from ssd_ext import DetectionOptions

JSON_NAME = "detections.json"
INFO = '{"info": '  # the beginning of detections.json and of its parts
IMAGE = b'{"image": '  # the beginning of a line of a picture
LONGEST_INFO = 1 << 24  # characters of the first line that are read to find "info"
DECODER = json.JSONDecoder()

InfoValue = str | float | bool | None
Info = Mapping[str, InfoValue]  # weights and options of detections, see `made_by`
Line = dict[str, Any]  # JSON: "image", the row of a picture, and "annotations", the rows of its objects, without ids


@contextmanager
def coco_results(out: Path, classes: Sequence[str], info: Mapping[str, InfoValue] = {}) -> Iterator[CocoResults]:
    """Writes detections.json, in COCO's format, picture by picture. The file appears when the `with` block has ended.

    Args:
        out: folder of the file; created if it does not exist.
        classes: class names without background; the category id of `classes[i - 1]` is i.
        info: weights and options of the detections, see `made_by`.

    Yields:
        An object with the method `add` for a picture.
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


def _head(classes: Sequence[str], info: Info) -> str:
    """The text with which detections.json and its parts begin."""
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return f'{INFO}{json.dumps({"description": MARK, **info})},\n"categories": {json.dumps(categories)}'


def first_line(classes: Sequence[str], info: Info) -> str:
    """Returns the first line of a file of detections in JSON lines: the weights, options and classes.

    Args:
        classes, info: see `coco_results`.
    """
    return _head(classes, info).replace("\n", " ") + "}\n"


def append_line(file: FileIO, line: Line) -> None:
    """Writes a line of JSON into an unbuffered file. It is not lost if the process is killed after this call."""
    text = json.dumps(line, allow_nan=False).encode() + b"\n"
    with naming(file.name):
        while text:  # if the disk is full, the first call writes less, and the next one raises
            text = text[file.write(text) :]


def info_of(path: Path) -> Info:
    """Reads from a detections.json, or a part of one, the weights and options of its detections.

    Args:
        path: the file.

    Returns:
        The keys of `made_by` and a description; an empty dict if `ssd detect` did not write the file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            head = file.readline(LONGEST_INFO)
        info: Info
        info, _ = DECODER.raw_decode(head, len(INFO))
        return info if head.startswith(INFO) and info["description"] == MARK else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


class _Rows:
    """Writes the elements of a JSON list, one in each line."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.count = file, 0

    def add(self, **row: object) -> None:
        """Adds a row with the next id, counted from 1."""
        self.file.write(",\n" if self.count else "\n")
        self.count += 1
        self.file.write(json.dumps({"id": self.count, **row}, allow_nan=False))


class CocoResults:
    """Writes the rows of detections.json. pycocotools' `COCO.loadRes` takes the list under "annotations"."""

    def __init__(self, annotations: _Rows, images: _Rows) -> None:
        self.annotations, self.images = annotations, images

    def add(self, line: Line) -> None:
        """Adds one picture and its objects."""
        self.images.add(**line["image"])
        for row in line["annotations"]:
            self.annotations.add(image_id=self.images.count, **row)


class Outputs(NamedTuple):
    """What is written for a picture beside its line. None: nothing."""

    drawing: str | None = None  # path of the drawing inside the folder of the results
    crops: str | None = None  # the files of the crops begin with this name, see `ssd.inference.crops.plan_crops`

    def include(self, wanted: Outputs) -> bool:
        """Whether everything that is wanted is there."""
        return all(name in (None, its) for name, its in zip(wanted, self, strict=True))


NOTHING = Outputs()


def as_line(found: Detections, outputs: Outputs = NOTHING) -> Line:
    """Converts the detections in one picture to the rows of detections.json, without ids.

    Args:
        found: the detections, in a picture that has a path.
        outputs: what was written for the picture.
    """
    picture = found.picture
    image = {"file_name": str(picture.path), "width": picture.width, "height": picture.height}
    image |= {key: value for key, value in outputs._asdict().items() if value is not None}
    return {"image": image, "annotations": rows_of(found)}


def rows_of(found: Detections) -> list[Line]:
    """Converts detections to the rows of detections.json, without ids."""
    return [{key: value for key, value in row.items() if key != "image_id"} for row in found.to_coco()]


def made_by(
    weights: str,
    options: DetectionOptions,
    only: Collection[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    flip: bool = False,
    class_agnostic: bool = False,
) -> Info:
    """Describes the weights and the options that made detections, which are the same for a whole file.

    Args:
        weights: a file, also of the Hugging Face Hub, or "coco". A file is described by its name and a hash of its
            content.
        options: see `ssd_ext.DetectionOptions`.
        only, thresholds, tiles, overlap, flip, class_agnostic: see `ssd.Detector`.

    Returns:
        "weights", the fields of the options, "only" and "thresholds" as JSON, "tiles" and "overlap", and
        "flip" and "class_agnostic": True, or None as in files of earlier versions, which do not have these keys.
    """
    name, path = weights, Path(local_file(weights))
    if path.is_file():
        digest = hashlib.blake2b(digest_size=8)
        for file in filter(Path.is_file, (path, path.with_suffix(".bin"))):  # OpenVINO's weights are beside the .xml
            with open(file, "rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
        name = f"{path.name} ({digest.hexdigest()})"
    chosen = {
        "only": None if only is None else json.dumps(sorted(set(only))),
        "thresholds": None if thresholds is None else json.dumps(thresholds, sort_keys=True),
        "tiles": tiles,
        "overlap": None if tiles is None else overlap,
        "flip": flip or None,
        "class_agnostic": class_agnostic or None,
    }
    return {"weights": name, **options._asdict(), **chosen}


@contextmanager
def open_results(
    out: Path,
    drawings: Mapping[Path, Path],
    classes: Sequence[str],
    info: Info,
    *,
    draw: bool = True,
    crops: Mapping[Path, str] | None = None,
    labels: Path | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
    say: Callable[[str], None] = print,
) -> Iterator[Results]:
    """Opens the results of a run in its folder. The folder is locked, so that no other run can use it meanwhile.

    Args:
        out: the folder; created if it does not exist.
        drawings: pictures and their drawings, see `plan_drawings`.
        classes, info: see `coco_results`.
        draw: whether drawings are written.
        crops: names for the crops of each picture, see `plan_crops`; None if no crops are written.
        labels: folder of labels that will be written at the end; what a killed run left of it is removed.
        resume: whether to keep the results of a stopped run, or of a finished run with fewer pictures. If there are no
            results, a new run begins.
        ranks: the processes of the run; each writes its own part.
        say: called with messages about results of pictures that no longer exist.

    Yields:
        The results, to which detections are added.

    Raises:
        ValueError: another run uses the folder. Without `resume`: a stopped run left results there. With `resume`: the
            results were made with other weights or options, or are of pictures that are not in `drawings`.
    """
    part, head = _part(out, ranks.rank), first_line(classes, info)
    folder = f"{out}{os.sep}"
    plan = {
        str(path): Outputs(str(target).removeprefix(folder) if draw else None, crops[path] if crops else None)
        for path, target in drawings.items()
    }

    def begin() -> bytes:
        """Prepares the parts, and returns for each picture one byte: whether it has to be done."""
        parts = (_part(out, rank) for rank in range(ranks.size))
        discard_leftovers(out / JSON_NAME, *parts, *(drawings.values() if draw else ()), *([labels] if labels else ()))
        _begin(out, plan, head, info, resume, say)
        done = _index(parts_of(out), plan)
        missing = [name not in done or not done[name].outputs.include(wanted) for name, wanted in plan.items()]
        discard_crops(out, {wanted.crops for wanted in compress(plan.values(), missing) if wanted.crops})
        return bytes(missing)

    with locked(out) if ranks.first else nullcontext():
        left = ranks.from_first(begin)
        if len(left) != len(plan):
            raise ValueError(f"process {ranks.rank} finds {len(plan)} pictures, but the first one finds {len(left)}")
        if not part.exists():
            _write_part(part, head)
        with open(part, "rb") as written:
            whole = sum(len(line) for line in written if line.endswith(b"\n"))
        os.truncate(part, whole)  # removes a line that was cut when a process was killed
        with open(part, "ab", buffering=0) as file:
            yield Results(out, plan, list(compress(plan, left)), classes, info, ranks.size, file)


def _part(out: Path, rank: int) -> Path:
    return out / f"detections.{rank}.jsonl"


def parts_of(out: Path) -> list[Path]:
    """Returns the parts of detections.json in a folder, of any number of processes."""
    return sorted(path for path in out.glob("detections.*.jsonl") if path.name.split(".")[1].isdigit())


def _begin(
    out: Path,
    plan: Container[str],
    head: str,
    info: Info,
    resume: bool,
    say: Callable[[str], None],
) -> None:
    """Creates a part if there is none, and checks that all parts belong to this run, see `open_results`."""
    parts, before = parts_of(out), out / JSON_NAME
    if not resume:
        if unfinished := len(_index(parts)):
            raise ValueError(
                f"{out}: has unfinished results of {unfinished} pictures; continue with --resume, or delete "
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
    done = list(_index(parts)) if parts else [line["image"]["file_name"] for path in earlier for line in _unfold(path)]
    _check_named(out, done, plan, say)
    if not parts:
        _write_part(_part(out, 0), head, (line for path in earlier for line in _unfold(path)))


def _write_part(part: Path, head: str, lines: Iterable[Line] = ()) -> None:
    with replacing(part) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head)
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _check_named(out: Path, done: Collection[str], plan: Container[str], say: Callable[[str], None]) -> None:
    """Checks that this run does not lose results by mistake because it does not name their pictures.

    Raises:
        ValueError: the run does not name a picture that has results and still exists, or it names none of the pictures
            that have results.
    """
    unnamed = [name for name in done if name not in plan]
    lost = next((name for name in unnamed if os.path.exists(name)), None)
    if unnamed and (lost is not None or len(unnamed) == len(done)):
        raise ValueError(
            f"{out}: has results of {len(unnamed)} pictures that this run does not name, such as "
            f"{lost or unnamed[0]}; name them as before, from the same working folder, or choose another --out"
        )
    if unnamed:
        say(f"results left out, because their pictures no longer exist: {len(unnamed)}, such as {unnamed[0]}")


class _Place(NamedTuple):
    """The position of the line of a picture."""

    part: Path
    offset: int  # in bytes
    outputs: Outputs


def _index(parts: Iterable[Path], plan: Mapping[str, Outputs] = {}) -> dict[str, _Place]:
    """Finds in the parts a line for each picture, by its name: the first with the planned outputs, or else the last.

    Incomplete lines, and lines that are not of a picture, are skipped.
    """
    places: dict[str, _Place] = {}
    for part in parts:
        with open(part, "rb") as file:
            offset = 0
            for line in file:
                if line.startswith(IMAGE) and line.endswith(b"}\n"):
                    with suppress(ValueError, LookupError, TypeError):
                        image, _ = DECODER.raw_decode(line.decode(), len(IMAGE))
                        name, outputs = image["file_name"], Outputs(*map(image.get, Outputs._fields))
                        if name not in places or not places[name].outputs.include(plan.get(name, NOTHING)):
                            places[name] = _Place(part, offset, outputs)
                offset += len(line)
    return places


def _unfold(path: Path) -> Iterator[Line]:
    """Reads the lines that a detections.json was made of. The file must have one row in each line, as we write it."""

    def rows(file: TextIO, name: str) -> Iterator[dict[str, Any]]:  # JSON
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
    """The results of a run, see `open_results`.

    Each process adds lines to its part, detections.RANK.jsonl. At the end the first process makes detections.json from
    all parts.

    Attributes:
        left: the pictures that have no line yet, in order.
    """

    def __init__(
        self,
        out: Path,
        plan: Mapping[str, Outputs],
        left: Sequence[str],
        classes: Sequence[str],
        info: Info,
        processes: int,
        file: FileIO,
    ) -> None:
        self.out, self.left = out, left
        self._plan, self._head, self._file = plan, (classes, info), file
        self._own = [_part(out, rank) for rank in range(processes)]

    def add(self, found: Detections) -> None:
        """Adds the detections in one picture, whose drawing and crops are already written.

        They are not lost if the process is killed after this call.
        """
        append_line(self._file, as_line(found, self._plan[str(found.picture.path)]))

    def close(self) -> None:
        """Closes the part of this process, so that all processes, on other machines too, see all of its lines."""
        self._file.close()

    def done(self) -> int:
        """Counts the pictures that all processes have added so far."""
        return len(_index(parts_of(self.out)))

    def lines(self) -> Iterator[Line]:
        """Reads the rows of each picture from detections.json, after `finish`."""
        return _unfold(self.out / JSON_NAME)

    def finish(self) -> tuple[int, int]:
        """Makes detections.json from all parts and deletes the parts. After this no process may add detections.

        Returns:
            The numbers of pictures and objects in detections.json.

        Raises:
            FileNotFoundError: the part of a process is missing, for example because the machines do not share the
                folder.
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
