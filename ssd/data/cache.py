"""Caches the annotations of large data sets in the user's cache folder, so that they open faster the next time.

An entry is valid while all files and folders that it was read from have the same sizes and modification times.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssd.data.picture_formats import SUFFIXES
from ssd.runtime.files import replacing
from ssd.runtime.packed import Texts
from ssd.runtime.remote import PartError, stamp
from ssd.runtime.threads import in_threads_if_slow

Arrays = dict[str, np.ndarray]  # by name, without Python objects

VERSION = 3  # of the cached arrays and of the code that reads data sets
WORTH_KEEPING = 3.0  # seconds; faster reads are not cached
YOUNG = 2.0  # seconds; on disks with coarse time stamps, a file that changes twice within this time may keep its stamp
ABANDONED = 3600.0  # seconds after which nobody writes a temporary file any more
AT_MOST = 4 << 30  # bytes of all files; the least recently used ones are deleted


def cache_folder() -> Path:
    """The folder of cached data sets: `ssd_ext` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd_ext"


def cached(key: Iterable[object], read: Callable[[], Arrays], sources: Callable[[Arrays], Iterable[str]]) -> Arrays:
    """Returns cached arrays if they are still valid. Otherwise reads them, and caches them if that took long.

    Args:
        key: values that decide the result besides the files, and the formats of pictures that are read here; their
            `repr` names the entry.
        read: reads the arrays.
        sources: lists the files and folders that the arrays were read from.
    """
    name = hashlib.blake2b(
        repr((VERSION, SUFFIXES, *key)).encode("utf-8", "surrogateescape"), digest_size=16
    ).hexdigest()
    path = cache_folder() / f"{name}.npz"
    if (found := _load(path)) is not None:
        return found
    began, since = time.time(), time.perf_counter()
    arrays = read()
    if time.perf_counter() - since > WORTH_KEEPING:
        with suppress(OSError):  # on a full or read-only disk, nothing is cached
            _save(path, arrays, Texts(dict.fromkeys(sources(arrays)), str), began)
    return arrays


def _load(path: Path) -> Arrays | None:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        sources = Texts.of(arrays.pop("source_bytes"), arrays.pop("source_ends"), str)
        if not np.array_equal(arrays.pop("source_status"), _status(sources)):
            return None
        os.utime(path)
        return arrays
    except Exception:  # the entry is missing or damaged; numpy raises many kinds of errors
        return None


def _save(path: Path, arrays: Arrays, sources: Texts[str], began: float) -> None:
    status = _status(sources)
    if (status[:, 1] >= (began - YOUNG) * 1e9).any():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(".*.tmp"):  # of a process that was killed
        with suppress(FileNotFoundError):  # another process has removed it
            if leftover.stat().st_mtime < began - ABANDONED:
                leftover.unlink()
    source_bytes, source_ends = sources.arrays
    with replacing(path) as temporary, open(temporary, "wb") as file:
        of_sources = {"source_bytes": source_bytes, "source_ends": source_ends, "source_status": status}
        np.savez(file, **arrays, **of_sources)  # type: ignore[arg-type]  # no array is named allow_pickle
    files = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
    sizes = np.cumsum([file.stat().st_size for file in files])
    for old, size in zip(files[1:], sizes[1:], strict=True):
        if size > AT_MOST:
            old.unlink(missing_ok=True)


def _status(paths: Iterable[str]) -> np.ndarray:
    """The `stamp` of each file, folder or URL, (n, 2) int64; -1 and -1 for missing ones."""

    def status(path: str) -> tuple[int, int]:
        try:
            return stamp(path)
        except PartError:
            return -1, time.time_ns()  # a state of its own, so nothing is taken from the cache
        except OSError:
            return -1, -1

    return np.array(list(in_threads_if_slow(status, paths)), np.int64).reshape(-1, 2)
