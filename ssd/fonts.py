"""Finds a font of this machine that has the letters of a text, for names that are not in ASCII."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache, lru_cache


def font_file(texts: Iterable[str]) -> str | None:
    """The file of a font that has all letters of the texts, or most of them if no font has all.

    Fonts that belong to matplotlib come first, then those of the system: regular ones before bold and slanted ones.

    Returns:
        The path; None if all letters are in ASCII, which every font has.

    Warns:
        UserWarning: a letter is in no font, and will be drawn as an empty box.
    """
    letters = frozenset(letter for text in texts for letter in text if not letter.isascii())
    return _file_with(letters) if letters else None


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


@lru_cache(maxsize=1)
def _files() -> tuple[str, ...]:
    """The fonts of this machine, the most suitable ones first."""
    from matplotlib import font_manager  # slow to import

    own = font_manager.findfont("DejaVu Sans")
    fonts = sorted(
        font_manager.fontManager.ttflist,
        key=lambda font: (font.fname != own, font.style != "normal", font.weight not in (400, "normal"), font.name),
    )
    return tuple(dict.fromkeys(font.fname for font in fonts))


@cache
def _letters(path: str) -> frozenset[str]:
    """The letters that a font has; none if its file is gone or damaged."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
