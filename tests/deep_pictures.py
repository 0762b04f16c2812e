"""Pictures with more than 8 bits per sample: PNG and TIFF files of any type and number of channels, and data sets."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from small_datasets import add_picture


def png(array: np.ndarray, chunks: bytes = b"", after: bytes = b"") -> bytes:
    """The content of a PNG file of 16 bits per sample.

    Args:
        array: (H, W, channels) uint16.
        chunks, after: chunks before and behind the pixels, see `chunk`.
    """
    height, width, channels = array.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff(
    array: np.ndarray, order: str = "<", *, orientation: int = 1, planar: bool = False, white_is_zero: bool = False
) -> bytes:
    """The content of a TIFF file without compression.

    Args:
        array: (H, W, channels) of any type of number.
        order: of the bytes, "<" or ">".
        orientation: as in EXIF.
        planar: whether each channel has a plane of its own.
        white_is_zero: whether 0 is white, in grey pictures.
    """
    height, width, channels = array.shape
    stored = np.moveaxis(array, 2, 0) if planar else array
    data = stored.astype(array.dtype.newbyteorder(order)).tobytes()
    strips = channels if planar else 1
    size = len(data) // strips
    tags = {  # short numbers unless the tag is in `longs`
        256: [width],
        257: [height],
        258: [array.dtype.itemsize * 8] * channels,
        259: [1],
        262: [2 if channels > 2 else 0 if white_is_zero else 1],
        273: [],  # the places of the strips, below
        274: [orientation],
        277: [channels],
        278: [height],
        279: [size] * strips,
        284: [2 if planar else 1],
        **({338: [2]} if channels == 4 else {}),
        339: [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * channels,
    }
    longs, first = (273, 279), 8 + 2 + 12 * len(tags) + 4
    extra = sum(n for n in (4 * strips if tag in longs else 2 * len(v) for tag, v in tags.items()) if n > 4)
    tags[273] = [first + extra + i * size for i in range(strips)]
    entries, behind = b"", b""
    for tag, values in tags.items():
        content = struct.pack(order + ("I" if tag in longs else "H") * len(values), *values)
        if len(content) > 4:
            place = struct.pack(order + "I", first + len(behind))
            behind, content = behind + content, place
        entries += struct.pack(order + "HHI", tag, 4 if tag in longs else 3, len(values)) + content.ljust(4, b"\0")
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return start + struct.pack(order + "H", len(tags)) + entries + bytes(4) + behind + data


def add_deep_pictures(root: Path, names: str = "ab", lowest: int = 16) -> None:
    """Adds grey PNG of 16 bits with an object each; the values of the n-th are from `lowest` to `lowest` + 100 n."""
    for n, name in enumerate(names, 1):
        add_picture(root, name, [("x", 1, 1, 30, 30)], suffix=".png")
        array = np.linspace(lowest, lowest + 100 * n, 60 * 40).astype(np.uint16).reshape(40, 60, 1)
        (root / "JPEGImages" / f"{name}.png").write_bytes(png(array))
