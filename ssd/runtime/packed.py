"""Values of many images in a few arrays instead of many Python objects.

Forked processes share this memory, and the garbage collector does not visit it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

Text = TypeVar("Text")
Columns = TypeVar("Columns", bound="dict[str, Any] | tuple[Tensor, ...]")


class Packed(Sequence[Columns], Generic[Columns]):
    """Rows of N images in one set of columns; item i holds the rows of image i, as views.

    Args:
        columns: tensors with R rows each, in a dict or a named tuple. Items have the same type.
        row_splits: (N + 1,) int64; the rows of image i are row_splits[i] to row_splits[i + 1] - 1.
        of_images: for columns in a dict: sequences of N values, one per image, which are added to the items.
    """

    def __init__(
        self, columns: Columns, row_splits: Tensor, of_images: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self.columns, self.row_splits, self.of_images = columns, row_splits, of_images or {}

    @classmethod
    def join(cls, parts: Sequence[Packed[Columns]]) -> Packed[Columns]:
        """Concatenates the images of all parts, at least one, in order; `of_images` is left out."""
        columns = _zipped(torch.cat, [part.columns for part in parts])
        counts = torch.cat([part.row_splits.diff() for part in parts])
        return cls(columns, splits_of(counts))

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    @overload
    def __getitem__(self, index: int) -> Columns: ...
    @overload
    def __getitem__(self, index: slice) -> list[Columns]: ...
    def __getitem__(self, index: int | slice) -> Columns | list[Columns]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        start, end = self.row_splits[index : index + 2].tolist()
        item = _zipped(lambda column: column[0][start:end], [self.columns])
        if isinstance(item, dict):
            item.update({name: values[index] for name, values in self.of_images.items()})
        return item

    @property
    def counts(self) -> Tensor:
        """Number of rows of each image, (N,) int64."""
        return self.row_splits.diff()

    def where(self, kept: Tensor) -> Packed[Columns]:
        """Keeps all images, but only some of the rows.

        Args:
            kept: (R,) bool, True for the rows to keep.
        """
        if kept.all():
            return self
        before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Packed(_zipped(lambda c: c[0][kept], [self.columns]), before[self.row_splits], self.of_images)

    def take(self, images: Tensor) -> Packed[Columns]:
        """Selects images.

        Args:
            images: (M,) int64, indices of images in 0..N-1, in the order of the result; an index may repeat.
        """
        counts = self.counts[images]
        row_splits = splits_of(counts)
        shift = (self.row_splits[images] - row_splits[:-1]).repeat_interleave(counts)
        rows = torch.arange(len(shift)) + shift
        of_images = {name: [values[i] for i in images.tolist()] for name, values in self.of_images.items()}
        return Packed(_zipped(lambda c: c[0][rows], [self.columns]), row_splits, of_images)


def splits_of(counts: Tensor) -> Tensor:
    """Computes row splits (N + 1,) int64 from the number of rows of each image, (N,) int64."""
    return torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _zipped(function: Callable[[list[Tensor]], Tensor], columns: Sequence[Columns]) -> Columns:
    """For each column, applies a function to the list of its tensors, one from each set of columns."""
    first: Any = columns[0]
    if isinstance(first, dict):
        result: Any = {name: function([each[name] for each in columns]) for name in first}
    else:
        result = type(first)(*map(function, map(list, zip(*columns, strict=True))))
    return cast(Columns, result)  # the type of the first set


class Texts(Sequence[Text]):
    """Many texts or paths in one array of bytes. An item is created when it is accessed.

    Args:
        texts: the texts, or the paths as texts.
        kind: converts a text to an item: `str` or `Path`.
    """

    def __init__(self, texts: Iterable[str], kind: Callable[[str], Text]) -> None:
        data, ends = bytearray(), array("q", [0])
        for text in texts:
            data += text.encode("utf-8", "surrogateescape")
            ends.append(len(data))
        self._data, self._ends, self._kind = bytes(data), np.array(ends), kind

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The UTF-8 bytes of all texts, (bytes,) uint8, and the ends of the texts after a leading 0, (N + 1,) int64."""
        return np.frombuffer(self._data, np.uint8), self._ends

    @classmethod
    def of(cls, data: np.ndarray, ends: np.ndarray, kind: Callable[[str], Text]) -> Texts[Text]:
        """Makes texts from their `arrays`.

        Args:
            data, ends: see `arrays`.
            kind: converts a text to an item: `str` or `Path`.
        """
        texts = cls((), kind)
        texts._data, texts._ends = data.tobytes(), ends
        return texts

    def texts(self) -> Iterator[str]:
        """Yields the texts without converting them to paths, which takes longer."""
        for start, end in pairwise(self._ends.tolist()):
            yield self._data[start:end].decode("utf-8", "surrogateescape")

    def take(self, indices: Iterable[int]) -> Texts[Text]:
        """Selects texts, in this order."""
        texts = Texts((), self._kind)
        parts = [self._data[self._ends[i] : self._ends[i + 1]] for i in indices]
        texts._data, texts._ends = b"".join(parts), np.cumsum([0, *map(len, parts)])
        return texts

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> list[Text]: ...
    def __getitem__(self, index: int | slice) -> Text | list[Text]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self._kind(self._data[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape"))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented
