"""Reads long lists in a JSON file row by row, so that a file of 1 GB does not become several GB of Python objects."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from ssd.data.members import AnyFile, Member

# Outlines of objects, 90% of a file in COCO's format; a detector of boxes does not need them. The pattern cannot match
# inside of a string, where the quotes would be escaped. The brackets contain only (lists of) numbers.
OUTLINES = re.compile(rb'"segmentation"\s*:\s*\[[][0-9eE+\-.,\s]*\]')
BLANK = re.compile(r"[ \t\n\r]*")
SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")

START = object()  # yielded instead of a row when a list begins

_value_at = json.JSONDecoder().raw_decode  # (text, position) -> (the value there, the position after it)


def json_rows(path: AnyFile) -> Iterator[tuple[str, Any]]:
    """Yields the rows of all lists at the top level of a JSON file.

    Other values at the top level are skipped, and outlines ("segmentation") are read as 0.

    Args:
        path: the file.

    Returns:
        Pairs of the key of a list and one of its rows; the key is "" if the whole file is a list. The first pair of
        each list has `START` instead of a row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the JSON is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with _content(path) as data:
        if not len(data):
            raise ValueError(f"{path}: broken JSON (the file is empty)")
        try:
            encoding = json.detect_encoding(data[:4])
            text = OUTLINES.sub(b'"segmentation":0', data).decode(encoding, "surrogatepass")
            yield from _top(text)
        except (ValueError, IndexError, RecursionError) as error:
            try:  # the message of json.loads is better and has the position in the file
                json.loads(data[:])
            except (ValueError, RecursionError) as said:
                raise ValueError(f"{path}: broken JSON ({said})") from said
            raise ValueError(f"{path}: broken JSON ({error})") from error


@contextmanager
def _content(path: AnyFile) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file; those of a file on the disk do not count as memory of this process."""
    if isinstance(path, Member) or not path.stat().st_size:  # an empty file cannot be mapped
        yield path.read_bytes()
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _top(text: str) -> Iterator[tuple[str, Any]]:
    at = _after_blank(text, 0)
    if text[at] == "[":
        at = yield from _rows("", text, at)
    elif text[at] == "{":
        at = _after_blank(text, at + 1)
        while text[at] != "}":
            if text[at] != '"':
                raise ValueError
            key, at = _value_at(text, at)
            at = _after_blank(text, _after_blank(text, at, ":") + 1)
            if text[at] == "[":
                at = yield from _rows(key, text, at)
            else:
                _, at = _value_at(text, at)
            at = _after_blank(text, at)
            if text[at] == ",":
                at = _after_blank(text, at + 1, '"')
        at += 1
    else:
        _, at = _value_at(text, at)
    if _after_blank(text, at) != len(text):
        raise ValueError


def _rows(key: str, text: str, at: int) -> Generator[tuple[str, Any], None, int]:
    """Yields the rows of a list that begins at this position; returns the position after the list."""
    yield key, START
    at = _after_blank(text, at + 1)
    if text[at] == "]":
        return at + 1
    while True:
        row, at = _value_at(text, at)
        yield key, row
        separator = SEPARATOR.match(text, at)
        if separator is None:
            raise ValueError("neither ',' nor ']'")
        at = separator.end()
        if separator[1] == "]":
            return at


def _after_blank(text: str, at: int, wanted: str = "") -> int:
    """The next position that is not blank; raises ValueError if another character than the wanted one is there."""
    if blank := BLANK.match(text, at):
        at = blank.end()
    if wanted and text[at] != wanted:
        raise ValueError
    return at
