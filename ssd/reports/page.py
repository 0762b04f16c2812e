"""What all reports share: the files that they consist of, their templates, and their pictures."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from io import BytesIO
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import jinja2
import numpy as np
from PIL import Image

import ssd_ext
from ssd.data.reading import ImageReadError, Picture
from ssd.runtime.files import check_writable, replacing
from ssd.runtime.text import printable

SUFFIXES = (".html", ".htm")
QUALITY = 80  # of the JPEG data of pictures; one of 480 x 360 pixels takes about 30 kB

Size = tuple[int, int]


def check_paths(path: str | PathLike[str], made_by: str) -> None:
    """Checks that a report can be written, before the work whose result it shows.

    Args:
        path: the HTML file.
        made_by: the command that writes it, the first value of its JSON file.

    Raises:
        ValueError: the name does not end in .html or .htm.
        FileNotFoundError: the folder does not exist.
        FileExistsError: there is a JSON file beside the report that this command has not written.
        IsADirectoryError: the path is a folder.
        PermissionError: nothing can be written to the folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the name of a report must end in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder, for --report {path}")
    check_writable(path)
    numbers = path.with_suffix(".json")
    for place in (path, numbers):
        if place.is_dir():
            raise IsADirectoryError(f"{place}: is a folder; choose another name for --report")
    if numbers.exists():
        mark = f'{{"made_by": {json.dumps(made_by)}'.encode()
        with open(numbers, "rb") as file:
            if file.read(len(mark)) != mark:
                raise FileExistsError(
                    f"{numbers}: would be replaced, and is not from {made_by}; choose another name for --report"
                )


def now() -> str:
    """The date and time in ISO 8601, with the time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def head(made_by: str, command: str) -> dict[str, Any]:
    """The first values of every JSON file: the command that writes it, the date, and how to repeat it."""
    return {
        "made_by": made_by,
        "date": now(),
        "command": command,
    }


def versions() -> dict[str, str]:
    """The versions that a JSON file states."""
    return {name: ssd_ext.info().versions[name] for name in ("ssd-ext", "torch")}


def write(path: Path, page: str, numbers: Mapping[str, Any]) -> None:
    """Writes both files of a report. Each appears, or replaces an older one, only when it is complete.

    Args:
        path: the HTML file; the numbers go to a file with the suffix .json beside it.
        page: the content of the HTML file.
        numbers: the content of the JSON file, see `known`; a line for each value.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
    """
    with replacing(path.with_suffix(".json")) as temporary:
        lines = (f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in numbers.items())
        temporary.write_text("{" + ",\n ".join(lines) + "}\n", encoding="utf-8")
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fills a template.

    Args:
        template: its path in the package `ssd`, such as "reports/data.html.jinja".
        values: what the template shows.
    """
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(lambda name: files("ssd").joinpath(*name.split("/")).read_text("utf-8")),
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {"number": _number, "printable": printable, "sha256": _sha256}
    return environment.get_template(template).render(**values)


def known(value: Any) -> Any:
    """Converts a value for JSON: numbers of numpy become those of Python, and NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {key: known(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [known(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(file: object) -> str:
    """The folder and the name of a file, for a page."""
    return printable("/".join(PurePath(str(file)).parts[-2:]))


def within(size: Size, side: int) -> Size:
    """Width and height of a picture whose longer side is at most `side` pixels; a smaller picture keeps its size."""
    shrink = min(1.0, side / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def drawn(box: np.ndarray, size: Size) -> list[float]:
    """Left, top, width and height of a box in pixels of a picture, cut at its edges; zeros for NaN.

    Args:
        box: (4,) xyxy in fractions of the picture.
        size: width and height of the picture in pixels.
    """
    x0, y0, x1, y1 = np.nan_to_num(box, nan=0.0).clip(0, 1) * (size * 2)
    return [round(float(value), 1) for value in (x0, y0, max(0.0, x1 - x0), max(0.0, y1 - y0))]


def thumbnail(picture: Picture, size: Size) -> str | None:
    """A picture of this width and height as the URL of JPEG data; None if the file cannot be read."""
    try:
        pixels, _ = picture.part((0, 0, picture.width, picture.height), size[::-1])
    except (ImageReadError, OSError):
        return None
    data = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(data, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _number(value: float | None, digits: int = 3) -> str:
    """A number with some decimals; None, nothing to measure, becomes a dash."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def _sha256(text: str) -> str:
    """The hash of a script as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
