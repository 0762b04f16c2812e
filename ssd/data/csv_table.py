"""Reading CSV files with an object in each row: which columns they have, and the rows of each picture."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ssd.data.annotations import ONLY
from ssd.data.folder import Folder
from ssd.data.picture_formats import SUFFIXES
from ssd.runtime.faults import Faults
from ssd.runtime.text import BOMS, printable, read_text

HEAD = 1 << 16  # bytes at the beginning of a file that decide its layout
DELIMITERS = ",;\t"
NAMES = {  # what a column holds by its name, in small letters and without blanks, "_" and "-"
    "picture": "filename imagepath image path img imageid file imgpath imagename imgname filepath imagefile",
    "class": "class label category name labelname classname categoryname annotationtag",
    "xmin": "xmin x1 left bboxxmin upperleftcornerx",
    "ymin": "ymin y1 top bboxymin upperleftcornery",
    "xmax": "xmax x2 right bboxxmax lowerrightcornerx",
    "ymax": "ymax y2 bottom bboxymax lowerrightcornery",
    "left": "bboxx",  # with the next three, as makesense.ai writes them
    "top": "bboxy",
    "boxwidth": "bboxwidth bboxw",
    "boxheight": "bboxheight bboxh",
    "box": "bbox",  # left, top, width and height in one cell
    "width": "width imagewidth imgwidth",
    "height": "height imageheight imgheight",
    "difficult": "difficult",
    "crowd": "isgroupof iscrowd",
    "score": "score confidence",
    "x": "x xcenter xc cx",
}
ROLES = {name: role for role, names in NAMES.items() for name in names.split()}
EDGES = ("xmin", "ymin", "xmax", "ymax")
CORNER = ("left", "top", "boxwidth", "boxheight")
BOX = ("box",)
HEADLESS = (  # the columns of a file without a header: of keras-retinanet, of SKU-110K, and of old makesense.ai
    ("path", "x1", "y1", "x2", "y2", "class_name"),
    ("path", "x1", "y1", "x2", "y2", "class_name", "image_width", "image_height"),
    ("label_name", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "image_name", "image_width", "image_height"),
)
TRUE = ("1", "true", "yes", "1.0")


class Layout(NamedTuple):
    """The layout of a CSV file."""

    delimiter: str
    names: Sequence[str]  # of the columns
    has_header: bool
    columns: dict[str, int]  # by what they hold, see `NAMES`
    problem: str  # why the objects cannot be read; "" if they can
    remark: str = ""  # see `Entry`

    @property
    def of_box(self) -> tuple[str, ...]:
        """What the columns of the box hold: `EDGES`, `CORNER` or `BOX`."""
        return next((roles for roles in (EDGES, CORNER, BOX) if set(roles) <= self.columns.keys()), EDGES)

    @property
    def plain_names(self) -> set[str]:
        """The names of the columns as in `NAMES`."""
        return set(map(_plain, self.names))


class Row(NamedTuple):
    """A row of a CSV file, which describes an object, or a picture without objects."""

    index: int  # type: ignore[assignment]  # from 0, without the header; hides tuple.index
    line: int  # in the file, from 1
    cells: list[str]


def layouts(folder: Folder) -> dict[str, Layout]:
    """The layout of each CSV file with objects of a folder, by its path. Call it with `Folder.once`."""
    found = {path: layout_of(folder.root / path) for path in folder.files(".csv", ".tsv")}
    return {path: layout for path, layout in found.items() if layout is not None}


def layout_of(path: Path) -> Layout | None:
    """The layout of a CSV file by its first row; None if it is no file of objects."""
    for delimiter in DELIMITERS:
        first = first_row(path, delimiter)
        if layout := _with_header(first, delimiter) or _without_header(first, delimiter):
            return layout
    return None


def first_row(path: Path, delimiter: str) -> list[str]:
    """The cells of the first row that is not empty; none if the file is no CSV."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    encoding = next((name for bom, name in BOMS.items() if head.startswith(bom)), "utf-8")
    rows = csv.reader(io.StringIO(head.decode(encoding, "replace"), newline=""), delimiter=delimiter)
    try:
        return next((row for row in rows if any(row)), [])
    except csv.Error:
        return []


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def _with_header(names: list[str], delimiter: str) -> Layout | None:
    columns: dict[str, int] = {}
    problem = ""
    for i, name in enumerate(names):
        role = ROLES.get(_plain(name))
        if role is None:
            continue
        if role in columns:
            problem = problem or f"{names[columns[role]]!r} and {name!r} could both be the {role}: rename one of them"
        columns.setdefault(role, i)
    layout = Layout(delimiter, names, True, columns, problem)
    missing = [role for role in ("picture", *layout.of_box) if role not in columns]
    if "picture" in missing or not ("x" in columns or not columns.keys().isdisjoint((*EDGES, *CORNER, *BOX))):
        return None
    if missing:
        problem = f"there is no column for {', '.join(missing)}; there are: {printable(', '.join(names))}"
        if "x" in columns and set(EDGES) & set(missing):
            problem += ". Whether x is an edge or the centre is not known: write the edges as xmin, ymin, xmax, ymax"
    if "score" in columns and "labelname" not in map(_plain, names):
        problem = f"{names[columns['score']]!r} is a column of detections, not of true objects"
    remarks = []
    if layout.of_box == BOX:
        remarks.append(f"left, top, width and height in the column {names[columns['box']]!r}, as COCO has them")
    if "class" not in columns:
        others = [name for name in names if _plain(name) not in ROLES]
        unused = f" (not used: {', '.join(others)})" if others else ""
        remarks.append(f"no column for the class{unused}, so all objects are of the class {ONLY!r}")
    return layout._replace(problem=problem, remark=printable("; ".join(remarks)))


def _without_header(first: list[str], delimiter: str) -> Layout | None:
    """The layout of a file whose first row fits one of `HEADLESS`; all but the path of the picture may be empty."""
    cells = [cell.strip() for cell in first]
    for names in HEADLESS:
        columns = {ROLES[_plain(name)]: i for i, name in enumerate(names)}
        if len(cells) != len(names) or not cells[columns["picture"]].lower().endswith(tuple(SUFFIXES)):
            continue
        if cells[1] == "" or all(_is_number(cell) for cell in cells[1:5]):
            return Layout(delimiter, names, False, columns, "")
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the last line of each row, and its cells without surrounding blanks; not empty rows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no text, or has a cell of more than 131,072 characters.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: broken CSV ({error})") from None


def rows_of_pictures(path: Path, layout: Layout) -> dict[str, list[Row]]:
    """The rows of each picture, by the name that the file has for it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the layout has a problem, or a row has another number of columns or no name of a picture.
    """
    if layout.problem:
        raise ValueError(f"{path}: {layout.problem}")
    pictures: dict[str, list[Row]] = {}
    faults, picture, width = Faults(), layout.columns["picture"], len(layout.names)
    rows = read_rows(path, layout.delimiter)
    if layout.has_header:
        next(rows, None)
    for index, (line, cells) in enumerate(rows):
        if len(cells) != width and (len(cells) < width or any(cells[width:])):
            faults.add(ValueError(f"{path}: line {line} has {len(cells)} columns, expected {width}: {cells}"))
        elif not cells[picture]:
            faults.add(ValueError(f"{path}: line {line}, column {layout.names[picture]!r} is empty"))
        else:
            pictures.setdefault(cells[picture], []).append(Row(index, line, cells))
    faults.check()
    return pictures


def edges_of(row: Row, layout: Layout, path: Path) -> tuple[float, ...] | None:
    """The four edges of a row as written; None if all are empty, or all are 0: a picture without objects.

    Raises:
        ValueError: an edge is no number.
    """
    roles = layout.of_box
    texts = [row.cells[layout.columns[role]] for role in roles]
    if not any(texts):
        return None
    if roles == BOX:
        try:
            x, y, width, height = map(float, texts[0].strip("[]() ").replace(",", " ").split())
        except ValueError:
            where = f"{path}: line {row.line}, column {layout.names[layout.columns['box']]!r}"
            raise ValueError(f"{where} must be left, top, width and height as [x, y, w, h], got {texts[0]!r}") from None
        return x, y, x + width, y + height
    a, b, c, d = (number(row, layout.columns[role], layout, path) for role in roles)
    if not any((a, b, c, d)):
        return None
    return (a, b, a + c, b + d) if roles == CORNER else (a, b, c, d)


def number(row: Row, column: int, layout: Layout, path: Path) -> float:
    """The number in a column.

    Raises:
        ValueError: it is none.
    """
    text = row.cells[column]
    try:
        return float(text)
    except ValueError:
        where = f"{path}: line {row.line}, column {layout.names[column]!r}"
        raise ValueError(f"{where} must be a number, got {text!r}") from None


def is_set(row: Row, role: str, layout: Layout) -> bool:
    """Whether a column, which a file need not have, says yes."""
    return role in layout.columns and row.cells[layout.columns[role]].lower() in TRUE


def pairs(folder: Folder, known: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """The rows of the CSV files with two columns, by path: names of classes and their numbers or codes.

    Args:
        folder: the folder.
        known: paths of files to leave out, which hold objects.
    """
    found = {}
    for path in sorted(set(folder.files(".csv")) - set(known)):
        name = path.rpartition("/")[2].lower()
        if ("class" in name or "label" in name) and len(first_row(folder.root / path, ",")) == 2:
            rows = [cells for _, cells in read_rows(folder.root / path, ",")]
            found[path] = [(cells[0], cells[1]) for cells in rows if len(cells) == 2]
    return found
