"""Tar archives as folders of pictures and annotations, which are read without unpacking them.

Each archive is searched once, from its beginning to its end. The places of its files, the headers of its pictures and
the contents of its small other files are kept, so a remote archive is read only once before training.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from ssd.data.annotations import PATIENCE
from ssd.data.cache import cached
from ssd.data.folder import Folder, Root, is_hidden, split_named, split_of
from ssd.data.members import Member, text_of
from ssd.data.picture_formats import is_picture
from ssd.data.reading import header_of
from ssd.runtime.packed import Texts
from ssd.runtime.remote import absolute, is_url, list_files, open_to_search, tried
from ssd.runtime.threads import in_threads, in_threads_if_slow

SUFFIX = ".tar"
COMPRESSED = "is compressed, so no picture can be read without all before it; write it without compression"
SMALL = 1 << 20  # bytes of other files than pictures up to which their content is kept
START = 1 << 12  # bytes of a picture that its checksum covers
NO_HEADER: tuple[int, ...] = (0, 0, 0, 0)
SEARCHERS = 16  # archives that are searched at the same time


class _Found(NamedTuple):
    """What was found in one archive or in several: N files, in their order."""

    names: Texts[str]
    archives: np.ndarray  # (N,) int32, the number of the archive
    places: np.ndarray  # (N, 3) int64, first byte, size in bytes, and checksum of the first bytes
    headers: np.ndarray  # (N, 4) int32, `Header`s of pictures; zeros for other files and unreadable pictures
    contents: bytes  # of small other files, one after the other
    ends: np.ndarray  # (N + 1,) int64, where the content of each file is in `contents`; nothing for other files

    @classmethod
    def join(cls, parts: Sequence[_Found]) -> _Found:
        """Puts the files of several archives one after the other."""
        shifts = np.cumsum([0, *(len(part.contents) for part in parts)])
        return cls(
            Texts((name for part in parts for name in part.names.texts()), str),
            np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.names) for part in parts]),
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.headers for part in parts]),
            b"".join(part.contents for part in parts),
            np.concatenate([[0], *(part.ends[1:] + shift for part, shift in zip(parts, shifts, strict=False))]),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        names, name_ends = self.names.arrays
        arrays = {name: value for name, value in self._asdict().items() if isinstance(value, np.ndarray)}
        return arrays | {"names": names, "name_ends": name_ends, "contents": np.frombuffer(self.contents, np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> _Found:
        names, contents = Texts.of(arrays["names"], arrays["name_ends"], str), arrays["contents"].tobytes()
        return cls(names, arrays["archives"], arrays["places"], arrays["headers"], contents, arrays["ends"])


def _search(archive: str) -> _Found:
    """Searches an archive.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no tar archive, or damaged.
        PartError: it cannot be read.
    """
    found = tried(lambda: _search_once(archive), archive)
    if isinstance(found, ValueError):
        raise found
    return found


def _search_once(archive: str) -> _Found | ValueError:
    files: dict[str, _File] = {}
    links: dict[str, str] = {}  # the path of a link, and what it leads to
    with open_to_search(archive) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # which tarfile fills with all of them
                    name = _plain(info.name)
                    if is_hidden(name) or info.issparse():
                        continue
                    files.pop(name, None)  # of two with one name, tar unpacks the last one
                    links.pop(name, None)
                    if info.islnk():
                        links[name] = _plain(info.linkname)
                    elif info.issym():
                        links[name] = os.path.normpath(os.path.join(os.path.dirname(name), info.linkname))
                    elif info.isreg():
                        files[name] = _read(tar, info, name)
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0") or file.tell() <= tar.offset:
                    raise tarfile.ReadError("the blocks of zeros at its end are missing")
        except tarfile.TarError as error:
            # Returned, since `tried` would search a remote archive again.
            return ValueError(f"{archive}: {_problem(file)} ({error})")
    for name, target in links.items():
        if target in files:
            files[name] = files[target]
    return _Found(
        Texts(files, str),
        np.zeros(len(files), np.int32),
        np.array([its.place for its in files.values()], np.int64).reshape(-1, 3),
        np.array([its.header for its in files.values()], np.int32).reshape(-1, 4),
        b"".join(its.content for its in files.values()),
        np.cumsum([0, *(len(its.content) for its in files.values())]),
    )


class _File(NamedTuple):
    """A file in an archive; see `_Found`."""

    place: tuple[int, int, int]
    header: tuple[int, ...]
    content: bytes


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> _File:
    start, header, content = b"", NO_HEADER, b""
    with cast("IO[bytes]", tar.extractfile(info)) as opened:
        if is_picture(name):
            start = opened.read(START)
            opened.seek(0)
            header = _header(opened)
        elif info.size <= SMALL:
            content = opened.read()
    return _File((info.offset_data, info.size, zlib.crc32(start)), header, content)


def _plain(name: str) -> str:
    """The name of a file in an archive without "./" and "/" at its beginning."""
    return str(PurePosixPath(name.lstrip("/")))


def _header(file: IO[bytes]) -> tuple[int, ...]:
    """The header of a picture; zeros if it is unreadable, for which the error comes when the picture is read."""
    try:
        return header_of(file)
    except Exception:  # see header_of
        return NO_HEADER


def _problem(file: IO[bytes]) -> str:
    file.seek(0)
    start = file.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return COMPRESSED
    return "is no tar archive, or damaged"


class _Root:
    """The folder that archives would be unpacked to; `/` gives the files in it."""

    def __init__(self, place: str, archives: Sequence[str]) -> None:
        self.place, self.archives = place, archives
        self._rows: dict[str, int] = {}
        self._found: _Found | None = None

    def fill(self, found: _Found, rows: dict[str, int]) -> None:
        """Sets what was found, and the row of each path."""
        self._found, self._rows = found, rows

    def __str__(self) -> str:
        return self.place

    def content(self, path: str, n: int | None = None) -> bytes | None:
        """The first n bytes of a file, or all; None if they were not kept."""
        row, found = self._rows.get(path), self._found
        if row is None or found is None:
            return None
        begin, end = found.ends[row : row + 2].tolist()
        kept = end - begin == found.places[row, 1]
        return found.contents[begin : end if n is None else min(end, begin + n)] if kept else None

    def __fspath__(self) -> str:
        return self.place

    def __truediv__(self, path: str) -> Member:
        row, found = self._rows.get(path), self._found
        if row is None or found is None:
            return Member(self.place, path)
        begin, size, check = found.places[row].tolist()
        header = tuple(found.headers[row].tolist())
        archive = self.archives[int(found.archives[row])]
        known = None if header == NO_HEADER else header
        return Member(archive, found.names[row], begin, size, check, self.content(path), known)


class ArchiveFolder(Folder):
    """Tar archives as one folder.

    A single archive is the folder that it would be unpacked to. Of several, each is a folder with the name of the
    archive; this folder is in another one with the name of a split, if the name of the archive has it: a.jpg of
    train-000000.tar is train/train-000000/a.jpg.

    Args:
        given: the folder, the pattern or the archives, as the user named them.
        archives: paths or URLs of the archives, at least one.
    """

    def __init__(self, given: str, archives: Sequence[str]) -> None:
        self.given, self.archives = given, list(archives)
        self.only = None
        self._results = {}
        place = given if len(archives) == 1 or Path(given).is_dir() else os.path.dirname(archives[0])
        self._root = _Root(place, self.archives)
        self.path = cast(Path, given)  # for messages
        self.root = cast(Path, self._root)  # it has the methods of Path that readers of data sets use

    @cached_property
    def _paths(self) -> list[str]:
        """The paths of all files."""
        found = self._search()
        prefixes = self._prefixes()
        names = zip(found.archives.tolist(), found.names.texts(), strict=True)
        paths = [prefixes[archive] + name for archive, name in names]
        self._root.fill(found, {path: row for row, path in enumerate(paths)})
        return paths

    def _search(self) -> _Found:
        def search() -> dict[str, np.ndarray]:
            if any(map(is_url, self.archives)):
                each = in_threads(_search, self.archives, SEARCHERS, ahead=SEARCHERS)
            else:
                each = in_threads_if_slow(_search, self.archives, chunk=1)
            bar = tqdm(each, "searching", len(self.archives), unit="archive", delay=PATIENCE, leave=False, disable=None)
            return _Found.join(list(bar)).to_arrays()

        key = "archives", *map(absolute, self.archives)
        return _Found.from_arrays(cached(key, search, lambda _: self.archives))

    def _prefixes(self) -> list[str]:
        """The folder of each archive, with "/"; or "" for a single archive without a split in its name."""
        above = os.path.dirname(self.archives[0]) if len(self.archives) == 1 else _common_place(self.archives)
        prefixes = []
        for archive in self.archives:
            inside = archive[len(above) :].lstrip("/")
            inside = _without_query(inside)
            own = f"{inside[: -len(SUFFIX)]}/" if len(self.archives) > 1 else ""
            split = split_named(inside)
            prefixes.append(own if not split or split_of(own) == split else f"{split}/{own}")
        return prefixes

    @cached_property
    def _listed(self) -> tuple[list[Path], dict[str, list[str]]]:
        by_suffix: dict[str, list[str]] = defaultdict(list)
        for path in self._paths:
            by_suffix[os.path.splitext(path)[1].lower()].append(path)
        return [Path(self.given)] if Path(self.given).is_dir() else [], by_suffix

    def as_stored(self, paths: Iterable[str]) -> list[str]:
        place = {path: i for i, path in enumerate(self._paths)}
        return sorted(paths, key=place.__getitem__)

    @property
    def names(self) -> tuple[str, ...]:
        return self.given, *map(absolute, self.archives)

    def text(self, path: str) -> str:
        return text_of(self._root / path)

    def head(self, path: str, n: int) -> bytes:
        return self._root.content(path, n) or (self._root / path).read_bytes()[:n]

    def holds(self, path: Path) -> bool:
        return False


def _common_place(archives: Sequence[str]) -> str:
    """The folder that all archives are in, directly or not."""
    parts = [os.path.dirname(archive).split("/") for archive in archives]
    n = next((i for i, each in enumerate(zip(*parts, strict=False)) if len(set(each)) > 1), min(map(len, parts)))
    return "/".join(parts[0][:n])


def folders_of(roots: Root | Iterable[Root]) -> list[Folder]:
    """Opens the folders of a data set. Tar archives that are named one after the other are one folder.

    Args:
        roots: folders, files, tar archives, or URLs of tar archives; a name may have numbers such as
            {000000..000146} and, as a URL, *. A folder, or the URL of one, may have archives in it.

    Raises:
        FileNotFoundError: there is no such folder, file or archive.
        OSError: a URL cannot be read.
    """
    every = [roots] if isinstance(roots, (str, os.PathLike, Folder)) else list(roots)
    opened: list[Folder | list[str]] = []
    for root in every:
        opened.append(root if isinstance(root, Folder) else _opened(os.fspath(root)))
    folders: list[Folder] = []
    given = iter(every)
    for are_archives, group in groupby(opened, lambda one: isinstance(one, list)):
        its = list(group)
        names = [str(next(given)) for _ in its]
        if are_archives:
            shown = ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"
            folders.append(ArchiveFolder(shown, [archive for one in its for archive in one]))  # type: ignore[union-attr]
        else:
            folders += cast("list[Folder]", its)
    return folders


def _opened(root: str) -> Folder | list[str]:
    """The archives that a path or a URL names, or the ordinary folder or file."""
    names = list(dict.fromkeys(_expanded(root)))  # nested braces give names twice
    for name in names:
        _check_uncompressed(name)
    if is_url(root):
        found: list[str] = []
        for name in names:
            found += [name] if _is_archive(name) and "*" not in name else list_files(name, SUFFIX)
        if not found:
            raise FileNotFoundError(f"{root}: no {SUFFIX} files; name them, as in train-{{000000..000146}}.tar")
        return found
    if len(names) > 1 or _is_archive(root):
        for name in names:
            if not os.path.isfile(name):
                hint = ' (patterns with "*" work without quotes)' if "*" in name else ""
                raise FileNotFoundError(f"{name}: no such file{hint}")
        return names
    if os.path.isdir(root):
        folder = Folder(Path(root))
        archives = folder.files(SUFFIX)
        if archives and not folder.pictures:
            for path in folder.files(".gz", ".tgz"):
                _check_uncompressed(os.path.join(root, path))
            return [os.path.join(root, path) for path in archives]
        return folder  # listed once
    return Folder.of(root)


def _is_archive(name: str) -> bool:
    return _without_query(name).lower().endswith(SUFFIX)


def _check_uncompressed(name: str) -> None:
    """Raises ValueError if a file is a compressed archive by its name."""
    if _without_query(name).lower().endswith((".tar.gz", ".tgz")):
        raise ValueError(f"{name}: {COMPRESSED}")


def _without_query(name: str) -> str:
    """A URL without what follows "?", such as a signature."""
    return name.partition("?")[0] if is_url(name) else name


def _expanded(pattern: str) -> list[str]:
    """The names of a pattern with numbers such as {000..146} or words such as {train,val}; other names are as given."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is None:
        each = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        each = words.split(",")
    return [name for one in each for name in _expanded(pattern[: match.start()] + one + pattern[match.end() :])]
