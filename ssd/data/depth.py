"""Pictures with more than 8 bits per sample: which values become black and white."""

from __future__ import annotations

from importlib.util import find_spec
from typing import IO, TypeAlias

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ssd.data.picture_formats import ORIENTATION_TAG, TURNS

Levels: TypeAlias = tuple[float, float]  # the values that become black (0) and white (255)

HAS_IMAGECODECS = find_spec("imagecodecs") is not None
FULL: Levels = (0, 65535)  # of 16 bits
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF 6.0, sections 8 and 19
COLOUR = ("LA", "RGB", "RGBA", "RGBa")  # the modes in which Pillow keeps only the upper 8 bits of 16
ROUNDING = 0.5 / 255  # how far floats may lie outside of 0..1
LACKS_IMAGECODECS = (
    "only the upper 8 of its 16 bits per sample can be read: pip install 'ssd-ext[deep]', or use --bits 16 if its "
    "values fill all 16 bits"
)
REMEDY = "say how many bits are used (--bits), or open the picture as part of a data set, whose range is measured"


def is_deep(picture: Image.Image) -> bool:
    """Tells whether a picture has more than 8 bits per sample; does not decode it.

    Of files, only PNG and TIFF count. The other formats say how many bits they use, and are scaled by that.
    """
    if picture.mode[0] in "IF":
        return picture.format in ("PNG", "TIFF", None)
    if picture.mode not in COLOUR:
        return False
    if isinstance(picture, TiffImageFile):
        return min(_tag(picture, BITS_PER_SAMPLE) or (8,)) > 8
    # The last field of a tile is the layout of the samples, such as "RGB;16B". A decoded picture has no tiles.
    tiles = picture.tile if isinstance(picture, PngImageFile) else []
    return any(str(tile[3]).endswith("16B") for tile in tiles)


def to_bytes(picture: Image.Image, levels: Levels | None = None, file: IO[bytes] | None = None) -> np.ndarray:
    """Decodes a picture with more than 8 bits per sample. One from a TIFF file is turned upright.

    Args:
        picture: as opened, or in memory.
        levels: the values that become black and white. None: the whole range of the type; for floats 0 and 1,
            for integers of 32 bits 0 and 255.
        file: the picture's file. Without it, or without the package imagecodecs, only the upper 8 bits of a picture
            in colour are read.

    Returns:
        (H, W) or (H, W, 3) uint8. NaN becomes black.

    Raises:
        ValueError: `levels` are needed, because values are outside of this range; or `levels` cannot be applied,
            because only the upper 8 bits can be read.
        Exception: see `ssd.data.picture_formats.open_picture`.
    """
    if picture.mode in COLOUR and not (file and HAS_IMAGECODECS):
        if levels not in (None, FULL) or _value(picture, PLANAR) == 2:  # planes are what Pillow reads wrongly
            raise ValueError(LACKS_IMAGECODECS)
        return np.asarray(picture.convert("RGB"))
    full, inverted = _full(picture), _value(picture, PHOTOMETRIC) == 0  # white is zero
    samples = _samples(picture, file)
    low, high = levels or _checked(full, samples)
    scaled = (samples - np.float32(low)) * np.float32(255 / ((high - low) or 1))
    array = np.nan_to_num(scaled.clip(0, 255).round(), nan=0).astype(np.uint8)
    return 255 - array if inverted else array


def extremes(picture: Image.Image, file: IO[bytes]) -> Levels | None:
    """Decodes a picture with more than 8 bits per sample: its smallest and its largest value; None if none is finite.

    Raises:
        ValueError: it is in colour, and the package imagecodecs is not installed.
        Exception: see `ssd.data.picture_formats.open_picture`.
    """
    if picture.mode in COLOUR and not HAS_IMAGECODECS:
        raise ValueError(LACKS_IMAGECODECS)
    samples = _samples(picture, file)
    finite = samples[np.isfinite(samples)]
    return (finite.min().item(), finite.max().item()) if finite.size else None


def _samples(picture: Image.Image, file: IO[bytes] | None) -> np.ndarray:
    """Decodes the numbers in the file, (H, W) or (H, W, 3), and turns those of a TIFF file upright, as Pillow does."""
    if picture.mode not in COLOUR or file is None:
        unsigned = _value(picture, BITS_PER_SAMPLE) == 32 and _value(picture, SAMPLE_FORMAT) == 1
        array = np.asarray(picture)
        return array.view(np.uint32) if unsigned else array  # Pillow has only signed integers
    import imagecodecs  # imported only here: it takes a fifth of a second, and few data sets need it

    file.seek(0)
    if picture.format == "PNG":
        array = imagecodecs.png_decode(file.read())
    else:
        array = imagecodecs.tiff_decode(file.read())
        if _value(picture, PLANAR) == 2:
            array = np.moveaxis(array, 0, 2)
        array = TURNS.get(picture.getexif().get(ORIENTATION_TAG, 1), np.asarray)(array)
    return array[..., :3] if array.shape[2] > 2 else array[..., 0]  # the others are transparency


def _full(picture: Image.Image) -> Levels | None:
    """The whole range of a picture's values; None for types of integers whose range no picture fills."""
    if picture.mode == "F":
        return 0, 1
    if picture.mode == "I" and picture.format in ("TIFF", None):
        return None
    return 0, 2.0 ** (_value(picture, BITS_PER_SAMPLE) or 16) - 1


def _checked(full: Levels | None, samples: np.ndarray) -> Levels:
    """Returns the range of the samples: that of their type, or 0..255 if the type has none and the samples are in it.

    Raises:
        ValueError: the samples are outside of the range.
    """
    if full is None:
        low, high = samples.min(), samples.max()
        if low < 0 or high > 255:
            raise ValueError(f"its values, of type {samples.dtype.name}, are from {low} to {high}: {REMEDY}")
        return 0, 255
    if samples.dtype.kind == "f":
        finite = samples[np.isfinite(samples)]
        low, high = finite.min(initial=0), finite.max(initial=0)
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ValueError(f"its values are from {low:g} to {high:g}, and floats must be from 0 to 1: {REMEDY}")
    return full


def _tag(picture: Image.Image, tag: int) -> tuple[int, ...]:
    """The values of a TIFF tag; none if the picture has no such tag or is no TIFF file."""
    values = picture.tag_v2.get(tag, ()) if isinstance(picture, TiffImageFile) else ()
    return values if isinstance(values, tuple) else (values,)


def _value(picture: Image.Image, tag: int) -> int | None:
    return next(iter(_tag(picture, tag)), None)
