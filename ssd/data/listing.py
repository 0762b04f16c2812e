"""The base class of formats in which one file describes many pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from ssd.data.annotations import Entry, Object
from ssd.data.dataset import BoxDataset
from ssd.data.folder import Folder, split_named, split_of


class Listed(NamedTuple):
    """A picture in a file that describes many."""

    names: tuple[str, ...]  # for the picture, see `Folder.find`
    objects: Callable[[], list[Object]]  # checks and converts what the file has about the picture
    size: Callable[[], tuple[int, int]] = lambda: (0, 0)  # width and height according to the file; zeros if unknown
    split: str = ""  # that the file names
    remark: str = ""  # see `Entry`


class Placed(NamedTuple):
    """A listed picture, the file that lists it, and its split."""

    file: str
    listed: Listed
    split: str


class ListingDataset(BoxDataset):
    """Pictures that are described by one file, or by one file for each split; see `BoxDataset`.

    The split of a picture is the one that the file gives for it; or else the one that the file is named after; or else
    that of the folder that the picture is in.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._declared: list[str] = []  # the names of the classes
        super().__init__(*args, **options)

    @classmethod
    @abstractmethod
    def _files(cls, folder: Folder) -> list[str]:
        """The paths of the files of this format in a folder."""

    @classmethod
    @abstractmethod
    def _pictures(cls, folder: Folder, file: str) -> Iterator[Listed]:
        """Reads the pictures of a file, given by its path relative to the folder."""

    @classmethod
    def _classes(cls, folder: Folder) -> list[str]:
        """The names of the classes that the files declare, in their order; empty if they declare none."""
        return []

    @classmethod
    def _find(cls, pictures: Folder, names: tuple[str, ...], beside: str, split: str) -> str:
        """Finds the picture with one of these names; arguments and errors are those of `Folder.find`."""
        return pictures.find(names, beside, split)

    @classmethod
    def claim(cls, folder: Folder) -> str | None:
        files = cls._files(folder)
        return f"{', '.join(files[:3])} of {cls.FORMAT}" if files else None

    @classmethod
    def splits(cls, folder: Folder) -> list[str]:
        return sorted({placed.split for placed in folder.once(cls._placed)} - {""})

    @classmethod
    def _placed(cls, folder: Folder) -> list[Placed]:
        placed: list[Placed] = []
        seen: dict[tuple[str, tuple[str, ...]], str] = {}
        for file in cls._files(folder):
            of_file = split_named(file)
            for listed in cls._pictures(folder, file):
                split = listed.split or of_file
                if (other := seen.setdefault((split, listed.names), file)) != file:
                    raise ValueError(
                        f"{folder.root}: {other} and {file} both describe {listed.names[0]!r}; name one as the data"
                    )
                if not split:
                    with suppress(FileNotFoundError):  # which is reported when the picture is read
                        split = split_of(cls._find(folder.surroundings, listed.names, folder.beside(file), ""))
                placed.append(Placed(file, listed, split))
        return placed

    def _readers(self, folder: Folder, split: str | None) -> Iterator[Callable[[], Entry]]:
        self._declared += self._classes(folder)
        chosen = (placed for placed in folder.once(self._placed) if split in (None, placed.split))
        return (partial(self._entry, folder, placed) for placed in chosen)

    def _entry(self, folder: Folder, placed: Placed) -> Entry:
        pictures, (file, listed, split) = folder.surroundings, placed
        picture = pictures.root / self._find(pictures, listed.names, folder.beside(file), split)
        return Entry(folder.root / file, picture, listed.objects(), size=listed.size(), remark=listed.remark)

    def _names(self, found: Sequence[str]) -> Sequence[str]:
        return self._declared or sorted(found)
