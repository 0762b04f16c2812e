"""Reading parts of files, on local disks and by URL; URLs are opened by fsspec.

Errors while a URL is read may be temporary, so such a read is tried again a few times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import IO, Any, TypeVar

import fsspec  # torch needs it too

Result = TypeVar("Result")
Part = tuple[str, int, int]  # a path or a URL, the first byte, and the number of bytes

WAITS = (0.5, 1.0, 2.0)  # seconds before each further attempt
BLOCK = 1 << 14  # bytes that are read at once while a file is searched: the header of a picture and its annotation
STAMPS = ("ETag", "Content-MD5", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "etag", "md5")
ANSWER = 30.0  # seconds for which an answer of a server is waited for
FINAL = (400, 401, 403, 404, 405, 410, 416)  # states of HTTP that another attempt does not change


class PartError(OSError):
    """A part of a file that exists cannot be read, for example because the network is down."""


NO_PARTS = "{}: the server cannot give parts of a file; copy the file to this machine"
_ahead: dict[Part, bytes] = {}  # parts that this process has read and will need soon


def is_url(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is a URL, such as https://host/a.tar or s3://bucket/a.tar."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path of a local file, or the URL, without a slash at its end."""
    return os.fspath(path).rstrip("/") if is_url(path) else os.path.abspath(path)


def open_to_search(path: str) -> IO[bytes]:
    """Opens a file of which small parts are read, from its beginning to its end.

    Raises:
        FileNotFoundError, PartError: see `read_part`.
    """
    if not is_url(path):
        return open(path, "rb")

    def opened() -> IO[bytes]:
        system, inside = _located(path)
        file: IO[bytes] = system.open(inside, "rb", block_size=BLOCK, cache_type="readahead")
        if not file.seekable():
            raise PartError(NO_PARTS.format(path))
        return file

    return tried(opened, path)


def read_part(part: Part) -> bytes:
    """Reads a part of a file.

    Raises:
        FileNotFoundError: no such file.
        PartError: the part cannot be read, or the file is shorter.
    """
    if (found := _ahead.pop(part, None)) is not None:
        return found
    path, start, size = part
    if is_url(path):
        data = tried(lambda: _fetched(part), path)
    else:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(size)
    if len(data) > size:
        raise PartError(NO_PARTS.format(path))
    if len(data) < size:
        raise PartError(f"{path}: gave {len(data)} bytes instead of {size} from byte {start} on; has the file changed?")
    return data


def read_ahead(parts: Sequence[Part]) -> None:
    """Reads parts that will be needed next; those of URLs at the same time. `read_part` then finds them in memory.

    What an earlier call has read is forgotten. A part that cannot be read gives its error in `read_part`.
    """
    _ahead.clear()
    by_system: dict[int, tuple[Any, list[tuple[str, Part]]]] = {}
    for part in parts:
        if is_url(part[0]):
            try:
                system, inside = _located(part[0])
            except (OSError, ImportError, ValueError):
                continue
            by_system.setdefault(id(system), (system, []))[1].append((inside, part))
    for system, wanted in by_system.values():
        paths, starts = [inside for inside, _ in wanted], [start for _, (_, start, _) in wanted]
        ends = [start + size for _, (_, start, size) in wanted]
        try:
            read = system.cat_ranges(paths, starts, ends, on_error="return")
        except Exception:  # file systems raise many kinds of errors; `read_part` tries again, and reports them
            continue
        for (_, part), data in zip(wanted, read, strict=True):
            if isinstance(data, bytes) and len(data) == part[2]:
                _ahead[part] = data


def stamp(path: str) -> tuple[int, int]:
    """The size of a file in bytes, and a number that differs after a change: of a local file its time in ns.

    Raises:
        FileNotFoundError, PartError: see `read_part`.
    """
    if not is_url(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns

    def said() -> dict[str, Any]:
        system, inside = _located(path)
        system.invalidate_cache()
        return system.info(inside)

    info = tried(said, path)
    version = repr([str(info[key]) for key in STAMPS if key in info]).encode()
    return info.get("size") or 0, int.from_bytes(blake2b(version, digest_size=7).digest(), "big")


def list_files(url: str, suffix: str) -> list[str]:
    """Lists the files with a suffix: those that fit a pattern such as s3://bucket/*.tar, or those below a folder.

    Raises:
        FileNotFoundError: no such folder.
        PartError: it cannot be read.
    """

    def listed() -> list[str]:
        system, inside = _located(url)
        found = system.glob(inside) if "*" in inside else system.find(inside)
        if not found and "*" not in inside:
            system.ls(inside)  # `find` takes a server that does not answer for an empty folder
        return [path if is_url(path) else system.unstrip_protocol(path) for path in found if path.endswith(suffix)]

    return sorted(tried(listed, url))


def _located(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. A process that was forked gets a file system of its own."""
    try:
        system, inside = fsspec.core.url_to_fs(url, **_options(url))
    except ImportError as error:  # fsspec names the package
        extra = " (for HTTP: pip install 'ssd-ext[remote]')" if "http" in url else ""
        raise ImportError(f"{url}: cannot be opened here: {error}{extra}") from None
    return system, inside


def _options(url: str) -> dict[str, Any]:
    """Options of the file system: for HTTP, how long to wait for the server."""
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=ANSWER, sock_read=ANSWER)}}


def _fetched(part: Part) -> bytes:
    path, start, size = part
    system, inside = _located(path)
    data: bytes = system.cat_file(inside, start, start + size)
    return data


def tried(function: Callable[[], Result], path: str) -> Result:
    """Calls a function that reads a file. If that is a URL, it is called again after an error that may be temporary.

    Raises:
        FileNotFoundError: no such file.
        PartError: the URL cannot be read.
        Exception: any other error of the function, if the path is no URL.
    """
    if not is_url(path):
        return function()
    waits: Iterable[float | None] = (*WAITS, None)
    for wait in waits:
        try:
            return function()
        except (ImportError, PartError):
            raise
        except Exception as raised:  # file systems raise many kinds of errors
            error = raised
            if isinstance(raised, FileNotFoundError):
                # Of HTTP, fsspec raises it whatever prevents that a file is found.
                if isinstance(raised.__cause__, Exception) and type(raised.__cause__).__module__.startswith("aiohttp"):
                    error = raised.__cause__
                if error is raised or getattr(error, "status", None) == 404:
                    raise FileNotFoundError(f"{path}: no such file") from None
            if "range requests" in str(error):  # of fsspec
                raise PartError(NO_PARTS.format(path)) from None
            if wait is None or getattr(error, "status", None) in FINAL:
                reason = str(error) or type(error).__name__
                raise PartError(f"{path}: cannot be read ({reason})") from error
            time.sleep(wait)
    raise AssertionError  # the last wait is None
