"""Picture files, read upright as RGB."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4; the values 5..8 swap width and height


class ImageReadError(ValueError):
    """A picture file that is damaged, cut short or of an unknown format."""


def _has_orientation(picture: Image.Image) -> bool:
    # To look for one in a PNG, Pillow has to decode the whole picture, and cameras do not write PNG.
    return picture.format != "PNG"


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright picture, from the file's header.

    Raises:
        ImageReadError: the header is unreadable.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = _has_orientation(picture) and picture.getexif().get(ORIENTATION_TAG, 1) >= 5
    except Exception as error:  # on damage, Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise ImageReadError(f"{path}: cannot read the picture ({error})") from error
    return (width, height) if turned else (height, width)


def read_image(path: str | PathLike) -> Tensor:
    """Read a picture of any format that Pillow knows as upright RGB.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is discarded; an animation gives its
    first frame.

    Args:
        path: the file.

    Returns:
        (3, H, W) uint8, 0..255.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is damaged, cut short or no picture; the message names it.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits; convert() would clip instead of scale
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            elif _has_orientation(picture):
                ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode == "P":  # by way of RGBA, as Pillow warns about transparent palettes
                picture = picture.convert("RGBA")
            return pil_to_tensor(picture.convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as error:  # see read_size
        raise ImageReadError(f"{path}: cannot decode the picture ({error})") from error
