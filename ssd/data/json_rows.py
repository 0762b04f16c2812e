"""Long lists in a JSON file, row by row: a file of a gigabyte then takes no objects of several."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# Outlines of objects, nine tenths of a file of COCO, which a detector of boxes has no use for. Inside of a text the
# quotes would be escaped, and between these brackets is nothing but numbers.
OUTLINES = re.compile(rb'"segmentation"\s*:\s*\[[][0-9eE+\-.,\s]*\]')
BLANK = re.compile(r"[ \t\n\r]*")
SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")

START = object()  # in place of a row: the list begins

_scan_once = json.JSONDecoder().scan_once


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of all lists at the top of a JSON file, each with the key of its list; "" if the file is one list.

    Before the first row of each list comes `START`. What is no list is passed over, and outlines ("segmentation") are
    0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the JSON is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: broken JSON (the file is empty)")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            encoding = json.detect_encoding(data[:4])
            text = OUTLINES.sub(b'"segmentation":0', data).decode(encoding, "surrogatepass")
            yield from _top(text)
        except (ValueError, IndexError, RecursionError) as error:
            try:  # for its words and the place in the file
                json.loads(data[:])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: broken JSON ({error})") from error
            raise ValueError(f"{path}: broken JSON ({error})") from error


def _top(text: str) -> Iterator[tuple[str, Any]]:
    at = _after_blank(text, 0)
    if text[at] == "[":
        at = yield from _rows("", text, at)
    elif text[at] == "{":
        at = _after_blank(text, at + 1)
        while text[at] != "}":
            if text[at] != '"':
                raise ValueError
            key, at = _scan(text, at)
            at = _after_blank(text, _after_blank(text, at, ":") + 1)
            if text[at] == "[":
                at = yield from _rows(key, text, at)
            else:
                _, at = _scan(text, at)
            at = _after_blank(text, at)
            if text[at] == ",":
                at = _after_blank(text, at + 1, '"')
        at += 1
    else:
        _, at = _scan(text, at)
    if _after_blank(text, at) != len(text):
        raise ValueError


def _rows(key: str, text: str, at: int) -> Generator[tuple[str, Any], None, int]:
    """The rows of a list that begins at this place; returns the place behind it."""
    yield key, START
    at = _after_blank(text, at + 1)
    if text[at] == "]":
        return at + 1
    while True:
        row, at = _scan(text, at)
        yield key, row
        separator = SEPARATOR.match(text, at)
        if separator is None:
            raise ValueError("neither ',' nor ']'")
        at = separator.end()
        if separator[1] == "]":
            return at


def _scan(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at this place, and the place behind it."""
    try:
        return _scan_once(text, at)
    except StopIteration:  # which would end a generator
        raise ValueError("no value") from None


def _after_blank(text: str, at: int, wanted: str = "") -> int:
    """The next place that is not blank, where the wanted character must be."""
    at = BLANK.match(text, at).end()
    if wanted and text[at] != wanted:
        raise ValueError
    return at
