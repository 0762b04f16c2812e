"""Datasets of CSV files with an object in each row.

Files are told apart by their columns. Rows of Open Images (ImageID, LabelName) have fractions of the picture. Files
with the width and height of the picture come from TensorFlow's xml_to_csv and the like. They hold the numbers of
Pascal VOC's XML, which count from 1 and include the last pixel, and are read in the same way (`ssd.data.voc`). All
other files have edges in pixels, such as those of keras-retinanet, which has no header, and of DeepForest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ssd.data.annotations import ONLY, Object
from ssd.data.csv_table import EDGES, Layout, Row, edges_of, is_set, layouts, number, pairs, rows_of_pictures
from ssd.data.folder import Folder
from ssd.data.listing import Listed, ListingDataset, Placed
from ssd.data.voc import VOCDataset
from ssd.runtime.faults import Faults


def _objects(rows: Sequence[Row], layout: Layout, path: Path, names: Mapping[str, str]) -> list[Object]:
    objects, faults, column = [], Faults(), layout.columns.get("class")
    for row in rows:
        with faults.caught():
            box, name = edges_of(row, layout, path), ONLY if column is None else row.cells[column]
            if box is None:
                continue
            if column is not None and not name:
                raise ValueError(f"{path}: line {row.line}, column {layout.names[column]!r} is empty")
            flags = [is_set(row, role, layout) for role in ("difficult", "crowd")]
            objects.append(Object(row.index, names.get(name, name), box, *flags))
    faults.check()
    return objects


def _size(row: Row, layout: Layout, path: Path) -> tuple[int, int]:
    """The width and height of the picture; zeros if there are no such columns, or one of them is empty."""
    columns = [layout.columns.get(role) for role in ("width", "height")]
    if any(column is None or not row.cells[column] for column in columns):
        return 0, 0
    width, height = (number(row, column, layout, path) for column in columns if column is not None)
    if not 0 <= width < 1 << 31 or not 0 <= height < 1 << 31:
        raise ValueError(f"{path}: line {row.line} must have the size of a picture in pixels, got {width} x {height}")
    return int(width), int(height)


class _Table(ListingDataset):
    """What all datasets of CSV files share."""

    @classmethod
    @abstractmethod
    def _is_ours(cls, layout: Layout) -> bool:
        """Whether files of this layout belong to the format."""

    @classmethod
    def _files(cls, folder: Folder) -> list[str]:
        return [path for path, layout in folder.once(layouts).items() if cls._is_ours(layout)]

    @classmethod
    def _pictures(cls, folder: Folder, file: str) -> Iterator[Listed]:
        path, layout, names = folder.root / file, folder.once(layouts)[file], cls._renamed(folder)
        for picture, rows in rows_of_pictures(path, layout).items():
            objects, size = partial(_objects, rows, layout, path, names), partial(_size, rows[0], layout, path)
            yield Listed((picture,), objects, size, remark=layout.remark)

    @classmethod
    def _renamed(cls, folder: Folder) -> dict[str, str]:
        """The name of each class by the code for it that the rows have."""
        return {}

    def _others(self, folder: Folder, split: str | None) -> Iterable[Path]:
        return (folder.root / path for path in folder.once(_pairs))


class CSVDataset(_Table):
    """A dataset of CSV files with edges in pixels; arguments and attributes are those of `BoxDataset`.

    A row with empty edges, or with zeros, is a picture without objects. A file such as classes.csv with a name and a
    number in each row gives the order of the classes.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import CSVDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> _ = Path("boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\\na.png,cat,10,5,30,25")
        >>> image, target = CSVDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "CSV"
    LAYOUT = (
        "a file with a row for each object, whose header has names for the picture, the class, xmin, ymin, xmax and "
        "ymax; or path,x1,y1,x2,y2,class without header; splits are files (train_labels.csv ...) or the folders of the "
        "pictures"
    )

    @classmethod
    def _is_ours(cls, layout: Layout) -> bool:
        return not XMLToCSVDataset._is_ours(layout) and not OpenImagesDataset._is_ours(layout)

    @classmethod
    def _classes(cls, folder: Folder) -> list[str]:
        numbered = [rows for rows in folder.once(_pairs).values() if all(second.isdecimal() for _, second in rows)]
        return [name for rows in numbered for name, _ in sorted(rows, key=lambda row: int(row[1]))]


class XMLToCSVDataset(CSVDataset):
    """A dataset of CSV files with the numbers of Pascal VOC's XML; see `CSVDataset`.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import XMLToCSVDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> rows = "filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,80,40,cat,11,6,30,25"
        >>> _ = Path("boxes.csv").write_text("\\n".join(rows))
        >>> image, target = XMLToCSVDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "CSV made from XML"
    LAYOUT = "the same with the width and height of the picture, as by TensorFlow's xml_to_csv"

    @classmethod
    def _is_ours(cls, layout: Layout) -> bool:
        from_xml = layout.has_header and {"width", "height", *EDGES} <= layout.columns.keys()
        return from_xml and not OpenImagesDataset._is_ours(layout)

    _edges = staticmethod(VOCDataset._edges)
    _sound = staticmethod(VOCDataset._sound)


class OpenImagesDataset(_Table):
    """A dataset of Open Images; arguments and attributes are those of `BoxDataset`.

    Boxes around groups ("IsGroupOf") are crowds. A file such as class-descriptions-boxable.csv gives the names of the
    classes; without it, they have their codes as names.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import OpenImagesDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> rows = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf", "a,/m/01yrx,0.125,0.375,0.125,0.625,0"
        >>> _ = Path("annotations-bbox.csv").write_text("\\n".join(rows))
        >>> _ = Path("class-descriptions.csv").write_text("/m/01yrx,Cat")
        >>> image, target = OpenImagesDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "Open Images"
    IN_FRACTIONS = True
    LAYOUT = "files such as train-annotations-bbox.csv and class-descriptions-boxable.csv"

    @classmethod
    def _is_ours(cls, layout: Layout) -> bool:
        return {"imageid", "labelname"} <= layout.plain_names

    @classmethod
    def _placed(cls, folder: Folder) -> list[Placed]:
        """Leaves out pictures that are not there. The files name all pictures, of which few people download all."""
        placed = super()._placed(folder)
        there = [each for each in placed if any(map(folder.surroundings.named, each.listed.names))]
        absent = Counter(each.file for each in placed) - Counter(each.file for each in there)
        result = []
        for each in there:
            if n := absent.pop(each.file, 0):  # said once for a file
                remark = f"rows of pictures that are not there, and are left out ({n} pictures)"
                each = each._replace(listed=each.listed._replace(remark=remark))
            result.append(each)
        return result or placed

    @classmethod
    def _renamed(cls, folder: Folder) -> dict[str, str]:
        return {code: name for rows in folder.once(_pairs).values() for code, name in rows if code.startswith("/")}


def _pairs(folder: Folder) -> dict[str, list[tuple[str, str]]]:
    """Files of the names of classes."""
    surroundings = folder if folder.only is None else Folder(folder.root)
    return pairs(surroundings, folder.once(layouts))
