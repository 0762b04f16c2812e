"""Texts of others: files of lists, names of classes, labels and annotations; and what a terminal may show of them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path) -> str:
    """UTF-8, or what a byte order mark at the beginning says.

    Raises:
        ValueError: it is neither.
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
    """The lines that are not empty, without blanks around them."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file in any encoding that Python knows; tags come without their namespaces.

    Raises:
        ValueError: it is broken, or its encoding is unknown.
    """
    data = path.read_bytes()
    try:
        try:
            root = ElementTree.fromstring(data)
        except ValueError:  # of several bytes a character, which the parser leaves to Python
            declared = re.match(rb"""\s*<\?xml[^>]*?encoding=["']([\w.-]+)["'][^>]*\?>""", data)
            root = ElementTree.fromstring(data[declared.end() :].decode(declared[1].decode()))
    except (ElementTree.ParseError, LookupError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken XML ({error})") from error
    for node in root.iter():
        if "}" in node.tag:
            node.tag = node.tag.rpartition("}")[2]
    return root


def printable(text: object) -> str:
    """One line without control characters: they, and bytes of a name that are no text, are escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
