"""Reads picture files upright, as RGB, and at no higher resolution than needed."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torch.nn import functional as F

try:
    import simplejpeg  # decodes whole JPEGs 2.4 to 5.5 times as fast as Pillow, docs/input.md
except ImportError:  # there is no wheel for this platform; Pillow reads JPEG too
    simplejpeg = None

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4
TIFF_SIDES = (257, 256)  # TIFF 6.0, section 4: ImageLength, ImageWidth
# For each EXIF orientation, the function that turns an array (H, W, 3) upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
TURNED = (5, 6, 7, 8)  # the orientations that swap width and height
REDUCTIONS = (8, 4, 2)  # factors by which a JPEG decoder can reduce both sides
# A part is decoded at this multiple of the result's size or more. With 1, AP of small objects falls (docs/input.md).
MARGIN = 2

Box = Sequence[float]  # edges x0, y0, x1, y1 in pixels


def is_picture(path: str | PathLike[str]) -> bool:
    """Tells by its name whether a file is a picture. Files that macOS adds beside others ("._a.jpg") are not."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("._")


class ImageReadError(ValueError):
    """A picture file is damaged, truncated or of an unknown format."""


class Picture:
    """A picture in memory that gives any part of itself in any size.

    Args:
        image: (3, H, W) uint8 RGB.

    Attributes:
        height, width: size of the whole picture in pixels.
        path: its file; None if it has none.
    """

    path: Path | None = None

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
            pixels: (3, *size) uint8 RGB.
            box: edges of the part after rounding, in pixels of the picture.

        Raises:
            FileNotFoundError, ImageReadError: see `pixels`.
        """
        shrinks_by = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
        image = self._decode(next((r for r in REDUCTIONS if MARGIN * r <= shrinks_by), 1))
        height, width = image.shape[-2:]
        across, down = self.width / width, self.height / height  # pixels of the picture per decoded pixel
        x0, x1 = _whole(box[0] / across, box[2] / across, width)
        y0, y1 = _whole(box[1] / down, box[3] / down, height)
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


AnyImage: TypeAlias = Picture | str | PathLike[str] | Image.Image | np.ndarray | Tensor  # see `as_picture`


def as_picture(image: AnyImage) -> Picture:
    """Converts an image of any supported type to a `Picture`. Copies pixels only if they must be converted.

    Args:
        image: a `Picture`; a path; a picture of Pillow, in any mode; an array (H, W, 3) uint8 RGB or (H, W) uint8 grey;
            or a tensor (3, H, W) uint8 RGB. The EXIF orientation is applied to files, not to pictures of Pillow.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the picture cannot be read.
        ValueError: an array or tensor has another shape or dtype.
        TypeError: the image has another type.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, PathLike)):
        return PictureFile(image)
    if isinstance(image, Image.Image):
        try:
            image = np.array(_to_rgb(image))
        except Exception as error:  # see read_header
            raise ImageReadError(f"{image}: cannot decode the picture ({error})") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or image.shape[2:] == (3,)):
            raise ValueError(f"an array must be (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}")
        rows = torch.from_numpy(np.require(image, requirements=("C", "W")))
        image = rows.permute(2, 0, 1) if image.ndim == 3 else rows.expand(3, -1, -1)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"a picture is a path, a picture of Pillow, an array or a tensor of uint8, got {type(image).__name__}"
        )
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or image.numel() == 0:
        raise ValueError(f"a tensor must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
    return Picture(image.cpu())


def _whole(low: float, high: float, end: int) -> tuple[int, int]:
    """Rounds an interval to whole numbers in 0..end that differ by at least 1."""
    first = min(round(low), end - 1)
    return first, max(round(high), first + 1)


class Header(NamedTuple):
    """The header of a picture file."""

    height: int  # in pixels, as stored
    width: int
    orientation: int  # of EXIF, 1..8; 1 if the decoder turns the picture upright
    turbo: bool  # whether simplejpeg can decode it

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright picture in pixels."""
        return (self.width, self.height) if self.orientation in TURNED else (self.height, self.width)


def read_header(path: Path) -> Header:
    """Reads the header of a picture file.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: it is not a regular file, its header is unreadable, or it has more pixels than Pillow allows
            (179 million, twice `PIL.Image.MAX_IMAGE_PIXELS`). The message names the file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a pipe could block forever
            raise OSError("not a regular file")
        with Image.open(path) as picture:
            height, width = picture.height, picture.width
            # To find the orientation of a PNG, Pillow decodes the whole picture; cameras do not write PNG.
            orientation = 1 if picture.format == "PNG" else picture.getexif().get(ORIENTATION_TAG, 1)
            # Pillow turns a TIFF upright while loading it, and `picture.size` may be the size before or after turning.
            # So the stored size is read from the tags.
            if picture.format == "TIFF" and isinstance(picture, TiffImageFile):
                height, width = (picture.tag_v2[tag] for tag in TIFF_SIDES)
                if orientation in TURNED:
                    height, width = width, height
                orientation = 1
            turbo = picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB")
            return Header(height, width, orientation if orientation in TURNS else 1, turbo)
    except FileNotFoundError:
        raise
    except Exception as error:  # for damaged files, Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise ImageReadError(f"{path}: cannot read the picture ({error})") from error


class PictureFile(Picture):
    """A picture file of any format that Pillow reads. The constructor reads the header; pixels are decoded on demand.

    Grey, palette, CMYK and 16-bit pictures are converted to RGB, transparency is discarded, and of an animation the
    first frame is used. The EXIF orientation is applied. Decoded pixels are not cached.

    Args:
        path: the file.
        header: the file's header, if it was read before.

    Raises:
        FileNotFoundError, ImageReadError: see `read_header`.
    """

    path: Path

    def __init__(self, path: str | PathLike[str], header: Header | None = None) -> None:
        self.path = Path(path)
        self._header = read_header(self.path) if header is None else header
        self.height, self.width = self._header.upright

    def _decode(self, reduction: int) -> Tensor:
        array = self._read_jpeg(reduction) if self._header.turbo and simplejpeg else None
        if array is None:
            array = self._read_any(reduction)
        if turn := TURNS.get(self._header.orientation):
            array = turn(array)
        return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)

    def _read_jpeg(self, reduction: int) -> np.ndarray | None:
        """Decodes with simplejpeg.

        Returns None if simplejpeg fails: Pillow can read more JPEG files, and its errors are clearer.
        """
        data = self.path.read_bytes()
        height, width = (math.ceil(side / reduction) for side in self._header[:2])
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=reduction)
        except ValueError:
            return None

    def _read_any(self, reduction: int) -> np.ndarray:
        try:
            # Given a path, Pillow maps the file into memory and then turns a TIFF wrongly.
            with open(self.path, "rb") as file, Image.open(file) as picture:
                if reduction > 1:  # affects only JPEG
                    picture.draft(None, (picture.width // reduction, picture.height // reduction))
                rgb = _to_rgb(picture)
                if reduction > 1 and rgb.height == self._header.height:
                    rgb = rgb.reduce(reduction)
                return np.array(rgb)
        except FileNotFoundError:
            raise
        except Exception as error:  # see read_header
            raise ImageReadError(f"{self.path}: cannot decode the picture ({error})") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which convert() would clip instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P":  # first to RGBA, because otherwise Pillow warns about transparent palettes
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def read_image(path: str | PathLike[str]) -> Tensor:
    """Reads a picture file upright as RGB, (3, H, W) uint8, see `PictureFile`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is damaged, truncated or not a picture; the message names it.
    """
    return PictureFile(path).pixels()
