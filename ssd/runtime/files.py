"""Files that are there whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Name of a temporary file beside `path`, which takes its place when the block ends without an error.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: see `naming`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder, yet {path.name} was to be written there")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the block, in which a file is written, name it.

    Raises:
        OSError: it could not be written, as where the disk is full; names `path`, or what the error named itself.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if cause.errno is None:  # an encoder's own words, which a file name beside them would hide
            raise OSError(f"{path}: {cause}") from None
        cause.filename = cause.filename or str(path)
        raise cause from None


def discard_leftovers(*paths: str | os.PathLike[str]) -> None:
    """Removes what processes that were killed in `replacing(path)` have left; no other may be writing one of them."""
    wanted = set(map(os.fspath, paths))
    for folder in set(map(os.path.dirname, wanted)):
        for temporary in Path(folder).glob(".*.tmp"):
            if os.path.join(folder, temporary.name[1:].rsplit(".", 2)[0]) in wanted:
                temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Makes a folder where it is missing, and keeps other runs out of it until the block ends or the process dies.

    Raises:
        ValueError: another run has the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{folder}: another run is writing there; choose another folder") from None
            except OSError:  # a file system without locks
                pass
            os.register_at_fork(after_in_child=file.close)  # a loader's workers, which outlive a killed run for seconds
        try:
            yield
        finally:
            if fcntl and not file.closed:  # not left to close(), as some process may hold a copy for a moment
                fcntl.flock(file, fcntl.LOCK_UN)
