"""Text from elsewhere, as a terminal may show it."""

from __future__ import annotations


def printable(text: object) -> str:
    """One line without control characters: they, and bytes of a name that are no text, are escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
