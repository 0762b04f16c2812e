"""Pictures that are there twice: equal files, and copies in another size or quality."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ssd.data import duplicates
from ssd.data.duplicates import Copies, Looks, equal_files, find_copies, look_at

pytestmark = pytest.mark.usefixtures("one_thread")


def scene(seed, size=(320, 240)):
    """A smooth random picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def test_equal_files_are_found_by_their_bytes(tmp_path):
    contents = [b"a" * 70_000 + b"1", b"a" * 70_000 + b"2", b"b", b"a" * 70_000 + b"1", b"c", b"b", b"b"]
    for i, content in enumerate(contents):  # the first two differ only behind HEAD, and "c" has the size of "b"
        (tmp_path / str(i)).write_bytes(content)
    files = [tmp_path / str(i) for i in range(len(contents))]
    assert equal_files(files) == [[0, 3], [2, 5, 6]]
    assert equal_files([*files, files[4], files[0]]) == [[0, 3, 8], [2, 5, 6], [4, 7]]  # named twice
    assert equal_files([]) == equal_files(files[:1]) == []


def test_files_of_one_split_are_not_read_if_only_copies_in_two_matter(tmp_path, monkeypatch):
    read, head = [], duplicates._hash_of_head
    monkeypatch.setattr(duplicates, "_hash_of_head", lambda picture: read.append(picture.name) or head(picture))
    contents = [b"aa", b"aa", b"ab", b"b", b"b", b"c", b"ddd"]  # "c" has the size of "b"
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
    files = [tmp_path / str(i) for i in range(len(contents))]
    assert equal_files([*files, files[0], files[6]], [*"tttvtvtvv"]) == [[0, 1, 7], [3, 4], [6, 8]]
    assert sorted(read) == ["0", "1", "2", "3", "4", "5"]
    read.clear()
    assert equal_files(files, [*"tttvvvv"]) == []
    assert read == []


def test_copies_in_another_size_quality_or_brightness_are_found(tmp_path):
    for i in range(40):
        scene(i).save(tmp_path / f"{i}.png")
    scene(3).resize((200, 150)).save(tmp_path / "smaller.jpg", quality=40)
    scene(7).save(tmp_path / "worse.jpg", quality=15)
    ImageEnhance.Brightness(scene(9)).enhance(0.7).save(tmp_path / "darker.png")
    shutil.copy(tmp_path / "7.png", tmp_path / "copy.png")
    shutil.copy(tmp_path / "8.png", tmp_path / "equal.png")
    names = [*(f"{i}.png" for i in range(40)), "smaller.jpg", "worse.jpg", "darker.png", "copy.png", "equal.png"]
    files = [tmp_path / name for name in names]
    assert find_copies(files, look_at(files, None)) == [
        Copies([3, 40], False),
        Copies([7, 41, 43], False),
        Copies([8, 44], True),
        Copies([9, 42], False),
    ]


def test_pictures_without_contrast_are_compared_by_their_bytes(tmp_path):
    for i, grey in enumerate((0, 0, 255)):
        Image.new("RGB", (64, 64), (grey,) * 3).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(3)]
    assert find_copies(files, look_at(files, None)) == [Copies([0, 1], True)]


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    scene(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    shutil.copy(tmp_path / "b.png", tmp_path / "c.png")
    files = [tmp_path / f"{name}.png" for name in "abcd"]
    looks = look_at(files, None)
    assert list(looks.unreadable) == [1, 2, 3]
    assert f"{tmp_path}/b.png" in looks.unreadable[1]
    assert find_copies(files, looks) == []


@pytest.mark.parametrize("window", [1, duplicates.WINDOW])
def test_every_pair_with_few_different_bits_is_found(monkeypatch, tmp_path, window):
    """Of hashes that all differ; a window of 1 still compares neighbours in the order of each band."""
    monkeypatch.setattr(duplicates, "WINDOW", window)
    rng = np.random.default_rng(0)
    n = 2000
    hashes = rng.integers(0, 1 << 16, (n, duplicates.BANDS)).astype(np.uint16)
    grey = rng.standard_normal((n, duplicates.SMALL**2)).astype(np.float32)
    grey = (grey - grey.mean(1, keepdims=True)) / grey.std(1, keepdims=True)
    expected = []
    for i in range(0, 600, 2):
        n_bits = i // 60  # 0 to 9
        bits = np.unpackbits(hashes[i].view(np.uint8))
        bits[rng.choice(128, n_bits, replace=False)] ^= 1
        hashes[i + 1] = np.packbits(bits).view(np.uint16)
        same = i % 20 > 0
        grey[i + 1] = grey[i] if same else -grey[i]
        expected += [[i, i + 1]] * (same and n_bits <= duplicates.DISTANCE)
    for i in range(n):
        (tmp_path / str(i)).write_bytes(b"%d" % i)
    found = find_copies([tmp_path / str(i) for i in range(n)], Looks(hashes, grey, {}))
    assert [copies.pictures for copies in found] == expected
    assert len(expected) > 200


def test_one_equal_part_of_the_hash_is_enough(tmp_path):
    """Whichever it is: of two hashes, one bit of each other part differs."""
    n = duplicates.BANDS
    hashes = np.random.default_rng(1).integers(0, 1 << 16, (2 * n, n)).astype(np.uint16)
    hashes[n:] = hashes[:n] ^ (1 - np.eye(n, dtype=np.uint16))
    grey = np.tile(np.repeat(np.eye(n), duplicates.SMALL**2 // n, 1), (2, 1)).astype(np.float32)
    grey = (grey - grey.mean(1, keepdims=True)) / grey.std(1, keepdims=True)
    for i in range(2 * n):
        (tmp_path / str(i)).write_bytes(b"%d" % i)
    found = find_copies([tmp_path / str(i) for i in range(2 * n)], Looks(hashes, grey, {}))
    assert found == [Copies([i, i + n], False) for i in range(n)]
