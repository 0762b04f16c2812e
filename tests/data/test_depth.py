"""Pictures with more than 8 bits per sample: the bytes that their values become."""

from __future__ import annotations

import io

import numpy as np
import pytest
from deep_pictures import png, tiff
from PIL import Image

from ssd.data import depth
from ssd.data.depth import extremes, to_bytes
from ssd.data.reading import DEEP, ImageReadError, PictureFile, as_picture, read_header

LEVELS = {10: (0, 1023), 12: (0, 4095), 16: None}


def values(bits, channels, kind=np.uint16):
    """A picture (6, 9, channels) whose values fill the range, and are different wherever it could be turned."""
    return np.random.default_rng(bits).integers(0, 2**bits, (6, 9, channels)).astype(kind)


def scaled(array, low, high):
    return np.rint((array.astype(np.float64) - low) * 255 / (high - low)).clip(0, 255)


def pixels(path, levels=None):
    picture = PictureFile(path, levels=levels)
    result = picture.pixels().permute(1, 2, 0).numpy()
    assert result.shape == (picture.height, picture.width, 3)
    return result


def needs_imagecodecs(channels):
    if channels > 1:
        pytest.importorskip("imagecodecs")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("write", [png, tiff, lambda a: tiff(a, ">")], ids=["PNG", "TIFF", "big-endian"])
def test_every_value_becomes_the_nearest_byte(tmp_path, write, bits, channels):
    if channels == 2 and write is not png:
        pytest.skip("Pillow knows no TIFF of 2 channels of 16 bits")
    needs_imagecodecs(channels)
    array = values(bits, channels)
    path = tmp_path / "a.any"
    path.write_bytes(write(array))
    assert read_header(path).decoding == DEEP
    expected = scaled(array, 0, 2**bits - 1)
    expected = expected[..., :3] if channels > 2 else expected[..., :1]
    assert (pixels(path, LEVELS[bits]) == expected).all()
    assert (pixels(path, (100, 200)) == scaled(array, 100, 200)[..., : 3 if channels > 2 else 1]).all()
    with open(path, "rb") as file, Image.open(file) as picture:
        used = array[..., :3] if channels > 2 else array[..., :1]
        assert extremes(picture, file) == (used.min(), used.max())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiff_is_turned_upright(tmp_path, channels, orientation):
    needs_imagecodecs(channels)
    array = values(16, channels)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(array, orientation=orientation))
    turned = depth.TURNS.get(orientation, np.asarray)(scaled(array, 0, 65535))
    assert (pixels(path) == turned).all()
    assert PictureFile(path).part((0, 0, *turned.shape[1::-1]), turned.shape[:2])[0].shape[1:] == turned.shape[:2]


def test_planes_and_inverted_greys(tmp_path, monkeypatch):
    array = values(12, 1)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(array, white_is_zero=True))
    assert (pixels(path, (0, 4095)) == 255 - scaled(array, 0, 4095)).all()
    needs_imagecodecs(3)
    array = values(16, 3)
    path.write_bytes(tiff(array, planar=True))
    assert (pixels(path) == scaled(array, 0, 65535)).all()
    monkeypatch.setattr(depth, "HAS_IMAGECODECS", False)
    with pytest.raises(ImageReadError, match=r"a\.tif: .*pip install 'ssd-ext\[deep\]'"):
        PictureFile(path).pixels()


def test_floats_are_from_0_to_1_unless_levels_are_given(tmp_path):
    array = values(16, 1, np.float32) / 65535
    array[0, 0], array[0, 1] = np.nan, 1.0005
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(array))
    expected = np.nan_to_num(scaled(array, 0, 1))
    assert (pixels(path) == expected).all()
    assert expected[0, 0] == 0
    path.write_bytes(tiff(array * 812))
    with pytest.raises(ImageReadError, match=r"a\.tif: .* to 812\.406, .*from 0 to 1: .*--bits"):
        PictureFile(path).pixels()
    assert np.abs(pixels(path, (0, 812)) - expected).max() <= 1  # float32 rounds
    array[1, 1] = np.inf
    path.write_bytes(tiff(array))
    assert (pixels(path)[1, 1] == 255).all()
    with open(path, "rb") as file, Image.open(file) as picture:
        assert extremes(picture, file) == (np.nanmin(array), np.float32(1.0005))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32])
def test_other_integers_need_levels(tmp_path, kind):
    array = values(15, 1, kind)
    array[0, 0] = np.iinfo(kind).max  # of unsigned integers, Pillow reads this as -1
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(array))
    with pytest.raises(ImageReadError, match=r"a\.tif: .*int.*, are from \d+ to \d+: say .*--bits"):
        PictureFile(path).pixels()
    assert (pixels(path, (5, 20000)) == scaled(array, 5, 20000)).all()
    few = array % 256  # as bytes are, in an array of the default type
    path.write_bytes(tiff(few))
    assert (pixels(path) == few).all()


def test_without_imagecodecs_colours_have_their_upper_bits_and_levels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "HAS_IMAGECODECS", False)
    for write in (png, tiff):
        array = values(16, 3)
        path = tmp_path / "a.any"
        path.write_bytes(write(array))
        assert (pixels(path) == array >> 8).all()
        assert (pixels(path, (0, 65535)) == array >> 8).all()
        with pytest.raises(ImageReadError, match=r"a\.any: .*pip install 'ssd-ext\[deep\]'"):
            PictureFile(path, levels=(0, 4095)).pixels()
        with open(path, "rb") as file, Image.open(file) as picture, pytest.raises(ValueError, match="--bits 16"):
            extremes(picture, file)


def test_pictures_of_pillow(tmp_path):
    array = values(12, 1)
    for picture in (Image.fromarray(array[..., 0]), Image.open(io.BytesIO(png(array)))):
        assert (as_picture(picture).pixels()[0].numpy() == scaled(array, 0, 65535)[..., 0]).all()
        assert (as_picture(picture, (0, 4095)).pixels()[0].numpy() == scaled(array, 0, 4095)[..., 0]).all()
    loaded = Image.open(io.BytesIO(png(values(16, 3))))
    loaded.load()
    assert (as_picture(loaded, (0, 4095)).pixels().permute(1, 2, 0).numpy() == values(16, 3) >> 8).all()  # bytes


def test_formats_that_say_their_depth_are_scaled_by_it(tmp_path):
    array = values(16, 1)
    Image.fromarray(array[..., 0]).save(tmp_path / "a.jp2")
    assert read_header(tmp_path / "a.jp2").decoding != DEEP
    assert (pixels(tmp_path / "a.jp2", (0, 4095)) == scaled(array, 0, 65535)).all()


def test_one_value_only():
    flat = Image.fromarray(np.full((2, 3), 7, np.uint16))
    assert (to_bytes(flat, (7, 7)) == 0).all()
    assert (to_bytes(flat, (6, 6)) == 255).all()
