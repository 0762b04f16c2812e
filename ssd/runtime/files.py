"""Writing files completely or not at all, and locking folders to one process."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ssd.runtime.text import composed

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]  # mypy has no type for a missing module

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows
LONGEST_STEM = 120  # bytes of a temporary name: file systems allow 255, and 143 in encrypted folders of eCryptfs


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a context the path of a temporary file, which replaces `path` if the block ends without an error.

    So `path` holds its old content or the complete new content. After an error the temporary file is removed.

    Args:
        path: the file to write; the temporary file is in the same folder.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: see `naming`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; {path.name} cannot be written there")
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Names:
    """Names of files in one folder that differ, also where a file system ignores case or has accents as macOS has them.

    Args:
        taken: names that others have.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._last = dict.fromkeys(map(_alike, taken), 1)  # for each name that is taken, the last number behind it

    def add(self, stem: str, suffix: str = "") -> str:
        """Takes a name, with a number behind its stem if the name is taken."""
        wanted = name = stem + suffix
        number = self._last.get(_alike(wanted), 0)
        while _alike(name) in self._last:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._last[_alike(name)] = 1
        self._last[_alike(wanted)] = max(number, 1)
        return name


def _alike(name: str) -> str:
    return composed(name).lower()


def _temporary(path: Path) -> Path:
    """The file or folder that this process writes before it becomes `path`; see `discard_leftovers`."""
    return path.with_name(f".{_stem(path.name)}.{os.getpid()}.tmp")


def _stem(name: str) -> str:
    """A name that has room for more: the name itself, or a digest of one that is long."""
    data = os.fsencode(name)
    return name if len(data) <= LONGEST_STEM else hashlib.blake2b(data, digest_size=16).hexdigest()


def file_names(texts: Sequence[str]) -> list[str]:
    """Makes names of files or folders from texts: names that Linux, macOS and Windows allow, and that differ.

    Args:
        texts: any texts. Characters that a system forbids become "_". Texts are cut after 60 characters.

    Returns:
        A name for each text, see `Names`.
    """
    names, unique = [], Names()
    for text in texts:
        stem = (
            "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in text)[:60].lstrip(" ").rstrip(". ")
        )
        if not stem or stem.startswith(".") or RESERVED.fullmatch(stem):
            stem = f"_{stem}"
        names.append(unique.add(stem))
    return names


def check_new(path: Path) -> None:
    """Checks that a file or folder can be made: before long work, whose result would have no place.

    Raises:
        FileExistsError: `path` exists.
        FileNotFoundError: the folder that `path` is in does not exist.
        PermissionError: nothing can be written to this folder.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path}: exists; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; {path.name} cannot be written there")
    check_writable(path)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks that files can be made in a folder: before long work, whose result would have no place.

    Args:
        path: the folder; or a file or folder to make, for which the first folder above it that exists is checked.

    Raises:
        PermissionError: nothing can be written to the folder, because it or its file system is read-only.
    """
    path = Path(path)
    folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
    if not os.access(folder, os.W_OK):
        where = "this folder" if folder == path else f"the folder {folder}"
        raise PermissionError(f"{path}: nothing can be written to {where}; choose another folder")


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a context the path of an empty temporary folder, which becomes `path` if the block ends without an error.

    After an error the temporary folder is removed.

    Args:
        path: the folder to write, which must not exist; the temporary folder is beside it.

    Raises:
        FileExistsError, FileNotFoundError: see `check_new`.
        OSError: see `naming`.
    """
    path = Path(path)
    check_new(path)
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            temporary.mkdir()
            yield temporary
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """Adds the name of a file to errors of the block that writes it.

    Args:
        path: the file or folder that the block writes.
        temporary: the name that it has until it is complete.

    Raises:
        OSError: the file could not be written, for example because the disk is full. It names `path`, unless the
            original error names another file than `temporary`.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if cause.errno is None:  # for an error without errno, setting `filename` would hide its message in str(cause)
            raise OSError(f"{path}: {cause}") from None
        cause.filename = cause.filename or str(path)
        if temporary and str(cause.filename).startswith(str(temporary)):
            asked = str(cause.filename).replace(str(temporary), str(path), 1)
            raise OSError(cause.errno, cause.strerror, asked) from None
        raise cause from None


def discard_leftovers(*paths: str | os.PathLike[str]) -> None:
    """Removes what processes left when they were killed inside `replacing(path)` or `new_folder(path)`.

    Args:
        paths: the files and folders that were being written. No other process may be writing one of them now.
    """
    wanted = {(folder, _stem(name)) for folder, name in map(os.path.split, paths)}
    for folder in {folder for folder, _ in wanted}:
        for temporary in Path(folder).glob(".*.tmp"):
            if (folder, temporary.name[1:].rsplit(".", 2)[0]) in wanted:
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Creates a folder if it is missing, and locks it until the block ends or the process dies.

    If the block ends with an error and has written nothing, the folder is removed if it was created here, and so is the
    file of the lock.

    Args:
        folder: the folder of a run. On Windows and on file systems without locks, nothing is locked.

    Raises:
        PermissionError: nothing can be written to the folder.
        ValueError: it is a file, or another run has locked the folder.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; choose a folder")
    check_writable(folder)
    lock = folder / ".lock"
    missing, lock_is_new = [place for place in (folder, *folder.parents) if not place.exists()], not lock.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file, locked_file(file, folder, "folder"):
        try:
            yield
        except BaseException:
            with suppress(OSError):  # Windows removes no open file
                if lock_is_new and os.listdir(folder) == [lock.name]:
                    lock.unlink()
                    for place in missing:
                        place.rmdir()
            raise


@contextmanager
def locked_file(file: IO[Any], name: str | os.PathLike[str], kind: str = "file") -> Iterator[None]:
    """Locks an open file until the block ends or the process dies.

    Args:
        file: the file, opened for writing. On Windows and on file systems without locks, nothing is locked.
        name, kind: what the lock protects, for the error.

    Raises:
        ValueError: another run has locked the file.
    """
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{name}: another run is writing there; choose another {kind}") from None
        except OSError:  # a file system without locks
            pass
        # A loader's workers live for seconds after their run was killed, and must not keep the lock.
        os.register_at_fork(after_in_child=file.close)
    try:
        yield
    finally:
        if fcntl and not file.closed:  # close() alone would keep the lock if a forked process holds a copy
            fcntl.flock(file, fcntl.LOCK_UN)
