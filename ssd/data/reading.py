"""Reads picture files upright, as RGB, and at no higher resolution than needed."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torch.nn import functional as F

from ssd.data.depth import Levels, is_deep, to_bytes
from ssd.data.members import AnyFile, InMemory, Member
from ssd.data.picture_formats import ORIENTATION_TAG, TURNS, UNREADABLE, is_unreadable, open_picture
from ssd.runtime.remote import PartError

try:
    import simplejpeg  # decodes whole JPEGs 2.4 to 5.5 times as fast as Pillow, docs/input.md
except ImportError:  # there is no wheel for this platform; Pillow reads JPEG too
    simplejpeg = None

PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}  # keys of Pillow for what may hold the orientation
TIFF_SUFFIXES = (".tif", ".tiff")
TIFF_SIDES = (257, 256)  # TIFF 6.0, section 4: ImageLength, ImageWidth
OTHER, TURBO, DEEP = 0, 1, 2  # how pictures are decoded: by Pillow, by simplejpeg, and those with more than 8 bits
TURNED = (5, 6, 7, 8)  # the orientations that swap width and height
REDUCTIONS = (8, 4, 2)  # factors by which a JPEG decoder can reduce both sides
END_OF_JPEG, HUFFMAN_TABLE = b"\xff\xd9", b"\xff\xc4"  # markers, ITU T.81, table B.1
JPEG_GREY = 128  # of all channels, for coefficients that are missing
# A part is decoded at this multiple of the result's size or more. With 1, AP of small objects falls (docs/input.md).
MARGIN = 2

Box = Sequence[float]  # edges x0, y0, x1, y1 in pixels


class ImageReadError(ValueError):
    """A picture file is damaged, truncated or of an unknown format.

    Examples:
        >>> from pathlib import Path
        >>> from ssd.data import read_image
        >>> _ = Path("a.png").write_bytes(b"no picture")
        >>> read_image("a.png")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ssd.data.reading.ImageReadError: a.png: cannot read the picture (...)
    """


class Picture:
    """A picture in memory that gives any part of itself in any size.

    Args:
        image: (3, H, W) uint8 RGB.

    Attributes:
        height, width: size of the whole picture in pixels.
        path: its file; None if it has none.
        cut: whether the file lacks its last bytes; known after pixels were decoded.

    Examples:
        >>> import torch
        >>> from ssd.data.reading import Picture
        >>> picture = Picture(torch.zeros(3, 40, 60, dtype=torch.uint8))
        >>> pixels, box = picture.part((0, 0, 30.2, 40), size=(20, 15))
        >>> pixels.shape, box
        (torch.Size([3, 20, 15]), (0.0, 0.0, 30.0, 40.0))
    """

    path: AnyFile | None = None
    cut = False

    def __init__(self, image: Tensor) -> None:
        self.height, self.width = image.shape[-2:]
        self._image = image

    def part(self, box: Box, size: tuple[int, int]) -> tuple[Tensor, Box]:
        """Resizes a part of the picture with antialiasing.

        Args:
            box: edges of the part in pixels, inside the picture; rounded to whole pixels, at least one pixel wide and
                high.
            size: height and width of the result in pixels.

        Returns:
            pixels: (3, height, width) uint8 RGB.
            box: edges of the part after rounding, in pixels of the picture.

        Raises:
            FileNotFoundError, ImageReadError: see `pixels`.
        """
        shrinks_by = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
        image = self._decode(next((r for r in REDUCTIONS if MARGIN * r <= shrinks_by), 1))
        height, width = image.shape[-2:]
        across, down = self.width / width, self.height / height  # pixels of the picture per decoded pixel
        x0, x1 = whole_pixels(box[0] / across, box[2] / across, width)
        y0, y1 = whole_pixels(box[1] / down, box[3] / down, height)
        rows = image.permute(1, 2, 0)[y0:y1, x0:x1].contiguous()  # resizing a view takes twice as long
        pixels = F.interpolate(rows[None].permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)[0]
        return pixels, (x0 * across, y0 * down, x1 * across, y1 * down)

    def pixels(self) -> Tensor:
        """Decodes the whole picture, (3, H, W) uint8 RGB.

        Raises:
            FileNotFoundError: the file has been removed.
            ImageReadError: the file is damaged or truncated; the message names it.
        """
        return self._decode(1)

    def _decode(self, reduction: int) -> Tensor:
        """Decodes the picture upright, (3, h, w) uint8; both sides may be reduced by up to this factor."""
        return self._image


class PicturePart(Picture):
    """A part of a picture, as a picture of its own.

    Args:
        picture: the whole picture, which is decoded for each call.
        view: edges x0, y0, x1, y1 of the part in whole pixels.
    """

    def __init__(self, picture: Picture, view: tuple[int, int, int, int]) -> None:
        self._whole, self._corner = picture, view[:2] * 2
        self.width, self.height = view[2] - view[0], view[3] - view[1]
        self.path = picture.path

    def part(self, box: Box, size: tuple[int, int]) -> tuple[Tensor, Box]:
        """Resizes a part of the part, see `Picture.part`."""
        pixels, rounded = self._whole.part([edge + low for edge, low in zip(box, self._corner, strict=True)], size)
        self.cut = self._whole.cut
        return pixels, [edge - low for edge, low in zip(rounded, self._corner, strict=True)]

    def pixels(self) -> Tensor:
        """Decodes the part, see `Picture.pixels`."""
        return self.part((0, 0, self.width, self.height), (self.height, self.width))[0]


# See `as_picture`.
AnyImage: TypeAlias = (
    Picture | str | PathLike[str] | bytes | bytearray | memoryview | io.IOBase | Image.Image | np.ndarray | Tensor
)


def as_picture(image: AnyImage, levels: Levels | None = None) -> Picture:
    """Converts an image of any supported type to a `Picture`. Copies pixels only if they must be converted.

    Args:
        image: a `Picture`; a path; the bytes of a file; an open binary file, which is read as a whole; a picture of
            Pillow, in any mode; an array (H, W, 3) uint8 RGB, (H, W) or (H, W, 1) uint8 grey; a tensor (3, H, W) uint8
            RGB; or a VideoFrame of PyAV. The EXIF orientation is applied to files and to pictures of Pillow, and the
            display matrix to frames. (`PIL.ImageOps.exif_transpose` removes it, so a picture is not turned twice.)
        levels: see `PictureFile`; also for pictures of Pillow.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the picture cannot be read.
        ValueError: an array or tensor has another shape or dtype, or the image is a URL.
        TypeError: the image has another type.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str) and "://" in image:
        raise ValueError(f"{image}: pictures are not downloaded; read the URL yourself, and give the bytes")
    if isinstance(image, (str, PathLike)):
        return PictureFile(image, levels=levels)
    if isinstance(image, io.IOBase):
        image = _bytes_of(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return PictureFile(InMemory(bytes(image)), levels=levels)
    if isinstance(image, Image.Image):
        try:
            rgb = np.asarray(_to_rgb(image, levels))  # first: it turns a TIFF, which then has no orientation any more
            image = np.array(_turned(rgb, image.getexif().get(ORIENTATION_TAG, 1)))
        except Exception as error:  # see header_of
            raise ImageReadError(f"{image!r}: cannot decode the picture ({error})") from error
    if type(image).__module__.startswith("av."):  # known by its name, since PyAV may be missing
        from ssd.data.video import Frame  # imported late: it imports this module

        return Frame(image, 0, 0.0)
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[..., 0]
        if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or image.shape[2:] == (3,)):
            raise ValueError(f"an array must be (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}")
        rows = torch.from_numpy(np.require(image, requirements=("C", "W")))
        image = rows.permute(2, 0, 1) if image.ndim == 3 else rows.expand(3, -1, -1)
    if not isinstance(image, Tensor):
        raise TypeError(
            "a picture is a path, bytes, an open file, a picture of Pillow, an array or a tensor of uint8, got "
            + type(image).__name__
        )
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or image.numel() == 0:
        raise ValueError(f"a tensor must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
    return Picture(image.cpu())


def _bytes_of(file: io.IOBase) -> bytes:
    """Reads an open file from its beginning."""
    try:
        if file.seekable():
            file.seek(0)
        content = file.read()
    except Exception as error:  # a file of somebody else's class can fail in any way
        raise ImageReadError(f"cannot read the open file: {error}") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ImageReadError('an open file must be binary, such as open(path, "rb")')
    return bytes(content)


def whole_pixels(low: float, high: float, end: int) -> tuple[int, int]:
    """Rounds an interval to whole numbers in 0..end that differ by at least 1."""
    first = min(round(low), end - 1)
    return first, max(round(high), first + 1)


class Header(NamedTuple):
    """The header of a picture file."""

    height: int  # in pixels, as stored
    width: int
    orientation: int  # of EXIF, 1..8; 1 if the decoder turns the picture upright
    decoding: int  # OTHER, TURBO or DEEP

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright picture in pixels."""
        return (self.width, self.height) if self.orientation in TURNED else (self.height, self.width)


def header_of(file: str | PathLike[str] | IO[bytes]) -> Header:
    """Reads the header of a picture.

    Raises:
        Exception: for damaged files, Pillow's plugins raise OSError, SyntaxError, struct.error and others.
    """
    with open_picture(file) as picture:
        height, width = picture.height, picture.width
        orientation = _orientation(picture)
        # Pillow turns a TIFF upright while loading it, and `picture.size` may be the size before or after turning.
        # So the stored size is read from the tags.
        if picture.format == "TIFF" and isinstance(picture, TiffImageFile):
            height, width = (picture.tag_v2[tag] for tag in TIFF_SIDES)
            if orientation in TURNED:
                height, width = width, height
            orientation = 1
        turbo = picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB")
        decoding = TURBO if turbo else DEEP if is_deep(picture) else OTHER
        return Header(height, width, orientation if orientation in TURNS else 1, decoding)


def read_header(path: AnyFile) -> Header:
    """Reads the header of a picture file.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: it is not a regular file, its header is unreadable, or it has more pixels than Pillow allows
            (179 million, twice `PIL.Image.MAX_IMAGE_PIXELS`). The message names the file.
    """
    try:
        if isinstance(path, Member):
            return Header(*path.header) if path.header else header_of(path.open())
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a pipe could block forever
            raise OSError("not a regular file")
        return header_of(path)
    except (FileNotFoundError, PartError):
        raise
    except Exception as error:  # see header_of
        reason = UNREADABLE[path.suffix.lower()].format("it") if is_unreadable(path) else error
        if isinstance(error, Image.DecompressionBombError) and path.suffix.lower() in TIFF_SUFFIXES:
            reason = f"{error} Only tiles of it can be read: ssd detect --tiles, after pip install 'ssd-ext[large]'"
        raise ImageReadError(f"{path}: cannot read the picture ({reason})") from error


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a picture as opened; its pixels are not decoded for it."""
    if picture.format != "PNG":
        return picture.getexif().get(ORIENTATION_TAG, 1)
    # `getexif` of Pillow's class for PNG decodes the whole picture, because EXIF data may also follow the pixels. That
    # is rare, and not looked for: reading the ends of files too takes a tenth longer.
    if not PNG_EXIF.isdisjoint(picture.info):
        return Image.Image.getexif(picture).get(ORIENTATION_TAG, 1)
    return 1


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an array (H, W, 3) upright."""
    return TURNS[orientation](array) if orientation in TURNS else array


class PictureFile(Picture):
    """A picture file of any format that Pillow reads. The constructor reads the header; pixels are decoded on demand.

    Grey, palette and CMYK pictures are converted to RGB, transparency is discarded, and of an animation the first frame
    is used. The EXIF orientation is applied. Decoded pixels are not cached.

    A JPEG file that lacks its last bytes is decoded if at least half of its rows are there; the others are grey. In a
    progressive one all rows are there, with less detail.

    Args:
        path: the file.
        header: the file's header, if it was read before.
        levels: the values that become black (0) and white (255) in pictures with more than 8 bits per sample. Those
            between are scaled linearly and rounded, those outside become black or white. None: 0 and the largest value
            of the type, such as 65535; for floats 0 and 1, for integers of 32 bits 0 and 255.

    Raises:
        FileNotFoundError, ImageReadError: see `read_header`.

    Examples:
        >>> from PIL import Image
        >>> from ssd.data import PictureFile
        >>> Image.new("RGB", (60, 40), "red").save("a.png")
        >>> picture = PictureFile("a.png")
        >>> picture.width, picture.height
        (60, 40)
        >>> picture.pixels()[:, 0, 0].tolist()
        [255, 0, 0]
    """

    def __init__(self, path: str | PathLike[str], header: Header | None = None, levels: Levels | None = None) -> None:
        self._file = path if isinstance(path, Member) else Path(path)
        self.path = None if isinstance(path, InMemory) else self._file
        self._levels = levels
        self._header = read_header(self._file) if header is None else header
        self.height, self.width = self._header.upright

    def _decode(self, reduction: int) -> Tensor:
        array = self._read_jpeg(reduction) if self._header.decoding == TURBO and simplejpeg else None
        if array is None:
            array = self._read_any(reduction)
        array = _turned(array, self._header.orientation)
        return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)

    def _read_jpeg(self, reduction: int) -> np.ndarray | None:
        """Decodes with simplejpeg.

        Returns None if simplejpeg fails: Pillow can read more JPEG files, and its errors are clearer.
        """
        data = self._file.read_bytes()
        height, width = (math.ceil(side / reduction) for side in self._header[:2])
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=reduction)
        except ValueError:
            return None

    def _read_any(self, reduction: int) -> np.ndarray:
        """Decodes with Pillow."""
        try:
            # Given a path, Pillow maps the file into memory and then turns a TIFF wrongly.
            with self._file.open("rb") as file:
                return self._read_open(file, reduction)
        except (FileNotFoundError, PartError):
            raise
        except Exception as error:  # see header_of
            if self._header.decoding == TURBO and (array := self._read_cut(reduction)) is not None:
                return array
            raise ImageReadError(f"{self._file}: cannot decode the picture ({error})") from error

    def _read_open(self, file: IO[bytes], reduction: int) -> np.ndarray:
        with open_picture(file) as picture:
            if reduction > 1:  # affects only JPEG
                picture.draft(None, (picture.width // reduction, picture.height // reduction))
            rgb = _to_rgb(picture, self._levels, file)
            if reduction > 1 and rgb.height == self._header.height:
                rgb = rgb.reduce(reduction)
            return np.array(rgb)

    def _read_cut(self, reduction: int) -> np.ndarray | None:
        """Decodes a JPEG file that lacks its last bytes. Returns None if more than half of the rows are missing."""
        data = self._file.read_bytes()
        # With a marker of its end, libjpeg accepts the file, and the rows that are missing become grey. The file of a
        # progressive JPEG may also end within a table of codes; it is then cut before this table.
        for end in (len(data), data.rfind(HUFFMAN_TABLE)):
            with suppress(Exception):  # see header_of
                array = self._read_open(io.BytesIO(data[:end] + END_OF_JPEG), reduction)
                there = np.flatnonzero((array != JPEG_GREY).any((1, 2)))
                if len(there) and 2 * (there[-1] + 1) >= len(array):
                    self.cut = True
                    return array
        return None


def _to_rgb(picture: Image.Image, levels: Levels | None, file: IO[bytes] | None = None) -> Image.Image:
    """Converts a picture to RGB, see `to_bytes`."""
    if is_deep(picture):
        picture = Image.fromarray(to_bytes(picture, levels, file))
    elif picture.mode[0] in "IF":
        picture = Image.fromarray(to_bytes(picture))
    if picture.mode == "P":  # first to RGBA, because otherwise Pillow warns about transparent palettes
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def read_image(path: str | PathLike[str]) -> Tensor:
    """Reads a picture file upright as RGB, see `PictureFile`.

    Args:
        path: the file, in any format that Pillow reads.

    Returns:
        (3, H, W) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is damaged, truncated or not a picture; the message names it.

    Examples:
        >>> from PIL import Image
        >>> from ssd.data import read_image
        >>> Image.new("RGB", (60, 40), "red").save("a.png")
        >>> image = read_image("a.png")
        >>> image.shape, image.dtype, image[:, 0, 0].tolist()
        (torch.Size([3, 40, 60]), torch.uint8, [255, 0, 0])
    """
    return PictureFile(path).pixels()
