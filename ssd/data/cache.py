"""What was read of a large data set, kept in the user's cache folder, so that it opens at once the next time.

It is trusted as long as all files and folders that it was read from have the sizes and times that they had.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssd.runtime.files import replacing
from ssd.runtime.packed import Texts
from ssd.runtime.threads import in_threads_if_slow

Arrays = dict[str, np.ndarray]

VERSION = 1  # of what is in a file, and of how a data set is read
WORTH_KEEPING = 3.0  # seconds that the reading must have taken
YOUNG = 2.0  # seconds: a file that has just changed may change again and have the same time, as some disks count it
AT_MOST = 4 << 30  # bytes of all files; those that were not used for longest go


def cache_folder() -> Path:
    """`ssd_ext` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd_ext"


def cached(key: Iterable[object], read: Callable[[], Arrays], sources: Callable[[Arrays], Iterable[str]]) -> Arrays:
    """What was read before, if it still holds; or else what is read now, which is kept if the reading took long.

    Args:
        key: what decides the reading, besides the files.
        read: gives arrays without objects.
        sources: the files and folders that the arrays were read from.
    """
    name = hashlib.blake2b(repr((VERSION, *key)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    path = cache_folder() / f"{name}.npz"
    if (found := _load(path)) is not None:
        return found
    began, since = time.time(), time.perf_counter()
    arrays = read()
    if time.perf_counter() - since > WORTH_KEEPING:
        with suppress(OSError):  # no room, or no right to write: the next time takes as long as this one
            _save(path, arrays, Texts(dict.fromkeys(sources(arrays))), began)
    return arrays


def _load(path: Path) -> Arrays | None:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        sources = Texts.of(arrays.pop("source_bytes"), arrays.pop("source_ends"))
        if not np.array_equal(arrays.pop("source_status"), _status(sources)):
            return None
        os.utime(path)
        return arrays
    except Exception:  # there is none, or it is damaged, which numpy tells in many ways
        return None


def _save(path: Path, arrays: Arrays, sources: Texts[str], began: float) -> None:
    status = _status(sources)
    if (status[:, 1] >= (began - YOUNG) * 1e9).any():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source_bytes, source_ends = sources.arrays
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, source_bytes=source_bytes, source_ends=source_ends, source_status=status)
    files = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
    sizes = np.cumsum([file.stat().st_size for file in files])
    for file, size in zip(files[1:], sizes[1:], strict=True):
        if size > AT_MOST:
            file.unlink(missing_ok=True)


def _status(paths: Iterable[str]) -> np.ndarray:
    """Size and time of each file or folder, (n, 2) int64; -1 and -1 of one that is missing."""

    def status(path: str) -> tuple[int, int]:
        try:
            status = os.stat(path)
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    return np.array(list(in_threads_if_slow(status, paths)), np.int64).reshape(-1, 2)
