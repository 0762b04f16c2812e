"""What belongs to many images, in a few arrays: memory that workers share, and that no collector of garbage walks."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

Text = TypeVar("Text")
Columns = TypeVar("Columns", bound="dict[str, Tensor] | tuple[Tensor, ...]")


class Packed(Sequence[Columns], Generic[Columns]):
    """Rows of N images, those of one behind those of the other; item i has the rows of image i, as views.

    Args:
        columns: tensors of R rows, in a dict or a named tuple; an item is of the same kind.
        row_splits: (N + 1,) int64; the rows of image i are row_splits[i] to row_splits[i + 1].
        of_images: sequences of N values, which items that are dicts have too.
    """

    def __init__(
        self, columns: Columns, row_splits: Tensor, of_images: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self.columns, self.row_splits, self.of_images = columns, row_splits, of_images or {}

    @classmethod
    def join(cls, parts: Sequence[Packed[Columns]]) -> Packed[Columns]:
        """The images of all parts, at least one, in a row."""
        columns = _zipped(torch.cat, [part.columns for part in parts])
        counts = torch.cat([part.row_splits.diff() for part in parts])
        return cls(columns, splits_of(counts))

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    @overload
    def __getitem__(self, index: int) -> Columns: ...
    @overload
    def __getitem__(self, index: slice) -> list[Columns]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        start, end = self.row_splits[index : index + 2].tolist()
        item = _zipped(lambda column: column[0][start:end], [self.columns])
        if self.of_images:
            item |= {name: values[index] for name, values in self.of_images.items()}
        return item

    @property
    def counts(self) -> Tensor:
        """The number of rows of each image, (N,) int64."""
        return self.row_splits.diff()

    def where(self, kept: Tensor) -> Packed[Columns]:
        """All images with some of the rows.

        Args:
            kept: (R,) bool.
        """
        if kept.all():
            return self
        before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Packed(_zipped(lambda c: c[0][kept], [self.columns]), before[self.row_splits], self.of_images)

    def take(self, images: Tensor) -> Packed[Columns]:
        """The images with these numbers, (M,) int64, in this order."""
        counts = self.counts[images]
        row_splits = splits_of(counts)
        shift = (self.row_splits[images] - row_splits[:-1]).repeat_interleave(counts)
        rows = torch.arange(len(shift)) + shift
        of_images = {name: [values[i] for i in images.tolist()] for name, values in self.of_images.items()}
        return Packed(_zipped(lambda c: c[0][rows], [self.columns]), row_splits, of_images)


def splits_of(counts: Tensor) -> Tensor:
    """The row splits (N + 1,) int64 of images with so many rows each, (N,)."""
    return torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _zipped(function: Callable[[Sequence[Tensor]], Tensor], columns: Sequence[Columns]) -> Columns:
    """A function of the columns of one name in all of them."""
    if isinstance(columns[0], dict):
        return {name: function([each[name] for each in columns]) for name in columns[0]}
    return type(columns[0])(*map(function, zip(*columns, strict=True)))


class Texts(Sequence[Text]):
    """Many texts, or paths, in one row of bytes; an item is made when it is asked for.

    Args:
        texts: the texts, or the paths as texts.
        kind: what an item is made by of its text.
    """

    def __init__(self, texts: Iterable[str], kind: Callable[[str], Text] = str) -> None:
        data, ends = bytearray(), array("q", [0])
        for text in texts:
            data += text.encode("utf-8", "surrogateescape")
            ends.append(len(data))
        self._data, self._ends, self._kind = bytes(data), np.array(ends), kind

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of all texts, and where each ends, behind a 0."""
        return np.frombuffer(self._data, np.uint8), self._ends

    @classmethod
    def of(cls, data: np.ndarray, ends: np.ndarray, kind: Callable[[str], Text] = str) -> Texts[Text]:
        """The texts of such `arrays`."""
        texts = cls((), kind)
        texts._data, texts._ends = data.tobytes(), ends
        return texts

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> list[Text]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self._kind(self._data[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape"))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None
