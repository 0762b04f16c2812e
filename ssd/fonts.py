"""Finds a font of this machine that has the letters of a text, for names that are not in ASCII."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

NUMBERS = "0123456789. "  # of scores, which stand beside names
LAST_RESORT = "lastresort"  # in the name of fonts that have a box for every letter of Unicode; macOS has one
STYLED = re.compile("bold|black|heavy|light|thin|italic|oblique|serif|mono", re.IGNORECASE)  # in names of files


def font_file(texts: Iterable[str]) -> str | None:
    """The file of a font that has all letters of the texts, or most of them if no font has all.

    DejaVu Sans, which is a part of matplotlib, comes first; then the fonts of the system, regular ones before others.

    Returns:
        The path; None if all letters are in ASCII, which every font has.

    Warns:
        UserWarning: a letter is in no font, and will be drawn as an empty box.
    """
    letters = frozenset().union(NUMBERS, *texts)
    return None if all(map(str.isascii, letters)) else _file_with(letters)


@lru_cache(maxsize=256)
def _file_with(letters: frozenset[str]) -> str:
    best, least = "", letters
    for path in _files():
        missing = letters - _letters(path)
        if not best or len(missing) < len(least):
            best, least = path, missing
        if not missing:
            return path
    some = ", ".join(sorted(least)[:5])
    warnings.warn(
        f"no font of this machine has the letters {some}, which are drawn as boxes: install one that does, such as "
        "Noto Sans CJK",
        stacklevel=4,
    )
    return best


@cache
def _files() -> tuple[str, ...]:
    """The font files of this machine, the most suitable ones first."""
    from matplotlib import font_manager  # slow to import

    # Not matplotlib's list of fonts: it is a cache, which lacks fonts that were installed later.
    others = [path for path in font_manager.findSystemFonts() if LAST_RESORT not in Path(path).stem.lower()]
    by_style = sorted(others, key=lambda path: (bool(STYLED.search(Path(path).stem)), path))
    return (font_manager.findfont("DejaVu Sans"), *by_style)


@cache
def _letters(path: str) -> frozenset[str]:
    """The letters that a font has; none if its file is gone or damaged."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
