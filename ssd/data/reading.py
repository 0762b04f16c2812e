"""Picture files: upright, as RGB, and decoded no finer than they are wanted."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

try:
    import simplejpeg  # decodes JPEG in a half to a quarter of Pillow's time, docs/input.md
except ImportError:  # no wheel for this platform: Pillow reads JPEG too
    simplejpeg = None

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4
TIFF_SIDES = (257, 256)  # TIFF 6.0, section 4: ImageLength, ImageWidth
# By orientation, what turns the rows and columns of an array (H, W, 3) upright.
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
REDUCTIONS = (8, 4, 2)  # of the sides, which a JPEG decoder takes from its blocks of 8 x 8
MARGIN = (
    2  # a decoded part is at least so much larger than the result; with 1, AP of small objects falls (docs/input.md)
)

Box = Sequence[float]  # the edges x0, y0, x1, y1 in pixels


def is_picture(path: str | PathLike[str]) -> bool:
    """Whether a file is a picture by its name; what macOS leaves beside files ("._a.jpg") is none."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("._")


class ImageReadError(ValueError):
    """A picture file that is damaged, cut short or of an unknown format."""


class Picture:
    """Pixels that are at hand, of which a part can be had in any size.

    Args:
        image: (3, H, W) uint8 RGB.

    Attributes:
        height, width: of the whole picture in pixels.
        path: of its file; None where there is none.
    """

    path: Path | None = None

    def __init__(self, image: Tensor) -> None:
        self.height, self.width = image.shape[-2:]
        self._image = image

    def part(self, box: Box, size: tuple[int, int]) -> tuple[Tensor, Box]:
        """A part of the picture, resized with antialiasing.

        Args:
            box: its edges, inside the picture; taken to the nearest pixels, and at least one.
            size: height and width of the result.

        Returns:
            pixels: (3, *size) uint8.
            box: the edges of what they show.
        """
        shrinks_by = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
        image = self._decode(next((r for r in REDUCTIONS if MARGIN * r <= shrinks_by), 1))
        height, width = image.shape[-2:]
        across, down = self.width / width, self.height / height  # pixels of the picture by those decoded
        x0, x1 = _whole(box[0] / across, box[2] / across, width)
        y0, y1 = _whole(box[1] / down, box[3] / down, height)
        rows = image.permute(1, 2, 0)[y0:y1, x0:x1].contiguous()  # of a view it would take twice as long
        pixels = F.interpolate(rows[None].permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)[0]
        return pixels, (x0 * across, y0 * down, x1 * across, y1 * down)

    def pixels(self) -> Tensor:
        """The whole picture, (3, H, W) uint8 RGB.

        Raises:
            FileNotFoundError: the file is gone.
            ImageReadError: the file is damaged or cut short; the message names it.
        """
        return self._decode(1)

    def _decode(self, reduction: int) -> Tensor:
        """The picture upright, (3, h, w) uint8, with sides that may be smaller by this factor."""
        return self._image


AnyImage = Picture | str | PathLike[str] | Image.Image | np.ndarray | Tensor  # see `as_picture`


def as_picture(image: AnyImage) -> Picture:
    """The picture of whatever holds one; pixels are not copied where they need not be converted.

    Args:
        image: a `Picture`; a path; a picture of Pillow, in any mode; an array (H, W, 3) uint8 RGB or (H, W) uint8 grey;
            or a tensor (3, H, W) uint8 RGB. The EXIF orientation of a file is applied, that of Pillow's picture is not.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the picture cannot be read.
        ValueError: an array or a tensor of another shape or dtype.
        TypeError: it is something else.
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
        rows = torch.from_numpy(np.require(image, requirements="CW"))
        image = rows.permute(2, 0, 1) if image.ndim == 3 else rows.expand(3, -1, -1)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"a picture is a path, a picture of Pillow, an array or a tensor of uint8, got {type(image).__name__}"
        )
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or image.numel() == 0:
        raise ValueError(f"a tensor must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
    return Picture(image.cpu())


def _whole(low: float, high: float, end: int) -> tuple[int, int]:
    """The nearest whole numbers in 0..end, at least 1 apart."""
    first = min(round(low), end - 1)
    return first, max(round(high), first + 1)


class Header(NamedTuple):
    """What the head of a picture file says."""

    height: int  # as stored
    width: int
    orientation: int  # of EXIF, 1..8; what is already turned when it is decoded has 1
    turbo: bool  # whether simplejpeg may decode it

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as they are shown."""
        return (self.width, self.height) if self.orientation in TURNED else (self.height, self.width)


def read_header(path: Path) -> Header:
    """The header of a picture file.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: it is no regular file, its header is unreadable, or it has more pixels than Pillow takes for
            harmless (179 million, `PIL.Image.MAX_IMAGE_PIXELS` doubled); the message names the file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # of a pipe one would wait for what never comes
            raise OSError("not a regular file")
        with Image.open(path) as picture:
            height, width = picture.height, picture.width
            # To look for one in a PNG, Pillow has to decode the whole picture, and cameras do not write PNG.
            orientation = 1 if picture.format == "PNG" else picture.getexif().get(ORIENTATION_TAG, 1)
            if picture.format == "TIFF":  # Pillow turns it when it loads it, and may say so in the size before
                height, width = (picture.tag_v2[tag] for tag in TIFF_SIDES)
                if orientation in TURNED:
                    height, width = width, height
                orientation = 1
            turbo = picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB")
            return Header(height, width, orientation if orientation in TURNS else 1, turbo)
    except FileNotFoundError:
        raise
    except Exception as error:  # on damage, Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise ImageReadError(f"{path}: cannot read the picture ({error})") from error


class PictureFile(Picture):
    """A picture of any format that Pillow knows; the header is read at once, the pixels when they are wanted.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is discarded; an animation gives its first
    frame. The EXIF orientation is applied. Nothing decoded is kept.

    Args:
        path: the file.
        header: of the file, where it has been read before.

    Raises:
        FileNotFoundError, ImageReadError: see `read_header`.
    """

    def __init__(self, path: str | PathLike[str], header: Header | None = None) -> None:
        self.path = Path(path)
        self._header = read_header(self.path) if header is None else header
        self.height, self.width = self._header.upright

    def _decode(self, reduction: int) -> Tensor:
        array = self._read_jpeg(reduction) if self._header.turbo and simplejpeg else None
        if array is None:
            array = self._read_any(reduction)
        turned = TURNS.get(self._header.orientation, lambda a: a)(array)
        return torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1)

    def _read_jpeg(self, reduction: int) -> np.ndarray | None:
        """None for what is odd or damaged, of which Pillow reads more, and says better what is wrong."""
        data = self.path.read_bytes()
        height, width = (math.ceil(side / reduction) for side in self._header[:2])
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=reduction)
        except ValueError:
            return None

    def _read_any(self, reduction: int) -> np.ndarray:
        try:
            # Not by name: of a file that it maps into memory, Pillow turns a TIFF wrongly.
            with open(self.path, "rb") as file, Image.open(file) as picture:
                if reduction > 1:  # has an effect on JPEG alone
                    picture.draft(None, (picture.width // reduction, picture.height // reduction))
                picture = _to_rgb(picture)
                if reduction > 1 and picture.height == self._header.height:
                    picture = picture.reduce(reduction)
                return np.array(picture)
        except FileNotFoundError:
            raise
        except Exception as error:  # see read_header
            raise ImageReadError(f"{self.path}: cannot decode the picture ({error})") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits; convert() would clip instead of scale
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P":  # by way of RGBA, as Pillow warns about transparent palettes
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def read_image(path: str | PathLike[str]) -> Tensor:
    """A picture upright as RGB, (3, H, W) uint8, see `PictureFile`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is damaged, cut short or no picture; the message names it.
    """
    return PictureFile(path).pixels()
