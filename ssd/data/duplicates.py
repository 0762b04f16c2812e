"""Finds pictures that are in a data set more than once: as equal files, or as pictures that look the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssd.data.depth import Levels
from ssd.data.members import AnyFile, identity, text_of
from ssd.data.pixels import over_pictures
from ssd.data.reading import ImageReadError, PictureFile
from ssd.runtime.remote import PartError

HEAD = 1 << 16  # bytes at the beginning of files of the same size that are compared before whole files are
CHUNK = 1 << 20  # bytes of a file in memory at once
DECODED, SMALL = 32, 16  # sides in pixels of the picture that is decoded, and of the grey one that is kept
BANDS = 8  # 16-bit parts of a hash of 128 bits
# Largest number of different bits. With fewer different bits than bands, two hashes have an equal band.
DISTANCE = BANDS - 1
# Least correlation of the grey pictures. Copies in another size or quality have more than 0.99; different photographs
# of one subject with similar hashes were below 0.96.
ALIKE = 0.97
FLAT = 1.0  # standard deviation in grey levels, of 255, below which a picture has nothing to compare
WINDOW = 300  # pictures with an equal band that a picture is compared with, at most; bounds the time
BITS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


class Looks(NamedTuple):
    """How N pictures look, and which of them cannot be read.

    Attributes:
        hashes: (N, BANDS) uint16, the difference hash (dHash) of each picture, rows and columns: a bit says whether a
            field of a grid of 8 x 9 or 9 x 8 is brighter than the one before it.
        grey: (N, SMALL * SMALL) float32, the pixels of a grey picture with a mean of 0 and a standard deviation of 1;
            zeros for a picture that is flat or cannot be read.
        unreadable: for the index of each picture that cannot be read, the error.
    """

    hashes: np.ndarray
    grey: np.ndarray
    unreadable: dict[int, str]


class Copies(NamedTuple):
    """Pictures that are the same."""

    pictures: list[int]  # indices, at least two, sorted
    equal: bool  # whether their files have equal bytes; otherwise they look the same


def equal_files(pictures: Sequence[AnyFile], splits: Sequence[str] | None = None) -> list[list[int]]:
    """Groups files with equal bytes. A file is read only if another one has its size, and in full only if needed.

    Args:
        pictures: the files; one that is named twice is equal to itself.
        splits: the split of each. None: files of one split are compared too.

    Returns:
        The sorted indices of each group with at least two files, in the order of the first ones; with `splits`, of each
        group with files of two splits.
    """

    def matters(group: Iterable[int]) -> bool:
        indices = [i for index in group for i in places[text_of(pictures[index])]]
        return len(indices if splits is None else {splits[i] for i in indices}) > 1

    places: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        places[text_of(picture)].append(index)
    groups = [[indices[0] for indices in places.values()]]
    keys: tuple[Callable[[AnyFile], Hashable], ...] = (identity, _hash_of_head, _hash_of_all)
    for key in keys:
        groups = [part for group in groups for part in _split(group, pictures, key) if matters(part)]
    grouped = {index for group in groups for index in group}
    groups += [[index] for index, *_ in places.values() if index not in grouped and matters([index])]
    return sorted(sorted(i for index in group for i in places[text_of(pictures[index])]) for group in groups)


def _split(group: list[int], pictures: Sequence[AnyFile], key: Callable[[AnyFile], Hashable]) -> Iterator[list[int]]:
    """The parts of a group in which the files have equal keys, if they have two files or more."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        parts[key(pictures[index])].append(index)
    yield from (part for part in parts.values() if len(part) > 1)


def _hash_of_head(picture: AnyFile) -> bytes:
    with picture.open("rb") as file:
        return blake2b(file.read(HEAD), digest_size=16).digest()


def _hash_of_all(picture: AnyFile) -> bytes:
    hasher = blake2b(digest_size=16)
    with picture.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.digest()


def look_at(pictures: Sequence[AnyFile], levels: Levels | None) -> Looks:
    """Decodes all pictures at a low resolution, in threads; shows a progress bar if that takes long.

    Args:
        pictures: the files.
        levels: see `BoxDataset`.
    """

    def look(index: int) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            picture = PictureFile(pictures[index], levels=levels)
            pixels, _ = picture.part((0, 0, picture.width, picture.height), (DECODED, DECODED))
        except (ImageReadError, OSError, PartError) as error:
            return str(error)
        return _hash_and_grey(pixels)

    hashes: np.ndarray = np.zeros((len(pictures), BANDS), np.uint16)
    grey: np.ndarray = np.zeros((len(pictures), SMALL * SMALL), np.float32)
    unreadable = {}
    for index, found in enumerate(over_pictures(look, range(len(pictures)), "comparing")):
        if isinstance(found, str):
            unreadable[index] = found
        else:
            hashes[index], grey[index] = found
    return Looks(hashes, grey, unreadable)


def _hash_and_grey(pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A row of `Looks.hashes` and one of `Looks.grey`, of a picture (3, DECODED, DECODED) uint8."""
    grey = pixels.float().mean(0)[None, None]
    rows, columns, small = (
        F.interpolate(grey, size, mode="bilinear", antialias=True)[0, 0] for size in ((8, 9), (9, 8), (SMALL, SMALL))
    )
    bits = torch.cat([(rows.diff(dim=1) > 0).flatten(), (columns.diff(dim=0) > 0).flatten()]).numpy()
    deviation = small.std(correction=0)
    scaled = (small - small.mean()) / deviation if deviation >= FLAT else torch.zeros_like(small)
    return np.packbits(bits).view(np.uint16), scaled.flatten().numpy()


def find_copies(pictures: Sequence[AnyFile], looks: Looks) -> list[Copies]:
    """Groups the pictures that are the same: first by the bytes of their files, then by how they look.

    Two pictures look the same if their hashes differ in at most `DISTANCE` bits and their grey pictures have a
    correlation of at least `ALIKE`. Mirrored, turned and cropped copies are not found. Pictures without any contrast
    are compared by their files only. The time grows with the number of pictures and not with its square, because each
    is compared with at most `WINDOW` others that have an equal band of the hash.

    Args:
        pictures: the N files. Those that cannot be read are compared by their files only.
        looks: the result of `look_at`.

    Returns:
        The groups in the order of their first pictures. In a group with `equal` False, some of the files may be equal
        nevertheless.
    """
    readable = [i for i in range(len(pictures)) if i not in looks.unreadable]
    equal = [[readable[i] for i in group] for group in equal_files([pictures[i] for i in readable])]
    root = np.arange(len(pictures))
    for group in equal:
        root[group] = group[0]
    _join_alike(root, np.flatnonzero((root == np.arange(len(root))) & looks.grey.any(1)), looks)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(pictures)):
        groups[_end(root, index)].append(index)
    files = set(map(tuple, equal))
    return [Copies(group, tuple(group) in files) for group in groups.values() if len(group) > 1]


def _join_alike(root: np.ndarray, pictures: np.ndarray, looks: Looks) -> None:
    """Joins the groups of pictures that look the same.

    Args:
        root: (N,) int64: for each picture one of its group, or itself; following them leads to the first one. Changed.
        pictures: indices of the pictures that are compared.
        looks: the result of `look_at`.
    """
    hashes, grey = looks.hashes, looks.grey
    whole = [hashes[pictures, band] for band in range(BANDS)]
    for band in range(BANDS):
        order = pictures[np.lexsort([*whole, whole[band]])]  # by this band, and within it by the whole hash
        key = hashes[order, band]
        places = np.arange(len(order))
        for shift in range(1, WINDOW + 1):
            places = places[: np.searchsorted(places, len(order) - shift)]
            places = places[key[places] == key[places + shift]]
            if not len(places):
                break
            pairs = np.stack([order[places], order[places + shift]])
            pairs = pairs[:, root[pairs[0]] != root[pairs[1]]]
            pairs = pairs[:, BITS[hashes[pairs[0]] ^ hashes[pairs[1]]].sum(1) <= DISTANCE]
            alike = np.einsum("ij,ij->i", grey[pairs[0]], grey[pairs[1]]) >= ALIKE * grey.shape[1]
            for pair in pairs[:, alike].T.tolist():
                low, high = sorted(_end(root, index) for index in pair)
                root[high] = low
            while (root != root[root]).any():
                root[:] = root[root]


def _end(root: np.ndarray, index: int) -> int:
    while root[index] != index:
        index = int(root[index])
    return index
