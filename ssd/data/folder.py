"""The files of a data set's folder: listed once, and pictures found by the names that annotations have for them."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

from ssd.data.picture_formats import SUFFIXES, UNREADABLE, describe_unreadable
from ssd.runtime.text import composed

SPLIT_WORDS = {  # kind of a split by the first word of its name; earlier words are preferred
    "trainval": "trainval",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
Result = TypeVar("Result")
PICTURE_FOLDERS = {"jpegimages", "images", "image", "imgs", "img", "data"}  # preferred to others, such as drawings


def kind_of_split(name: str) -> str:
    """The kind of a split by its name, such as "val" for "validation" and "val2017"; "" for "training_data"."""
    word = re.fullmatch("([a-z]+)[^a-z]*", name.lower())
    return SPLIT_WORDS.get(word[1], "") if word else ""


def is_split(name: str) -> bool:
    """Tells whether a folder or a file is named like a split."""
    return kind_of_split(name) != ""


def split_of(path: str) -> str:
    """The name of the split that a file belongs to by its folders, or "" if none of them is named like a split."""
    return next((part for part in path.split("/")[:-1] if is_split(part)), "")


def split_named(path: str) -> str:
    """The split that a file of annotations is for, by a word of its name, or else by its folders; "" if by none.

    train_labels.csv, oidv6-train-annotations-bbox.csv and train/_annotations.csv are all for "train".
    """
    words = {word for word in re.split(r"[\W_]+", PurePosixPath(path).stem) if is_split(word)}
    return words.pop() if len(words) == 1 else split_of(path)


def is_hidden(path: str) -> bool:
    """Tells whether a file or one of its folders is hidden, or one that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def walk(
    root: str | os.PathLike[str], on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks through a folder as `os.walk` does, and through the folders that links in it lead to.

    Hidden files and folders, and those that macOS adds to archives, are left out.

    Args:
        root: the folder.
        on_error: called with the error of a folder that cannot be searched, which is left out.
    """
    visited: set[str] = set()
    for place, folders, files in os.walk(root, onerror=on_error, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield place, folders, [name for name in files if not is_hidden(name)]


class PathEnds:
    """Finds those of many paths that have the most last parts of another one, without comparing it with all.

    Args:
        paths: the paths, with "/".
    """

    def __init__(self, paths: Iterable[str]) -> None:
        pairs = sorted((_backwards(composed(path)), place) for place, path in enumerate(paths))
        self._paths, self._places = [path for path, _ in pairs], [place for _, place in pairs]

    def find(self, path: str) -> list[int]:
        """The places of the paths with the most last parts of this one; empty if none has even its last part."""
        return self._places[_sharing(self._paths, _backwards(composed(path)))]


def _backwards(path: str) -> str:
    """The parts of a path in reverse order, each with "/" behind it."""
    return "/".join(path.split("/")[::-1]) + "/"


def _sharing(paths: Sequence[str], wanted: str) -> slice:
    """The place of those of sorted paths that have the most first parts of a path, which ends with "/"."""
    while wanted:
        begin = bisect_left(paths, wanted)
        end = bisect_left(paths, f"{wanted[:-1]}0", begin)  # "0" is the character behind "/"
        if begin < end:
            return slice(begin, end)
        wanted = wanted[: wanted[:-1].rfind("/") + 1]
    return slice(0, 0)


class Folder:
    """All files below a folder, which are listed when they are first needed.

    Those that `walk` leaves out are not among them.

    Args:
        root: the folder, or a file in it, to which the annotations are then limited.

    Attributes:
        path: the folder or the file that was given.
        root: the folder.
        only: the file that was given instead of a folder; else None.
    """

    def __init__(self, root: Path) -> None:
        self.path = root
        self.only = root if root.is_file() else None
        self.root = root.parent if self.only else root
        self._results: dict[Callable[[Folder], Any], Any] = {}

    def once(self, read: Callable[[Folder], Result]) -> Result:
        """Calls a function for this folder, or returns what its first call has returned.

        So the formats, each of which looks whether the folder is in its layout, read no file twice.
        """
        if read not in self._results:
            self._results[read] = read(self)
        return self._results[read]

    @cached_property
    def _listed(self) -> tuple[list[Path], dict[str, list[str]]]:
        """The paths of all folders, and those of all files by their suffix."""
        every: list[Path] = []
        by_suffix: dict[str, list[str]] = defaultdict(list)
        for place, _, files in walk(self.root):
            every.append(Path(place))
            inside = Path(place).relative_to(self.root).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            for name in files:
                by_suffix[os.path.splitext(name)[1].lower()].append(prefix + name)
        return every, by_suffix

    def as_stored(self, paths: Iterable[str]) -> list[str]:
        """Sorts paths, or puts them into the order in which they stand in archives."""
        return sorted(paths)

    @property
    def names(self) -> tuple[str, ...]:
        """Texts that name the folder, also from another working directory."""
        return str(self.path), os.path.abspath(self.path)

    def text(self, path: str) -> str:
        """The text of a file for `ssd.data.members.file_of`."""
        root = os.fspath(self.root)
        return path if root == os.curdir else os.path.join(root, path)  # as `pathlib` joins them, but faster

    def head(self, path: str, n: int) -> bytes:
        """Reads the first n bytes of a file; all if it has less."""
        with open(self.root / path, "rb") as file:
            return file.read(n)

    def holds(self, path: Path) -> bool:
        """Tells whether a path is inside of the folder."""
        return path.resolve().is_relative_to(self.root.resolve())

    @cached_property
    def surroundings(self) -> Folder:
        """The folder with the pictures: itself, or the one above if a file was given that has none beside or below."""
        return self if self.only is None or self.pictures else Folder(self.root.absolute().parent)

    def beside(self, path: str) -> str:
        """Makes the path of a file relative to `surroundings`."""
        return path if self.surroundings is self else f"{self.root.absolute().name}/{path}"

    @property
    def folders(self) -> list[Path]:
        """Paths of all folders."""
        return self._listed[0]

    @cached_property
    def pictures(self) -> list[str]:
        """Paths of the pictures, relative to the folder, with "/", sorted."""
        return sorted(path for suffix in SUFFIXES for path in self._listed[1][suffix])

    @cached_property
    def unreadable(self) -> list[str]:
        """Paths of the pictures whose format cannot be read here, see `describe_unreadable`; as in `pictures`."""
        return sorted(path for suffix in UNREADABLE for path in self._listed[1][suffix])

    @cached_property
    def _files(self) -> set[str]:
        return {path for paths in self._listed[1].values() for path in paths}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Paths of the pictures by their names, see `_plain`."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.pictures:
            found[_plain(path)].append(path)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Paths of the pictures by their names without suffix."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.pictures:
            found[_stem(path)].append(path)
        return found

    @cached_property
    def _ends(self) -> PathEnds:
        return PathEnds(self.pictures)

    @cached_property
    def _unreadable_by_stem(self) -> dict[str, str]:
        """For each name without suffix of `unreadable`, the path of the first one."""
        return {_stem(path): path for path in reversed(self.unreadable)}

    @classmethod
    def of(cls, root: str | os.PathLike[str] | Folder) -> Folder:
        """Lists a folder; one that has been listed is returned as it is.

        Raises:
            FileNotFoundError: there is no such folder or file.
        """
        if isinstance(root, Folder):
            return root
        if not Path(root).exists():
            raise FileNotFoundError(f"{root}: no such folder")
        return cls(Path(root))

    def files(self, *suffixes: str) -> list[str]:
        """Lists the files with one of these suffixes, in small letters, relative to the folder; or the file given."""
        if self.only is not None:
            return [self.only.name] if self.only.suffix.lower() in suffixes else []
        return sorted(path for suffix in suffixes for path in self._listed[1][suffix])

    def with_suffix(self, start: str) -> list[str]:
        """The paths of the files whose suffix begins with these small letters."""
        return sorted(path for suffix, paths in self._listed[1].items() if suffix.startswith(start) for path in paths)

    def contents(self, at_most: int = 8) -> str:
        """Describes what is there, such as "12 .jpg in images, 1 .md at the top", for error messages."""
        counts = Counter((os.path.dirname(path), suffix) for suffix, paths in self._listed[1].items() for path in paths)
        said = [
            f"{n} {suffix or 'files'} {f'in {place}' if place else 'at the top'}"
            for (place, suffix), n in sorted(counts.items())
        ]
        if len(said) > at_most:
            said[at_most:] = [f"and {len(said) - at_most} more kinds"]
        return ", ".join(said) or "nothing"

    def lists(self) -> dict[str, str]:
        """Finds text files at the top that are named like splits, such as train.txt, by their names without suffix."""
        texts = {path.removesuffix(".txt"): path for path in self.files(".txt") if "/" not in path}
        return {name: path for name, path in texts.items() if is_split(name)}

    def has(self, path: str) -> bool:
        """Tells whether there is a file with this path relative to the folder."""
        return path in self._files

    def named(self, name: str) -> list[str]:
        """The pictures that a name may mean, see `find`, by its last part alone; with "/" as the separator."""
        last = _plain(name)
        found = self._by_name.get(last) or self._by_stem.get(last) or self._by_stem.get(os.path.splitext(last)[0])
        return found or []

    def find(self, names: Iterable[str], beside: str, hint: str = "") -> str:
        """Finds the picture that an annotation describes.

        A name may have folders of another machine, backslashes, quoted characters, another case, another suffix or
        none, or accents in other characters (`ssd.runtime.text.composed`). Of several pictures with the name, the one
        that agrees in most folders is taken; then one whose folders have the `hint`; then the one nearest to the
        annotation; then one in a folder such as "images".

        Args:
            names: names for the picture; the first one that any picture has decides.
            beside: path of the annotation, relative to the folder.
            hint: name of a folder, such as that of the split.

        Returns:
            The path of the picture, relative to the folder.

        Raises:
            FileNotFoundError: there is no such picture, or several fit equally well.
        """
        wanted = [name.replace("\\", "/") for name in names if name]
        for name in (*wanted, *(unquote(name) for name in wanted if "%" in name)):
            if found := self.named(name):
                return found[0] if len(found) == 1 else self._nearest(found, name, beside, hint)
        others = [path for name in wanted if (path := self._unreadable_by_stem.get(_stem(name)))]
        reasons = "".join(f" ({line})" for line in describe_unreadable(others[:1]))
        raise FileNotFoundError(
            f"{self.root / beside}: no picture {wanted[0] if wanted else ''!r} in {self.root}{reasons}"
        )

    def _nearest(self, found: list[str], name: str, beside: str, hint: str) -> str:
        """The one of several pictures that a name means, see `find`. Each step leaves fewer for the next one."""
        agreeing = self._ends.find(str(PurePosixPath(name)))
        if 0 < len(agreeing) < len(found):
            found = [self.pictures[place] for place in sorted(agreeing)]
        if hint:
            found = [picture for picture in found if hint in picture.split("/")[:-1]] or found
        found = found[_sharing(found, beside[: beside.rfind("/") + 1])] or found

        def rank(picture: str) -> tuple[bool, int]:
            folders = picture.lower().split("/")[:-1]
            return PICTURE_FOLDERS.isdisjoint(folders), len(folders)

        best = min(map(rank, found))
        first, *others = (picture for picture in found if rank(picture) == best)
        if others:
            places = f"{self.root / first} and {self.root / others[0]}"
            raise FileNotFoundError(f"{self.root / beside}: two pictures fit the name {name!r}: {places}")
        return first


def _plain(path: str) -> str:
    """The name of a file as it is compared with others: in small letters, and composed."""
    return composed(path[path.rfind("/") + 1 :]).lower()


def _stem(path: str) -> str:
    """The name of a file as it is compared, without suffix."""
    return os.path.splitext(_plain(path))[0]


Root = str | os.PathLike[str] | Folder  # where a data set is
