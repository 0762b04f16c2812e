"""TIFF files with more pixels than memory should hold: only the strips or tiles of a part are decoded."""

from __future__ import annotations

from collections import OrderedDict
from os import PathLike
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ssd.data.reading import MARGIN, TIFF_SUFFIXES, AnyImage, Box, ImageReadError, Picture, whole_pixels

try:
    import tifffile
except ImportError:
    tifffile = None

LARGE = Image.MAX_IMAGE_PIXELS or 1 << 26  # pixels; smaller pictures are decoded whole
STRIP = 1 << 20  # bytes of a file without compression that are read at once
BAND = 1 << 22  # pixels that are reduced at once
KEPT = 256 << 20  # bytes of decoded strips or tiles that are kept
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6  # TIFF 6.0, PhotometricInterpretation
JPEG = (6, 7)  # TIFF 6.0, Compression


def large_tiff(image: AnyImage) -> LargeTiff | None:
    """Opens an image as `LargeTiff` if it is the path of a TIFF file with more than `LARGE` pixels.

    Returns:
        The picture; None for all other images, if the package tifffile is not installed, and for a file that only
        Pillow can read.

    Raises:
        ImageReadError: see `LargeTiff`.
    """
    if tifffile is None or not isinstance(image, (str, PathLike)) or Path(image).suffix.lower() not in TIFF_SUFFIXES:
        return None
    try:
        with tifffile.TiffFile(image) as file:
            page = file.pages[0]
            n_pixels = page.imagewidth * page.imagelength
    except Exception:  # Pillow gives the error, or reads the file
        return None
    if n_pixels <= LARGE:
        return None
    try:
        return LargeTiff(image)
    except ImageReadError:
        if n_pixels > 2 * LARGE:  # Pillow does not read it either
            raise
        return None


class LargeTiff(Picture):
    """A TIFF file of which only the parts that are asked for are decoded.

    It has 8 bits per sample, in grey or colour; transparency is discarded. It is not compressed, or it consists of
    strips or tiles of at most `LARGE` pixels. A strip or tile is decoded for each part that needs it, unless it is one
    of the last ones, of which `KEPT` bytes are kept. Needs the packages tifffile and, for most compressed files,
    imagecodecs.

    Args:
        path: the file.

    Raises:
        ImageReadError: the file is damaged or has another layout. The message names it.
    """

    path: Path

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with tifffile.TiffFile(self.path) as file:
                self._page = page = file.pages[0]
                self._offsets, self._counts = page.dataoffsets, page.databytecounts
                self._tables, self._decode_segment = page.jpegtables, page.decode  # read while the file is open
                contiguous = page.is_contiguous
        except Exception as error:  # tifffile raises many kinds for damaged files
            raise ImageReadError(f"{self.path}: cannot read the picture ({error})") from error
        self.height, self.width = page.imagelength, page.imagewidth
        self._side = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, self.width)
        if contiguous:  # its strips are as long as we like
            row = self.width * page.samplesperpixel
            rows = min(self.height, max(1, STRIP // row))
            self._side = rows, self.width
            self._offsets = range(self._offsets[0], self._offsets[0] + self.height * row, rows * row)
            self._counts = [min(rows, self.height - top) * row for top in range(0, self.height, rows)]
            self._decode_segment = self._reshape
        self._lock = Lock()
        orientation = page.tags.valueof("Orientation", 1)
        if page.dtype != np.uint8 or page.bitspersample != 8 or page.planarconfig != 1 or orientation != 1:
            raise ImageReadError(
                f"{self.path}: such a large picture must have 8 bits per sample, its colours side by side and the "
                f"orientation 1; it has {page.bitspersample} bits of {page.dtype}, planar configuration "
                f"{page.planarconfig}, orientation {orientation}; convert it"
            )
        converted = (YCBCR,) if page.compression in JPEG else ()  # tifffile converts it to RGB
        if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, *converted):
            raise ImageReadError(f"{self.path}: such a large picture must be grey or RGB; convert it")
        if self._side[0] * self._side[1] > LARGE:
            raise ImageReadError(
                f"{self.path}: has strips of {self._side[1]} x {self._side[0]} pixels, which are too large to be "
                "decoded; write it in tiles"
            )
        # One block of memory: many small ones that live long would keep the memory between them from being used again.
        n_kept = min(len(self._offsets), max(1, KEPT // (3 * self._side[0] * self._side[1])))
        self._memory = np.empty((n_kept, *self._side, 3), np.uint8)
        self._kept: OrderedDict[int, int] = OrderedDict()  # the place in this block of each strip or tile that is kept

    def part(self, box: Box, size: tuple[int, int]) -> tuple[Tensor, Box]:
        """Decodes and resizes a part of the picture, see `Picture.part`.

        A part that is reduced by an integer factor first loses the columns and rows that are left over at its end. In
        the result these are half a pixel or less.
        """
        x0, x1 = whole_pixels(box[0], box[2], self.width)
        y0, y1 = whole_pixels(box[1], box[3], self.height)
        factor = max(1, int(min((y1 - y0) / size[0], (x1 - x0) / size[1]) / MARGIN))
        x1, y1 = x1 - (x1 - x0) % factor, y1 - (y1 - y0) % factor
        rows = factor * max(1, BAND // (factor * (x1 - x0)))
        # One tensor for the result: small ones that live long would keep the memory of the bands from being used again.
        reduced = torch.empty(3, (y1 - y0) // factor, (x1 - x0) // factor, dtype=torch.uint8)
        for top in range(y0, y1, rows):
            band = torch.from_numpy(self._pixels(x0, top, x1, min(top + rows, y1))).permute(2, 0, 1)
            if factor > 1:
                band = F.avg_pool2d(band.float(), factor).round().byte()
            reduced[:, (top - y0) // factor :][:, : band.shape[1]] = band
        pixels = F.interpolate(reduced[None], size, mode="bilinear", antialias=True)[0]
        return pixels, (x0, y0, x1, y1)

    def pixels(self) -> Tensor:
        """Raises ImageReadError, because the picture is too large."""
        raise ImageReadError(f"{self.path}: the picture has {self.width} x {self.height} pixels, too many to decode")

    def _pixels(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Decodes a part of the picture, (y1 - y0, x1 - x0, 3) uint8."""
        height, width = self._side
        across = -(-self.width // width)
        part: np.ndarray = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        with self._lock:
            for row in range(y0 // height, -(-y1 // height)):
                for column in range(x0 // width, -(-x1 // width)):
                    top, left = row * height, column * width
                    low, high = max(top, y0), min(top + height, y1)
                    first, last = max(left, x0), min(left + width, x1)
                    segment = self._segment(row * across + column)[low - top : high - top, first - left : last - left]
                    part[low - y0 : high - y0, first - x0 : last - x0] = segment
        return part

    def _reshape(self, data: bytes, index: int, **_: object) -> tuple[np.ndarray, None, tuple[int, ...]]:
        """Does for a file without compression what `TiffPage.decode` does for others."""
        decoded = np.frombuffer(data, np.uint8).reshape(1, -1, self.width, self._page.samplesperpixel)
        return decoded, None, decoded.shape

    def _segment(self, index: int) -> np.ndarray:
        """Decodes a strip or a tile, (h, w, 3) uint8. The last one is smaller than the array that it is in."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._memory[self._kept[index]]
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offsets[index])
                data = file.read(self._counts[index])
            decoded, _, shape = self._decode_segment(data or None, index, jpegtables=self._tables)
        except FileNotFoundError:
            raise
        except Exception as error:  # see __init__
            raise ImageReadError(f"{self.path}: cannot decode the picture ({error})") from error
        if decoded is None:  # a part that the file leaves out
            decoded = np.zeros(shape, np.uint8)
        array = decoded[0, : shape[1], : shape[2]]
        array = array[..., :3] if array.shape[2] > 2 else array[..., :1]
        slot = len(self._kept)
        if slot == len(self._memory):
            _, slot = self._kept.popitem(last=False)
        self._kept[index] = slot
        kept = self._memory[slot]
        kept[: array.shape[0], : array.shape[1]] = 255 - array if self._page.photometric == WHITE_IS_ZERO else array
        return kept
