"""The annotations of a data set, as a format reads them: kept in arrays and not as Python objects per picture.

Hundreds of thousands of objects would take gigabytes, and each worker of a loader would end up with its own copy.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ssd.data.depth import FULL
from ssd.data.loader import worker_count
from ssd.data.members import AnyFile, file_of, text_of
from ssd.data.reading import Header, ImageReadError, PictureFile, read_header
from ssd.runtime.faults import Faults, first_of
from ssd.runtime.packed import Texts
from ssd.runtime.text import composed, printable
from ssd.runtime.threads import in_threads, in_threads_if_slow

ImageId = int | str | None  # id of a picture in its annotation file; None if the format has no ids

PATIENCE = 3  # seconds until a progress bar appears

NO_BOX = (math.nan,) * 4  # of an object for which the file has no box, such as a point; it is left out and listed
ONLY = "object"  # the class of all objects, if the file names no classes


class Object(NamedTuple):
    """An annotated object, as a file describes it."""

    index: int  # type: ignore[assignment]  # position in its file, from 0; hides tuple.index
    name: str  # of its class
    box: tuple[float, ...]  # four numbers, in the convention of the format
    difficult: bool = False  # ignored in evaluation
    crowd: bool = False  # many objects in one box, which must not be learned as one object
    area: float | None = None  # in square pixels, if the file has it


class Entry(NamedTuple):
    """A picture and its annotation."""

    annotation: AnyFile  # the file
    picture: AnyFile
    objects: list[Object]
    image_id: ImageId = None
    size: tuple[int, int] = (0, 0)  # width and height that the file gives for the picture; zeros if it gives none
    labelled: bool = True  # whether there is an annotation, and not only a place for it
    remark: str = ""  # what a user should know of the annotation: what it has, and what is done about that


class Dropped(NamedTuple):
    """An annotated object that the reader left out, because its box cannot be used.

    Attributes:
        path: the file of the annotation.
        index: position among the objects of the file, from 0.
        name: name of its class.
        box: the four numbers as written in the file; NaN if it has none.
        reason: why the box cannot be used.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import open_dataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> rows = "filename,class,xmin,ymin,xmax,ymax", "a.png,cat,10,5,30,25", "a.png,dog,80,5,100,25"
        >>> _ = Path("boxes.csv").write_text("\\n".join(rows))
        >>> print(open_dataset(".").dropped[0])
        boxes.csv: object 1 (dog, (80.0, 5.0, 100.0, 25.0)) left out: outside the picture of 80 x 40
    """

    path: AnyFile
    index: int  # type: ignore[assignment]  # hides tuple.index
    name: str
    box: tuple[float, ...]
    reason: str

    def __str__(self) -> str:
        what = self.name if all(map(math.isnan, self.box)) else f"{self.name}, {self.box}"
        return printable(f"{self.path}: object {self.index} ({what}) left out: {self.reason}")


class UnknownClassError(ValueError):
    """An annotation has a class that is not among those given.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import open_dataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> _ = Path("boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\\na.png,cat,10,5,30,25")
        >>> open_dataset(".", classes=["dog"])  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
        ssd.data.annotations.UnknownClassError: boxes.csv: unknown class 'cat'; the classes are ('dog',)
            (--only leaves objects of other classes out)
    """


class Annotations(NamedTuple):
    """The annotations of N pictures with R objects in all."""

    files: Texts[AnyFile]  # N, the annotation file of each picture
    pictures: Texts[AnyFile]  # N
    image_ids: Sequence[ImageId]  # N
    headers: np.ndarray  # (N, 4) int32, `Header`s
    sizes: np.ndarray  # (N, 2) int64, width and height according to the annotation; 0 if it has none
    n_unlabelled: int  # pictures without an annotation, whether they are among the N or ignored
    unreadable: Sequence[Sequence[str]]  # path and error of each picture that was left out, see `read_annotations`
    remarks: Mapping[str, Sequence[Any]]  # for each `Entry.remark` the number of annotations and the first file
    row_splits: np.ndarray  # (N + 1,) int64, rows of the objects of each picture
    names: tuple[str, ...]  # of the classes, composed, in the order of first appearance
    # The R objects, see `Object`:
    indices: np.ndarray  # (R,) int64
    labels: np.ndarray  # (R,) int32, indices into `names`
    boxes: np.ndarray  # (R, 4) float64
    difficult: np.ndarray  # (R,) bool
    crowd: np.ndarray  # (R,) bool
    areas: np.ndarray  # (R,) float64, NaN if the file has no area

    def check_share(self, share: float) -> None:
        """Raises ImageReadError if the unreadable pictures are more than this share of all pictures."""
        n, total = len(self.unreadable), len(self.pictures) + len(self.unreadable)
        if n > share * total:
            lines = first_of([error for _, error in self.unreadable])
            few = f"{n} of {total} pictures cannot be read, and the share that may be left out is {share:.4g}"
            raise ImageReadError("\n  ".join([f"{few} (--skip-unreadable):", *lines]))

    def of_classes(self, names: Sequence[str]) -> Annotations:
        """The same pictures with only the objects of these classes."""
        kept = np.isin(self.labels, [label for label, name in enumerate(self.names) if name in names])
        of_objects = self._fields[self._fields.index("indices") :]
        columns = {name: getattr(self, name)[kept] for name in of_objects}
        return self._replace(row_splits=np.append(0, kept.cumsum())[self.row_splits], **columns)

    def to_arrays(self, declared: Any) -> dict[str, np.ndarray]:
        """Converts everything to arrays without Python objects.

        Args:
            declared: additional values that the subclass for the format has read from the files
                (`BoxDataset._declared`). They have types that JSON can hold, and are stored too.
        """
        fields = self._asdict()
        arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        for name in ("files", "pictures"):
            arrays[f"{name}_bytes"], arrays[f"{name}_ends"] = fields[name].arrays
        names = "names", "n_unlabelled", "unreadable", "remarks"
        plain = {"image_ids": list(self.image_ids), "declared": declared, **{name: fields[name] for name in names}}
        return arrays | {"plain": np.frombuffer(json.dumps(plain).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> tuple[Annotations, Any]:
        """Restores the annotations and `declared` from the result of `to_arrays`."""
        plain = json.loads(arrays["plain"].tobytes())
        annotations = cls(
            files=Texts.of(arrays["files_bytes"], arrays["files_ends"], file_of),
            pictures=Texts.of(arrays["pictures_bytes"], arrays["pictures_ends"], file_of),
            image_ids=pack_ids(plain["image_ids"]),
            headers=arrays["headers"],
            sizes=arrays["sizes"],
            n_unlabelled=plain["n_unlabelled"],
            unreadable=plain["unreadable"],
            remarks=plain["remarks"],
            row_splits=arrays["row_splits"],
            names=tuple(plain["names"]),
            indices=arrays["indices"],
            labels=arrays["labels"],
            boxes=arrays["boxes"],
            difficult=arrays["difficult"],
            crowd=arrays["crowd"],
            areas=arrays["areas"],
        )
        return annotations, plain["declared"]


def read_annotations(
    readers: Iterable[Callable[[], Entry]],
    others: Callable[[Set[str]], Collection[AnyFile]],
    background: bool,
    skip_unreadable: bool,
) -> Annotations:
    """Reads the annotations and picture headers of a dataset, and shows a progress bar if that takes long.

    Args:
        readers: for each picture a function that reads its annotation; may be called in any thread.
        others: takes the paths of the pictures that the readers found, and returns the pictures without annotation.
        background: whether pictures without annotation are used, as pictures without objects.
        skip_unreadable: whether all pictures are decoded, and those that cannot be read are left out.

    Raises:
        FileNotFoundError, ImageReadError, ValueError: see `BoxDataset`. Several errors become one, see `Faults`.
    """
    faults = Faults()

    def read(reader: Callable[[], Entry]) -> tuple[Entry, Header | ImageReadError | None] | None:
        try:
            entry = reader()
            if not (entry.labelled or background):
                return entry, None
            try:
                header = read_header(entry.picture)
                if skip_unreadable:
                    PictureFile(entry.picture, header, FULL).pixels()  # with any levels, no value is out of range
                return entry, header
            except ImageReadError as error:
                if not skip_unreadable:
                    faults.add(error)
                return entry, error
        except (ValueError, OSError) as error:  # `Faults.caught` takes a microsecond, even if there is no error
            faults.add(error)
            return None

    columns = _Columns()
    bar = tqdm(desc="opening", unit="picture", delay=PATIENCE, leave=False, disable=None)
    with bar:

        def add(readers: Iterable[Callable[[], Entry]]) -> None:
            workers = worker_count(None)
            decoding = partial(in_threads, workers=workers, ahead=2 * workers)
            for result in (decoding if skip_unreadable else in_threads_if_slow)(read, readers):
                if result is not None:
                    columns.add(*result)
                bar.update()

        add(readers)
        found = {*columns.pictures, *columns.ignored, *(path for path, _ in columns.unreadable)}
        add(partial(Entry, path, path, [], labelled=False) for path in others(found))
    faults.check()
    return columns.annotations()


class _Columns:
    """The columns of `Annotations` while they grow."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.pictures: list[str] = []
        self.ignored: list[str] = []  # pictures without annotation
        self.image_ids: list[ImageId] = []
        self.unreadable: list[tuple[str, str]] = []
        self.names: dict[str, int] = {}  # the number of each class, by its name
        self.remarks: dict[str, list[Any]] = {}
        self.n_unlabelled = 0
        self.headers, self.sizes = array("i"), array("q")
        self.indices, self.labels, self.row_splits = array("q"), array("i"), array("q", [0])
        self.boxes, self.areas, self.difficult, self.crowd = array("d"), array("d"), bytearray(), bytearray()

    def add(self, entry: Entry, header: Header | ImageReadError | None) -> None:
        """Adds a picture, or only counts it if it has no header."""
        annotation, picture, objects, image_id, size, labelled, remark = entry
        if isinstance(header, ImageReadError):
            self.unreadable.append((text_of(picture), str(header)))
            return
        self.n_unlabelled += not labelled
        if header is None:
            self.ignored.append(text_of(picture))
            return
        self.files.append(text_of(annotation))
        self.pictures.append(text_of(picture))
        self.image_ids.append(image_id)
        self.headers.extend(header)
        self.sizes.extend(size)
        if remark:
            self.remarks.setdefault(remark, [0, str(annotation)])[0] += 1
        for index, name, box, is_difficult, is_crowd, area in objects:
            self.indices.append(index)
            self.labels.append(self.names.setdefault(composed(name), len(self.names)))
            self.boxes.extend(box)
            self.difficult.append(is_difficult)
            self.crowd.append(is_crowd)
            self.areas.append(math.nan if area is None else area)
        self.row_splits.append(len(self.indices))

    def annotations(self) -> Annotations:
        return Annotations(
            files=Texts(self.files, file_of),
            pictures=Texts(self.pictures, file_of),
            image_ids=pack_ids(self.image_ids),
            headers=np.array(self.headers, np.int32).reshape(-1, 4),
            sizes=np.array(self.sizes).reshape(-1, 2),
            n_unlabelled=self.n_unlabelled,
            unreadable=self.unreadable,
            remarks=self.remarks,
            row_splits=np.array(self.row_splits),
            names=tuple(self.names),
            indices=np.array(self.indices),
            labels=np.array(self.labels),
            boxes=np.array(self.boxes).reshape(-1, 4),
            difficult=np.array(self.difficult, bool),
            crowd=np.array(self.crowd, bool),
            areas=np.array(self.areas),
        )


def pack_ids(image_ids: list[ImageId]) -> Sequence[ImageId]:
    """Puts ids into an array if all are integers; otherwise returns the list."""
    try:
        return array("q", image_ids)  # type: ignore[type-var]  # ids of other types raise an error
    except (TypeError, OverflowError):
        return image_ids
