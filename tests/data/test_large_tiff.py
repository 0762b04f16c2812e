"""`LargeTiff`: parts of TIFF files that are too large to be decoded whole, compared with the whole array."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.data import ImageReadError
from ssd.data import large_tiff as module
from ssd.data.large_tiff import LargeTiff, large_tiff
from ssd.data.reading import Picture, PictureFile

tifffile = pytest.importorskip("tifffile", reason="the extra `large` is not installed")

HEIGHT, WIDTH = 333, 517
KINDS = {
    "one strip without compression": {},
    "strips": {"rowsperstrip": 10},
    "strips with LZW and differences": {"rowsperstrip": 16, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (64, 48)},
    "tiles with deflate": {"tile": (64, 96), "compression": "zlib"},
    "BigTIFF": {"bigtiff": True, "tile": (128, 128), "compression": "zlib"},
}


@pytest.fixture(scope="module")
def array():
    coarse = np.random.default_rng(0).integers(0, 256, (HEIGHT // 12, WIDTH // 12, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT)))


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 20_000)
    monkeypatch.setattr(module, "STRIP", 10_000)


def written(path, array, **options):
    tifffile.imwrite(path, array, photometric="minisblack" if array.ndim == 2 else "rgb", **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_pixels_of_the_file(kind, array, tmp_path):
    picture = large_tiff(written(tmp_path / "a.tif", array, **KINDS[kind]))
    assert isinstance(picture, LargeTiff)
    assert (picture.width, picture.height, picture.path) == (WIDTH, HEIGHT, tmp_path / "a.tif")
    memory = Picture(torch.from_numpy(array).permute(2, 0, 1))
    for x0, y0, x1, y1 in [(0, 0, WIDTH, HEIGHT), (100, 60, 400, 300), (500, 320, WIDTH, HEIGHT), (47, 63, 49, 65)]:
        pixels, box = picture.part((x0, y0, x1, y1), (y1 - y0, x1 - x0))
        assert box == (x0, y0, x1, y1)
        assert np.array_equal(pixels.permute(1, 2, 0), array[y0:y1, x0:x1])
    for size in [(50, 80), (20, 20), (300, 300)]:  # reduced by 3, by 12, and hardly
        ours, box = picture.part((0, 0, WIDTH, HEIGHT), size)
        assert np.abs(np.array(box) - (0, 0, WIDTH, HEIGHT)).max() <= 0.5 * WIDTH / size[1]
        theirs, _ = memory.part(box, size)
        assert (ours.int() - theirs.int()).abs().float().mean() < 2  # the mean of integers is rounded


def test_jpeg_grey_and_transparency(array, tmp_path):
    written(tmp_path / "j.tif", array, tile=(64, 64), compression="jpeg")
    with Image.open(tmp_path / "j.tif") as whole:
        expected = np.array(whole.convert("RGB")).astype(int)
    whole_part = (0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH)
    ours = LargeTiff(tmp_path / "j.tif").part(*whole_part)[0].permute(1, 2, 0).int().numpy()
    assert np.abs(ours - expected).mean() < 1
    grey = written(tmp_path / "g.tif", array[..., 0], tile=(64, 64))
    assert np.array_equal(LargeTiff(grey).part(*whole_part)[0], np.stack([array[..., 0]] * 3))
    tifffile.imwrite(tmp_path / "w.tif", 255 - array[..., 0], photometric="miniswhite")
    assert np.array_equal(LargeTiff(tmp_path / "w.tif").part(*whole_part)[0], np.stack([array[..., 0]] * 3))
    rgba = np.concatenate([array, np.full((HEIGHT, WIDTH, 1), 7, np.uint8)], 2)
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=8)
    assert np.array_equal(LargeTiff(tmp_path / "a.tif").part(*whole_part)[0].permute(1, 2, 0), array)


def test_few_segments_are_kept(array, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 3 * 64 * 64 * 3)
    picture = LargeTiff(written(tmp_path / "a.tif", array, tile=(64, 64), compression="zlib"))
    picture.part((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH))
    assert len(picture._kept) == 3


def test_other_images_are_left_to_pillow(array, tmp_path, monkeypatch):
    Image.fromarray(array).save(tmp_path / "a.png")
    (tmp_path / "broken.tif").write_text("no TIFF")
    for image in (
        tmp_path / "a.png",
        tmp_path / "broken.tif",
        tmp_path / "gone.tif",
        Picture(torch.zeros(3, 9, 9)),
        array,
    ):
        assert large_tiff(image) is None
    path = written(tmp_path / "a.tif", array)
    monkeypatch.setattr(module, "LARGE", HEIGHT * WIDTH)
    assert large_tiff(path) is None
    monkeypatch.setattr(module, "LARGE", HEIGHT * WIDTH - 1)
    assert large_tiff(str(path)) is not None
    deep = written(tmp_path / "deep.tif", array.astype(np.uint16), tile=(64, 64))
    assert large_tiff(deep) is None  # Pillow reads it, up to twice as many pixels
    monkeypatch.setattr(module, "LARGE", HEIGHT * WIDTH // 2 - 1)
    with pytest.raises(ImageReadError, match=r"deep\.tif"):
        large_tiff(deep)
    monkeypatch.setattr(module, "tifffile", None)
    assert large_tiff(path) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rowsperstrip": HEIGHT, "compression": "zlib"}, "strips of 517 x 333 pixels, which are too large"),
        ({"tile": (64, 64), "planarconfig": "separate"}, "planar configuration 2"),
        ({"tile": (64, 64), "extratags": [(274, "H", 1, 6, False)]}, "orientation 6"),
    ],
)
def test_layouts_that_cannot_be_read_are_named(options, message, array, tmp_path):
    if options.get("planarconfig"):
        array = np.ascontiguousarray(np.moveaxis(array, 2, 0))
    with pytest.raises(ImageReadError, match=rf"a\.tif: .*{message}"):
        large_tiff(written(tmp_path / "a.tif", array, **options))


def test_16_bits_and_palettes_are_named(array, tmp_path):
    with pytest.raises(ImageReadError, match="it has 16 bits of uint16"):
        LargeTiff(written(tmp_path / "a.tif", array.astype(np.uint16), tile=(64, 64)))
    Image.fromarray(array).quantize(16).save(tmp_path / "p.tif")
    with pytest.raises(ImageReadError, match="must be grey or RGB"):
        LargeTiff(tmp_path / "p.tif")


def test_a_damaged_tile_is_named(array, tmp_path):
    path = written(tmp_path / "a.tif", array, tile=(64, 64), compression="zlib")
    picture = LargeTiff(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = bytes(5000)
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"a\.tif: cannot decode the picture"):
        picture.part((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH))
    with pytest.raises(ImageReadError, match=r"a\.tif: the picture has 517 x 333 pixels"):
        picture.pixels()
    picture = LargeTiff(written(tmp_path / "b.tif", array))
    (tmp_path / "b.tif").unlink()
    with pytest.raises(FileNotFoundError):
        picture.part((0, 0, 9, 9), (9, 9))


def test_pillows_limit_says_what_to_do(array, tmp_path, monkeypatch):
    path = written(tmp_path / "a.tif", array)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 3)
    with pytest.raises(ImageReadError, match=r"ssd detect --tiles, after pip install 'ssd-ext\[large\]'"):
        PictureFile(path)
