"""Which files are pictures, and HEIF, which is read by pi-heif."""

from __future__ import annotations

import pytest
import torch
from own_process import printed_by
from phone_pictures import HEIC
from PIL import Image

from ssd.data import read_image
from ssd.data.folder import Folder
from ssd.data.picture_formats import SUFFIXES, UNREADABLE, is_picture, is_unreadable
from ssd.inference.drawings import plan_drawings

ORANGE, BLUE = torch.tensor([200.0, 100, 50]), torch.tensor([20.0, 40, 220])  # above and below in HEIC


def off(image, colour):
    return (image.float().mean((1, 2)) - colour).abs().max()


def test_a_picture_is_known_by_its_suffix():
    assert all(is_picture(f"x/a{suffix.upper()}") for suffix in SUFFIXES)
    assert all(is_unreadable(f"x/a{suffix.upper()}") for suffix in UNREADABLE)
    assert not set(SUFFIXES) & set(UNREADABLE)
    assert not any(is_picture(name) or is_unreadable(name) for name in ("a.txt", "jpg", "a.jpg.xml"))


@pytest.mark.parametrize(("suffix", "format"), [(".jfif", "JPEG"), (".avif", "AVIF"), (".jp2", "JPEG2000")])
def test_pictures_of_a_folder_are_found_and_read(tmp_path, suffix, format):
    if suffix in UNREADABLE:
        pytest.skip(UNREADABLE[suffix])
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (64, 48), (200, 100, 50)).save(path, format=format)
    assert list(plan_drawings([tmp_path], tmp_path / "out")) == [path]
    assert Folder(tmp_path).pictures == [path.name]
    assert off(read_image(path), ORANGE) <= 3


def test_heif_is_read_upright_whatever_its_suffix(tmp_path):
    pytest.importorskip("pi_heif")
    assert {".heic", ".heif"} <= set(SUFFIXES)
    for name in ("a.heic", "a.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        image = read_image(tmp_path / name)
        assert image.shape == (3, 96, 64)
        assert off(image[:, :40], ORANGE) <= 4
        assert off(image[:, 56:], BLUE) <= 4


BLOCKED = """
import sys
sys.modules["pi_heif"] = None  # as where it is not installed
from ssd.data import read_image
from ssd.data.picture_formats import describe_unreadable
print(*describe_unreadable(["b/a.heic", "b/a.dng", "b/c.HEIC"]), sep="\\n")
try:
    read_image(sys.argv[1])
except ValueError as error:
    print(error)
print("imagecodecs" in sys.modules)
"""


def test_what_cannot_be_read_here_is_counted_by_what_helps(tmp_path):
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert printed_by(BLOCKED, tmp_path / "a.heic").splitlines() == [
        "2 pictures cannot be read here, such as b/a.heic: pip install 'ssd-ext[heif]'",
        "b/a.dng: the picture cannot be read here: convert it to JPEG or PNG",
        f"{tmp_path}/a.heic: cannot read the picture (pip install 'ssd-ext[heif]')",
        "False",
    ]


def test_pi_heif_is_imported_only_for_heif():
    assert printed_by("import sys, ssd.data; print('pi_heif' in sys.modules)") == "False\n"


def test_a_data_set_names_what_it_cannot_read(tmp_path):
    for name in ("a.dng", "b.jpg"):
        (tmp_path / name).write_bytes(b"anything")
    folder = Folder(tmp_path)
    assert (folder.pictures, folder.unreadable) == (["b.jpg"], ["a.dng"])
    with pytest.raises(FileNotFoundError, match=r"no picture 'x/a\.jpg' .*a\.dng: .*convert it to JPEG or PNG"):
        folder.find(["x/a.jpg"], "labels/a.txt")
