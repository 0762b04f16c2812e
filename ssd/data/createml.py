"""Datasets of Apple's CreateML, also written by LabelImg and Roboflow: JSON lists with centres of boxes in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ssd.data.annotations import Object
from ssd.data.folder import Folder
from ssd.data.json_kinds import CREATEML, field, name_in, numbers_in, of_kind, read_json
from ssd.data.listing import Listed, ListingDataset
from ssd.runtime.faults import Faults


def _objects(rows: list[Any], begin: int, where: str) -> list[Object]:
    objects, faults = [], Faults()
    for i, row in enumerate(rows):
        its = f"{where}['annotations'][{i}]"
        with faults.caught():
            name, box = name_in(row, "label", its), field(row, "coordinates", dict, its)
            x, y, width, height = numbers_in(box, "x y width height", f"{its}['coordinates']")
            edges = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            objects.append(Object(begin + i, name, edges))
    faults.check()
    return objects


class CreateMLDataset(ListingDataset):
    """A dataset of CreateML; arguments and attributes are those of `BoxDataset`.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ssd.data import CreateMLDataset
        >>> Image.new("RGB", (80, 40)).save("a.png")
        >>> box = {"x": 20, "y": 15, "width": 20, "height": 20}  # x and y are those of the centre
        >>> rows = [{"image": "a.png", "annotations": [{"label": "cat", "coordinates": box}]}]
        >>> _ = Path("_annotations.createml.json").write_text(json.dumps(rows))
        >>> image, target = CreateMLDataset(".")[0]
        >>> target["boxes"].tolist(), target["labels"].tolist()
        ([[10.0, 5.0, 30.0, 25.0]], [1])
    """

    FORMAT = "CreateML"
    LAYOUT = "JSON files such as _annotations.createml.json; splits as for CSV"

    @classmethod
    def _files(cls, folder: Folder) -> list[str]:
        return of_kind(folder, CREATEML)

    @classmethod
    def _pictures(cls, folder: Folder, file: str) -> Iterator[Listed]:
        path, begin, faults, pictures = folder.root / file, 0, Faults(), []
        for i, row in enumerate(read_json(path)):
            where = f"{path}: [{i}]"
            with faults.caught():
                pictures.append((where, field(row, "image", str, where), field(row, "annotations", list, where)))
        faults.check()
        for where, name, rows in pictures:
            yield Listed((name,), partial(_objects, rows, begin, where))
            begin += len(rows)
