"""What was read of a data set is kept, and never used where the data is not what it was."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from deep_pictures import png
from own_process import PATHS
from PIL import Image
from small_datasets import add_picture

from ssd.data import ImageReadError, ReadOptions, annotations, cache, open_dataset, pixels

pytestmark = pytest.mark.usefixtures("one_thread")
LONG_AGO = time.time() - 1000


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of the cache, where everything is worth keeping."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache" / "ssd_ext")
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    return tmp_path / "cache" / "ssd_ext"


@pytest.fixture
def reads(monkeypatch):
    """The pictures whose headers were read."""
    read, read_header = [], annotations.read_header
    monkeypatch.setattr(annotations, "read_header", lambda path: read.append(path.name) or read_header(path))
    return read


@pytest.fixture
def data(tmp_path):
    add_picture(tmp_path / "data", "a", [("dog", 3, 2, 30, 20)])
    add_picture(tmp_path / "data", "b", [("cat", 1, 1, 9, 9), ("cat", 5, 5, 5, 9)])
    (tmp_path / "data" / "ImageSets" / "Main" / "some.txt").write_text("a\n")
    return age(tmp_path / "data")


def age(folder):
    """As if nothing had changed for long."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def content(folder, split=None):
    opened = open_dataset(folder, split)
    objects = [(t["boxes"].tolist(), t["labels"].tolist()) for t in opened.truths]
    objects = list(zip([path.name for path in opened.pictures], objects, strict=True))
    return opened.classes, objects, list(map(str, opened.dropped)), opened.sizes.tolist()


def test_nothing_is_read_twice(kept, data, reads):
    first = content(data)
    assert sorted(reads) == ["a.jpg", "b.jpg"]
    assert content(data) == first
    assert len(reads) == 2
    assert len(first[2]) == 1  # what was left out is told again
    assert [name for name, _ in content(data, "some")[1]] == ["a.jpg"]
    assert len(reads) == 3


def test_pictures_that_can_be_read_by_now_are_seen(kept, data, monkeypatch):
    Image.new("RGB", (8, 8)).save(data / "JPEGImages" / "c.heic", "JPEG")
    options = ReadOptions(unlabelled="background")
    for suffixes, names in (((".jpg",), "ab"), ((".jpg", ".heic"), "abc")):
        age(data)
        for module in ("cache", "folder"):
            monkeypatch.setattr(f"ssd.data.{module}.SUFFIXES", suffixes)
        assert [path.stem for path in open_dataset(data, options=options).pictures] == list(names)


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: add_picture(data, "c", [("dog", 3, 2, 30, 20)]),
        lambda data: rewrite(data / "Annotations" / "a.xml", "<xmin>3<", "<xmin>4<"),
        lambda data: (data / "Annotations" / "b.xml").unlink(),
        lambda data: add_picture(data, "a", [("dog", 3, 2, 30, 20)], size=(50, 40)),
        lambda data: (data / "ImageSets" / "Main" / "some.txt").write_text("b\n"),
    ],
    ids=["a new picture", "another box", "an annotation less", "another size", "another list"],
)
def test_a_change_is_seen(kept, data, change):
    content(data), content(data, "some")
    change(data)
    now, some = content(data), content(data, "some")
    for file in kept.iterdir():
        file.unlink()
    assert (now, some) == (content(data), content(data, "some"))


def test_what_has_just_changed_is_not_kept(kept, data):
    os.utime(data / "Annotations" / "a.xml")
    content(data)
    assert not kept.exists()


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_a_damaged_file_is_read_anew(kept, data, reads, damage):
    first = content(data)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert content(data) == first
    assert len(reads) == 4
    assert file.read_bytes()[:2] == b"PK"


KILLED = """
import os, signal, sys
import numpy
from ssd.data import cache, open_dataset

cache.WORTH_KEEPING = 0.0
save = numpy.savez

def half(file, **arrays):
    save(file, **dict(list(arrays.items())[: len(arrays) // 2]))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

numpy.savez = half
open_dataset(sys.argv[1])
"""


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_counts(kept, data, reads):
    environment = {**os.environ, "PYTHONPATH": PATHS, "XDG_CACHE_HOME": str(kept.parent)}
    assert subprocess.run([sys.executable, "-c", KILLED, data], env=environment).returncode == -signal.SIGKILL
    (left,) = kept.iterdir()
    first = content(data)
    assert len(reads) == 2
    assert content(data) == first
    assert len(reads) == 2  # from the cache
    assert left.exists()  # it may be of a process that still writes
    os.utime(left, (LONG_AGO - cache.ABANDONED, LONG_AGO - cache.ABANDONED))
    content(data, "some")
    assert not left.exists()


def test_where_nothing_can_be_kept_all_is_read(kept, data, reads):
    kept.parent.write_text("a file in its place")
    assert content(data) == content(data)
    assert len(reads) == 4


def test_the_least_used_go_first(kept, data, monkeypatch):
    content(data)
    (old,) = kept.iterdir()
    os.utime(old, (LONG_AGO, LONG_AGO))
    monkeypatch.setattr(cache, "AT_MOST", old.stat().st_size)
    content(data, "some")
    assert old not in kept.iterdir()
    assert len(list(kept.iterdir())) == 1


def test_classes_of_the_other_formats_are_kept(kept, tmp_path, data, reads):
    root = tmp_path / "yolo"
    for folder, suffix, text in (("images", ".jpg", None), ("labels", ".txt", "1 0.5 0.5 0.5 0.5\n")):
        (root / folder).mkdir(parents=True)
        target = root / folder / f"a{suffix}"
        target.write_bytes((data / "JPEGImages" / "a.jpg").read_bytes() if text is None else text.encode())
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["x", "y"]}))
    age(root)
    assert content(root) == content(root)
    assert len(reads) == 1
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["x", "z"]}))
    assert content(root)[0] == ("x", "z")


def test_a_file_that_was_missing_is_a_change_too(kept, tmp_path):
    def cached(n, *sources):
        return cache.cached(["a"], lambda: {"x": np.arange(n)}, lambda arrays: sources)["x"].tolist()

    assert cached(2, str(tmp_path / "gone")) == [0, 1]
    assert cached(3) == [0, 1]
    (tmp_path / "gone").touch()
    assert cached(3) == [0, 1, 2]


def test_the_pixels_of_a_data_set_are_decoded_once(kept, data, monkeypatch):
    """To measure levels, and to leave out unreadable pictures, as long as the files do not change."""
    array = np.linspace(16, 916, 2400).astype(np.uint16).reshape(40, 60, 1)
    folder = data / "JPEGImages"
    (folder / "a.jpg").write_bytes(png(array))
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:700])
    age(data)
    options = ReadOptions(skip_unreadable=0.5)
    first = open_dataset(data, options=options)
    assert (first.levels, len(first)) == ((16, 916), 1)
    with monkeypatch.context() as patched:
        patched.setattr(annotations, "PictureFile", None)
        patched.setattr(pixels, "measure_levels", None)
        again = open_dataset(data, options=options)
        assert (again.levels, again.notes) == (first.levels, first.notes)
        with pytest.raises(ImageReadError, match=r"(?s)1 of 2 .*b\.jpg"):
            open_dataset(data, options=ReadOptions(skip_unreadable=0.4))
    assert len(open_dataset(data)) == 2  # without this option, no picture is decoded before it is used
    Image.new("RGB", (60, 40)).save(folder / "b.jpg")
    age(data)
    assert len(open_dataset(data, options=options)) == 2
    (folder / "a.jpg").write_bytes(png(array * 2))
    age(data)
    assert open_dataset(data, options=options).levels == (32, 1832)
