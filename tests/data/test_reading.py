"""Picture files: by both decoders, at reduced scale, upright, and parts of them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from deep_pictures import chunk, png
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from small_datasets import cut

from ssd.data import ImageReadError, PictureFile, read_image, reading
from ssd.data.picture_formats import SUFFIXES
from ssd.data.reading import Picture, as_picture

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, HEIGHT = 333, 247  # no multiples of 8


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(reading, "simplejpeg", None)
    else:
        assert reading.simplejpeg is not None
    return request.param


def smooth(width=WIDTH, height=HEIGHT):
    """A picture that is the same at any scale, and not when it is turned."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [x / width * 250, y / height * 250, 125 + 100 * np.sin(3 * x / width + 5 * y / height)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def upright(path):
    """What Pillow makes of it."""
    with open(path, "rb") as file, Image.open(file) as picture:
        pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def save(path, picture, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[reading.ORIENTATION_TAG] = orientation
    picture.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", [".jpg", ".tiff", ".png", ".webp", ".avif"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_all_orientations_are_turned_upright(tmp_path, decoder, orientation, suffix, mode):
    if suffix not in SUFFIXES:
        pytest.skip("Pillow cannot read it here")
    path = save(tmp_path / f"a{suffix}", smooth().convert(mode), orientation)
    picture, expected = PictureFile(path), upright(path)
    assert picture.pixels().shape == expected.shape == (3, picture.height, picture.width)
    assert (picture.pixels().int() - expected).abs().max() <= 1  # two versions of one decoder
    for size in [(60, 60), (31, 100), (120, 30)]:
        pixels, box = picture.part((0, 0, picture.width, picture.height), size)
        assert box == (0, 0, picture.width, picture.height)
        reference = Picture(expected).part(box, size)[0]
        assert (pixels.int() - reference).abs().max() <= 8, size  # other filters; a turn would be off by 200


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize("where", ["eXIf", "raw profile", "XMP", "behind the pixels"])
def test_the_orientation_of_a_png(tmp_path, monkeypatch, where):
    """It is found wherever Pillow finds it without decoding the picture."""
    exif = Image.Exif()
    exif[reading.ORIENTATION_TAG] = 6
    data, chunks, after = exif.tobytes(), b"", b""
    if where == "eXIf":
        chunks = chunk(b"eXIf", data[6:])
    elif where == "raw profile":
        text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
        chunks = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    elif where == "XMP":
        chunks = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())
    else:
        after = chunk(b"eXIf", data[6:])
    path = tmp_path / "a.png"
    path.write_bytes(png(np.zeros((40, 60, 1), np.uint16), chunks, after))
    with monkeypatch.context() as patched:
        patched.setattr(PngImageFile, "load", lambda self: pytest.fail("the header's reader decodes the picture"))
        picture = PictureFile(path)
    shape = (40, 60) if after else (60, 40)
    assert (picture.height, picture.width) == shape == picture.pixels().shape[1:]
    assert after or upright(path).shape[1:] == shape


@pytest.mark.parametrize("suffix", [".jpg", ".tiff", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_pillow_are_turned_as_files_are(tmp_path, orientation, suffix):
    path = save(tmp_path / f"a{suffix}", smooth(), orientation)
    expected = upright(path)
    with open(path, "rb") as file, Image.open(file) as opened:
        for picture in (opened, opened.convert("RGB"), ImageOps.exif_transpose(opened)):
            assert torch.equal(as_picture(picture).pixels(), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_decoded_at_reduced_scale(tmp_path, decoder, suffix, reduction):
    picture = PictureFile(save(tmp_path / f"a{suffix}", smooth()))
    pixels = picture._decode(reduction)
    assert pixels.shape == (3, -(-HEIGHT // reduction), -(-WIDTH // reduction))
    assert pixels.dtype == torch.uint8


def test_no_finer_than_wanted_and_no_coarser(tmp_path, monkeypatch):
    picture, taken = PictureFile(save(tmp_path / "a.jpg", smooth(1600, 1200))), []
    decode = picture._decode
    monkeypatch.setattr(picture, "_decode", lambda reduction: taken.append(reduction) or decode(reduction))
    for box, size in [
        ((0, 0, 1600, 1200), (150, 150)),
        ((0, 0, 1600, 1200), (151, 150)),
        ((0, 0, 1600, 1200), (300, 300)),
        ((0, 0, 1600, 1200), (300, 401)),
        ((0, 0, 1600, 1200), (75, 75)),
        ((100, 100, 1300, 1000), (225, 300)),
        ((100, 100, 1299, 1000), (225, 300)),
    ]:
        picture.part(box, size)
    assert taken == [4, 2, 2, 1, 8, 2, 1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_part_shows_what_its_box_says(tmp_path, decoder, suffix):
    """Its values are those of the picture at its pixels' places, whatever the scale at which it was decoded."""
    width, height = 1601, 1203
    picture = PictureFile(save(tmp_path / f"a{suffix}", smooth(width, height)))
    for wanted in [(0, 0, width, height), (203.3, 117.8, 1533.2, 1110.9), (640.2, 333.3, 720.9, 500.5)]:
        for size in [(300, 300), (40, 90), (7, 5)]:
            pixels, (x0, y0, x1, y1) = picture.part(wanted, size)
            across, down = ((np.arange(n) + 0.5) / n for n in reversed(size))
            x, y = (x0 + across * (x1 - x0)) / width * 250, (y0 + down * (y1 - y0)) / height * 250
            assert pixels.shape == (3, *size)
            red, green = pixels[0].double().mean(0).numpy(), pixels[1].double().mean(1).numpy()
            assert np.abs(red - x)[1:-1].max() < 1.5  # the outermost see no further than the edge
            assert np.abs(green - y)[1:-1].max() < 1.5
            # to the nearest pixels of what was decoded, each at most half as large as one of the result
            coarse = [max(1, (b - a) / n / 2) for a, b, n in ((x0, x1, size[1]), (y0, y1, size[0]))]
            assert np.abs(np.subtract((x0, y0, x1, y1), wanted)).max() <= max(coarse)


def test_a_part_holds_a_pixel_at_least():
    picture = Picture(torch.arange(12, dtype=torch.uint8).view(1, 3, 4).expand(3, 3, 4))
    for box, shown in [
        ((1.2, 1.2, 1.3, 1.3), (1, 1, 2, 2)),
        ((4, 3, 4, 3), (3, 2, 4, 3)),
        ((0, 0, 0, 0), (0, 0, 1, 1)),
    ]:
        pixels, got = picture.part(box, (2, 2))
        assert got == shown
        assert (pixels == 4 * shown[1] + shown[0]).all()


def test_what_the_fast_decoder_refuses_is_read_by_pillow(tmp_path):
    """Bytes after the picture's end, or none of its end marker: libjpeg only warns."""
    path = save(tmp_path / "a.jpg", smooth())
    whole, data = PictureFile(path).pixels(), path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe0\x00\x03\x00" + data[2:])
    assert torch.equal(PictureFile(path).pixels(), whole)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_its_end_is_read_if_half_of_it_is_there(
    tmp_path, decoder, progressive, reduction, orientation
):
    rows = np.random.default_rng(0).normal(0, 9, (480, 640, 1)) + smooth(640, 480)
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[reading.ORIENTATION_TAG] = orientation
    Image.fromarray(rows.clip(0, 255).astype(np.uint8)).save(path, quality=90, progressive=progressive, exif=exif)
    data, turn = path.read_bytes(), reading.TURNS.get(orientation, np.asarray)
    picture = PictureFile(path)
    whole = picture._decode(reduction)
    assert not picture.cut
    for share in (0.9999, 0.95, 0.6, 0.3):
        path.write_bytes(data[: int(share * len(data))])
        if share == 0.3 and not progressive:
            with pytest.raises(ImageReadError, match=r"a\.jpg: cannot decode the picture \(.*truncated"):
                picture._decode(reduction)
            continue
        picture = PictureFile(path)
        pixels = picture._decode(reduction)
        assert picture.cut
        assert pixels.shape == whole.shape
        off = (pixels.int() - whole).abs().permute(1, 2, 0).numpy()
        if progressive:
            assert off.mean() < 9  # less detail
        else:  # the bytes of this picture are spread evenly over its rows
            edge = np.zeros((-(-480 // reduction), 1, 1), bool)
            edge[: int((share - 0.05) * len(edge))] = True
            there = np.broadcast_to(turn(np.broadcast_to(edge, (len(edge), -(-640 // reduction), 3))), off.shape)
            assert off[there].max() == 0
            edge[:], edge[int(min(1, share + 0.06) * len(edge)) :] = False, True
            missing = np.broadcast_to(turn(np.broadcast_to(edge, (len(edge), -(-640 // reduction), 3))), off.shape)
            assert (pixels.permute(1, 2, 0).numpy()[missing] == 128).all()


def test_a_progressive_jpeg_may_end_anywhere_after_its_first_pass(tmp_path):
    """Also within a table of codes."""
    path = tmp_path / "a.jpg"
    smooth(64, 64).save(path, progressive=True)
    data, read = path.read_bytes(), []
    header = PictureFile(path)._header
    for end in range(len(data) - 2, 0, -1):
        path.write_bytes(data[:end])
        try:
            PictureFile(path, header).pixels()
        except ImageReadError:
            read.append(end)
    second = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"][1]
    assert max(read) < second


@pytest.mark.parametrize("size", [(300, 300), (30, 30)])
def test_damage_is_named_at_any_scale(tmp_path, decoder, size):
    path = save(tmp_path / "a.jpg", smooth(1600, 1200))
    picture = PictureFile(path)
    cut(path, 0.3)
    with pytest.raises(ImageReadError, match=r"a\.jpg: cannot decode the picture \(.*truncated"):
        picture.part((0, 0, 1600, 1200), size)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        picture.part((0, 0, 1600, 1200), size)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_read_image_refuses_what_is_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    assert read_image(path).shape == (3, 64, 64)
    cut(path, 0.4 if suffix == ".jpg" else 0.9)
    with pytest.raises(ImageReadError, match=path.name):
        read_image(path)


def test_read_image_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image(tmp_path / "gone.png")


def test_read_image_gives_the_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("L", ".jpg"), ("L", ".png"), ("LA", ".png"), ("1", ".png"), ("I;16", ".png"), ("I;16", ".tiff")],
        *[("P", ".png"), ("P", ".gif"), ("PA", ".png"), ("RGBA", ".png"), ("RGBA", ".webp"), ("RGB", ".bmp")],
        *[("CMYK", ".jpg"), ("CMYK", ".tiff")],
    ],
)
def test_read_image_gives_rgb(tmp_path, mode, suffix, recwarn):
    grey = mode in ("L", "LA", "1", "I;16")
    colour = (255, 255, 255) if mode == "1" else (90, 90, 90) if grey else (200, 100, 50)
    picture = Image.new("RGB", (12, 8), colour)
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 12), 90 * 256 + 7, dtype=np.uint16))
    elif mode in ("P", "PA"):
        picture = picture.quantize(4)
        if mode == "PA":  # a palette with transparency
            picture.info["transparency"] = bytes([255, 0])
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    assert (image.shape, image.dtype) == ((3, 8, 12), torch.uint8)
    off = (image.int() - torch.tensor(colour)[:, None, None]).abs().max()
    assert off <= 8  # JPEG and WebP round, CMYK too
    assert not [str(warning.message) for warning in recwarn]
