"""Reading text and XML files that other programs wrote, and printing their content safely."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, or in UTF-16 if it begins with the byte order mark of UTF-16.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has another encoding.
    """
    data = path.read_bytes()
    encoding = next((name for bom, name in BOMS.items() if data.startswith(bom)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is not {encoding} text: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file without surrounding blanks; empty lines are left out.

    Raises:
        FileNotFoundError, ValueError: see `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_xml(path: Path) -> ElementTree.Element:
    """Reads an XML file in any encoding that Python knows.

    Returns:
        The root element; all tags are without their namespaces.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the XML is broken, or its encoding is unknown.
    """
    data = path.read_bytes()
    try:
        try:
            root = ElementTree.fromstring(data)
        except ValueError:  # the parser cannot decode encodings with several bytes per character; Python can
            declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["'][^>]*\?>""", data)
            if declared is None:
                raise
            root = ElementTree.fromstring(data[declared.end() :].decode(declared[1].decode()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: broken XML ({error})") from error
    for node in root.iter():
        if "}" in node.tag:
            node.tag = node.tag.rpartition("}")[2]
    return root


def composed(text: str) -> str:
    """A text with its accents and syllables in single characters (Unicode's NFC), as most programs write them.

    macOS writes names of files in several characters instead (NFD), which look the same and are not equal.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def spellings(path: str) -> Iterable[str]:
    """A path as it is, and as it may be called on the disk: composed, and as macOS writes it, see `composed`."""
    return (path,) if path.isascii() else dict.fromkeys((path, composed(path), unicodedata.normalize("NFD", path)))


def printable(text: object) -> str:
    """Makes a text safe to print on one line.

    Control characters, and bytes of a file name that are not valid text, are escaped as in Python.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
