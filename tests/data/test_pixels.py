"""Work that decodes all pictures of a data set."""

from __future__ import annotations

import numpy as np
import pytest
from deep_pictures import png, tiff
from PIL import Image
from small_datasets import cut

from ssd.data.pixels import check_pixels, measure_levels
from ssd.data.reading import ImageReadError, read_header


def headers(paths):
    return np.array([read_header(path) for path in paths], np.int32)


def test_the_range_of_all_deep_pictures(tmp_path):
    Image.new("RGB", (5, 4), "white").save(tmp_path / "8.png")
    for name, low, high in (("a", 300, 2000), ("b", 17, 900)):
        array = np.linspace(low, high, 20).astype(np.uint16).reshape(4, 5, 1)
        (tmp_path / f"{name}.png").write_bytes(png(array))
    floats = np.array([[[np.nan], [np.inf], [2500.5]]], np.float32)
    (tmp_path / "c.tif").write_bytes(tiff(floats))
    (tmp_path / "d.tif").write_bytes(tiff(floats[:, :2]))
    names = ("8.png", "a.png", "b.png", "c.tif", "d.tif")
    paths = [tmp_path / name for name in names]
    assert measure_levels(paths[:3], headers(paths[:3])) == (17, 2000)
    assert measure_levels(paths, headers(paths)) == (17, 2500.5)
    assert measure_levels(paths[:1], headers(paths[:1])) is None
    assert measure_levels(paths[4:], headers(paths[4:])) is None


def test_damaged_pictures_are_named_together(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(png(np.random.default_rng(0).integers(0, 9, (40, 50, 1), np.uint16)))
    found = headers(paths)
    for path in paths:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ImageReadError, match=r"(?s)2 errors.*a\.png.*b\.png"):
        measure_levels(paths, found)


def test_damage_is_found(tmp_path):
    for name in "abcd":
        Image.effect_noise((64, 64), 50).save(tmp_path / f"{name}.jpg")
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    cut(tmp_path / "b.jpg", 0.9)
    cut(tmp_path / "c.jpg", 0.4)
    (tmp_path / "e.tif").write_bytes(tiff(np.full((4, 5, 1), 99, np.int32)))
    names = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.tif", "f.jpg")
    unreadable, found = check_pixels([tmp_path / name for name in names])
    assert found == [tmp_path / "b.jpg"]
    assert [str(error).partition(":")[0] for error in unreadable[:2]] == [f"{tmp_path}/{name}.jpg" for name in "ac"]
    assert isinstance(unreadable[2], FileNotFoundError)
