"""Files in tar archives, with the methods of `pathlib.Path` that readers of data sets use."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from ssd.runtime.remote import Part, read_part

LOCATED = "\0"  # stands between the path of a member and its location; no path has this character


class Member:
    """A file in a tar archive, which is read from the archive.

    Attributes:
        archive: path or URL of the archive.
        inside: its path in the archive.
        begin, size: its first byte in the archive, and its size in bytes.
        check: checksum of its first bytes, 0 if unknown.
        content: its bytes, if they were read before.
        header: that of a picture, if it was read before.
    """

    __slots__ = ("archive", "begin", "check", "content", "header", "inside", "size")

    def __init__(
        self,
        archive: str,
        inside: str,
        begin: int = 0,
        size: int = -1,  # there is no such file
        check: int = 0,
        content: bytes | None = None,
        header: tuple[int, ...] | None = None,
    ) -> None:
        self.archive, self.inside, self.begin, self.size, self.check = archive, inside, begin, size, check
        self.content, self.header = content, header

    def __str__(self) -> str:
        return f"{self.archive}/{self.inside}"

    def __repr__(self) -> str:
        return f"Member({str(self)!r})"

    def __fspath__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and text_of(other) == text_of(self)

    def __lt__(self, other: Member) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(text_of(self))

    @property
    def name(self) -> str:
        return PurePosixPath(self.inside).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.inside).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.inside).suffix

    @property
    def part(self) -> Part:
        """Its place in the archive."""
        return self.archive, self.begin, self.size

    def as_posix(self) -> str:
        return str(self)

    def is_file(self) -> bool:
        return self.size >= 0

    def read_bytes(self) -> bytes:
        """Reads the file.

        Raises:
            FileNotFoundError: there is no such file in the archive.
            OSError: the archive cannot be read.
        """
        if self.size < 0:
            raise FileNotFoundError(f"{self}: no such file")
        return read_part(self.part) if self.content is None else self.content

    def open(self, mode: str = "rb") -> IO[bytes]:
        return _Bytes(self)


class InMemory(Member):
    """The bytes of a file that is in no archive, and has no name."""

    __slots__ = ()

    def __init__(self, content: bytes) -> None:
        super().__init__("", "", size=len(content), content=content)

    def __str__(self) -> str:
        return "a picture in memory"


class _Bytes(io.BytesIO):
    """A member in memory, which shows its name in errors of Pillow."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.read_bytes())
        self._name = str(member)

    def __repr__(self) -> str:
        return repr(self._name)


AnyFile: TypeAlias = Path | Member


def text_of(path: AnyFile) -> str:
    """A text from which `file_of` makes the file again: its path, and behind `LOCATED` where an archive has it."""
    if isinstance(path, Member):
        return f"{path}{LOCATED}{len(path.archive)} {path.begin} {path.size} {path.check}"
    return str(path)


def file_of(text: str) -> AnyFile:
    """The file of a text from `text_of`."""
    path, located, where = text.partition(LOCATED)
    if not located:
        return Path(path)
    length, begin, size, check = map(int, where.split())
    return Member(path[:length], path[length + 1 :], begin, size, check)


def shown(text: str) -> str:
    """The path in a text from `text_of`, for people."""
    return text.partition(LOCATED)[0]


def source_of(text: str) -> str:
    """The file on the disk, or the URL, that has the file of a text from `text_of`."""
    path, located, where = text.partition(LOCATED)
    return path[: int(where.split()[0])] if located else path


def identity(path: AnyFile) -> tuple[int, int]:
    """Numbers that are equal for two files with equal bytes: the size, and for members of archives the checksum."""
    return (path.size, path.check) if isinstance(path, Member) else (os.stat(path).st_size, 0)
