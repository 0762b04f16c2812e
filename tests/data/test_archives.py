"""Archives are read as the folder that they would be unpacked to, from the disk and by HTTP."""

import io
import json
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
import torch
from annotation_files import DEEP_FOREST, createml, cvat, draw, label_studio, labelme, table, via, write
from http_server import serving
from PIL import Image
from small_datasets import PICTURES, as_coco, as_yolo, cut

from ssd.data import ImageReadError, list_splits, open_dataset
from ssd.data.archives import folders_of
from ssd.data.augmentation import EvalTransform
from ssd.data.conversion import convert_dataset
from ssd.data.findings import in_two_splits, summary
from ssd.data.loader import eval_loader, train_loader
from ssd.data.members import Member
from ssd.options import ReadOptions
from ssd.runtime import remote
from ssd.runtime.remote import PartError

pytestmark = pytest.mark.usefixtures("one_thread")


def packed(folder, archive, names=None):
    """Writes the files of a folder into an archive, in the order of their paths or in the given one."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for name in names or sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()):
            tar.add(folder / name, name)
    return archive


def assert_same_samples(ours, reference, names=True):
    assert (len(ours), ours.classes) == (len(reference), reference.classes)
    for (image, target), (its, truth) in zip(ours, reference, strict=True):
        assert torch.equal(image, its)
        assert all(torch.equal(target[key], truth[key]) for key in truth)
    if names:
        assert [path.name for path in ours.pictures] == [path.name for path in reference.pictures]


@pytest.fixture(scope="module")
def coco(voc, tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    as_coco(voc, root, "coco")
    return root


@pytest.fixture
def shards(coco, tmp_path):
    """COCO's pictures in archives of WebDataset, each picture of "train" in one of its own."""
    convert_dataset([coco], tmp_path / "shards", "webdataset")
    train = tmp_path / "shards" / "train-000000.tar"
    with tarfile.open(train) as tar:
        tar.extractall(tmp_path / "unpacked")
    train.unlink()
    for i, name in enumerate(PICTURES["train"]):
        packed(tmp_path / "unpacked", train.with_name(f"train-{i:06}.tar"), [f"{name}.jpg", f"{name}.json"])
    return tmp_path / "shards"


@pytest.fixture
def server(shards):
    with serving(shards) as server:
        yield server


def test_archives_have_the_samples_of_the_folder(coco, shards, server):
    for place in (shards, server.url, f"{server.url}/{{train-{{000000..000002}},val-000000}}.tar"):
        assert list_splits(place) == ["train", "val"]
        for split in ("train", "val"):
            classes = open_dataset(coco).classes
            assert_same_samples(open_dataset(place, split, classes), open_dataset(coco, split, classes))
    assert open_dataset(server.url).classes == open_dataset(coco).classes  # in the order of COCO's ids
    assert summary(open_dataset(server.url)) == (
        "4 pictures in train-000000.tar, train-000001.tar, train-000002.tar and 1 more, with annotations in the format "
        "of WebDataset beside them; 3 classes, 4 objects"
    )


@pytest.mark.parametrize(
    "files",
    [
        {"a.json": labelme("a.jpg"), "b.json": labelme("b.jpg")},
        {"via.json": via(["a.jpg", "b.jpg"])},
        {"export.json": label_studio(["a.jpg", "b.jpg"])},
        {"annotations.xml": cvat(["a.jpg", "b.jpg"])},
        {"_annotations.createml.json": createml(["a.jpg", "b.jpg"])},
        {"labels.csv": table(["a.jpg", "b.jpg"], *DEEP_FOREST)},
    ],
)
def test_formats(files, tmp_path):
    for i, name in enumerate("ab"):
        draw(tmp_path / "set" / f"{name}.jpg", (60 + i, 40))
    for name, content in files.items():
        write(tmp_path / "set" / name, content)
    archive = packed(tmp_path / "set", tmp_path / "set.tar")
    ours, reference = open_dataset(archive), open_dataset(tmp_path / "set")
    assert type(ours) is type(reference)
    assert_same_samples(ours, reference)


def test_voc_and_coco_as_they_are_published(voc, coco, tmp_path):
    for root in (voc, coco):
        archive = packed(root, tmp_path / f"{root.name}.tar")
        assert list_splits(archive) == ["train", "val"]
        for split in ("train", "val"):
            assert_same_samples(open_dataset(archive, split), open_dataset(root, split))


def test_the_order_is_that_of_the_archives_and_of_their_files(shards, tmp_path):
    names = [f"{name}.{suffix}" for name in "cab" for suffix in ("json", "jpg")]
    packed(shards.parent / "unpacked", tmp_path / "one.tar", names)
    assert [path.stem for path in open_dataset(tmp_path / "one.tar").pictures] == ["c", "a", "b"]
    order = [shards / f"train-{i:06}.tar" for i in (2, 0, 1)]
    assert [path.stem for path in open_dataset(order).pictures] == ["c", "a", "b"]
    assert len(folders_of(order)) == 1  # archives of one data set are one folder, and searched at the same time
    assert len(folders_of([order[0], shards.parent / "unpacked", *order[1:]])) == 3


def test_a_name_that_is_there_twice(shards, tmp_path):
    """In two archives these are two pictures; in one archive the last one counts, as if it was unpacked."""
    for part in ("x", "y"):
        shutil.copy(shards / "train-000000.tar", tmp_path / f"{part}.tar")
    assert len(open_dataset([tmp_path / "x.tar", tmp_path / "y.tar"])) == 2
    draw(tmp_path / "a.jpg", (60, 40))
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    dataset = open_dataset(tmp_path / "x.tar")
    assert len(dataset) == 1
    assert dataset.pictures[0].read_bytes() == (tmp_path / "a.jpg").read_bytes()


def test_links_in_an_archive(coco, tmp_path):
    """GNU tar stores the second name of a file as a hard link."""
    convert_dataset([coco], tmp_path / "set", "coco")
    (tmp_path / "set" / "more").mkdir()
    for split in ("train", "val"):
        for path in (tmp_path / "set" / "images" / split).iterdir():
            os.link(path, tmp_path / "set" / "more" / f"{split}_{path.name}")
            path.rename(path.with_name(f"{path.stem}_.jpg"))
            path.symlink_to(f"{path.stem}_.jpg")
    archive = packed(tmp_path / "set", tmp_path / "set.tar")
    with tarfile.open(archive) as tar:
        kinds = {info.type for info in tar}
    assert {tarfile.LNKTYPE, tarfile.SYMTYPE} <= kinds
    assert_same_samples(open_dataset(archive), open_dataset(coco))


def test_hidden_files_and_links_that_lead_out_are_left_out(shards, tmp_path):
    archive = shutil.copy(shards / "train-000000.tar", tmp_path / "a.tar")
    with tarfile.open(archive, "a") as tar:
        for name in ("._a.jpg", "__MACOSX/b.jpg", ".hidden/c.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"junk"))
        link = tarfile.TarInfo("d.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    dataset = open_dataset(archive)
    assert (len(dataset), dataset.n_unlabelled) == (1, 0)


def test_pictures_without_annotation(shards, tmp_path):
    draw(tmp_path / "z.jpg")
    archive = shutil.copy(shards / "train-000000.tar", tmp_path / "a.tar")
    with tarfile.open(archive, "a") as tar:
        tar.add(tmp_path / "z.jpg", "z.jpg")
    assert len(open_dataset(archive)) == 1
    assert open_dataset(archive).n_unlabelled == 1
    assert len(open_dataset(archive, options=ReadOptions(unlabelled="background"))) == 2


def test_a_damaged_picture_is_named(shards, tmp_path):
    with tarfile.open(shards / "train-000000.tar") as tar:
        tar.extractall(tmp_path)
    cut(tmp_path / "a.jpg", 0.3)
    archive = packed(tmp_path, tmp_path / "b.tar", ["a.jpg", "a.json"])
    with pytest.raises(ImageReadError, match=r"b\.tar/a\.jpg: cannot decode the picture"):
        open_dataset(archive)[0]
    (tmp_path / "a.jpg").write_bytes(b"junk")
    packed(tmp_path, archive, ["a.jpg", "a.json"])
    with pytest.raises(ImageReadError, match=r"b\.tar/a\.jpg: cannot read the picture .*file '/.*/b\.tar/a\.jpg'\)"):
        open_dataset(archive)
    with tarfile.open(archive, "a") as tar:
        tar.add(shards.parent / "unpacked" / "b.jpg", "b.jpg")
        tar.add(shards.parent / "unpacked" / "b.json", "b.json")
    assert len(open_dataset(archive, options=ReadOptions(skip_unreadable=0.5))) == 1


def test_broken_archives(shards, tmp_path):
    whole = (shards / "train-000000.tar").read_bytes()
    with tarfile.open(tmp_path / "compressed.tar", "w:gz") as tar:
        tar.add(shards.parent / "unpacked" / "a.jpg", "a.jpg")
    (tmp_path / "short.tar").write_bytes(whole[:2000])
    (tmp_path / "text.tar").write_text("hello" * 1000)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "unfinished.tar").write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    for name, message in {
        "compressed": "is compressed, so no picture can be read without all before it; write it without compression",
        "short": "is no tar archive, or damaged",
        "unfinished": r"is no tar archive, or damaged \(the blocks of zeros at its end are missing",
        "text": "is no tar archive, or damaged",
        "empty": "is no tar archive, or damaged",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}\.tar: {message}"):
            open_dataset(tmp_path / f"{name}.tar")
    with pytest.raises(FileNotFoundError, match=r"nothing\.tar: no such file"):
        open_dataset(tmp_path / "nothing.tar")
    with pytest.raises(FileNotFoundError, match=r'\*\.tar: no such file \(patterns with "\*" work without quotes\)'):
        open_dataset(tmp_path / "*.tar")
    shutil.copy(tmp_path / "compressed.tar", shards / "train-000001.tar.gz")  # is not left out without a word
    for place in (shards, shards / "train-000001.tar.gz", "https://host/a.tgz?key=1"):
        with pytest.raises(ValueError, match=r"(000001\.tar\.gz|a\.tgz\?key=1): is compressed, so no picture"):
            open_dataset(place)
    with pytest.raises(FileNotFoundError, match=r"train-3\.tar: no such file"):
        open_dataset(tmp_path / "train-{3..5}.tar")
    packed(shards.parent / "unpacked", tmp_path / "pictures.tar", ["a.jpg", "b.jpg"])
    with pytest.raises(FileNotFoundError, match=r"2 pictures, but no annotations were found [(]2 [.]jpg at the top[)]"):
        open_dataset(tmp_path / "pictures.tar")


def test_yolo_is_refused(voc, tmp_path):
    as_yolo(voc, tmp_path / "yolo", "yolo")
    with pytest.raises(ValueError, match="YOLO's layout is not read in archives; unpack them"):
        open_dataset(packed(tmp_path / "yolo", tmp_path / "yolo.tar"))


def test_a_folder_of_pictures_may_have_an_archive_too(voc, tmp_path):
    root = shutil.copytree(voc, tmp_path / "voc")
    packed(voc, root / "original.tar")
    assert open_dataset(root).pictures[0].is_file()
    assert not isinstance(open_dataset(root).pictures[0], Member)


def test_archives_become_a_folder_again(coco, shards, tmp_path):
    convert_dataset([shards], tmp_path / "again", "coco")
    assert_same_samples(open_dataset(tmp_path / "again"), open_dataset(coco))
    with pytest.raises(ValueError, match="pictures in archives cannot be links: leave out --link"):
        convert_dataset([coco], tmp_path / "linked", "webdataset", link=True)
    assert not (tmp_path / "linked").exists()


def test_copies_in_two_splits_are_found(shards, tmp_path):
    """All pictures of the data set have the same bytes, but two that are drawn have others."""
    draw(tmp_path / "x.jpg", (60, 41))
    draw(tmp_path / "y.jpg", (60, 41))
    (tmp_path / "y.jpg").write_bytes((tmp_path / "y.jpg").read_bytes()[:-3] + b"abc")  # of the same size
    train = packed(tmp_path, tmp_path / "train.tar", ["x.jpg"])
    val = packed(tmp_path, tmp_path / "val.tar", ["y.jpg"])

    def found(*archives):
        roots = {path.stem: [folders_of(path)[0]] for path in archives}
        pictures = {name: [f.root / path for f in its for path in f.pictures] for name, its in roots.items()}
        return list(in_two_splits(pictures))

    assert not found(train, val)
    assert len(found(train, packed(tmp_path, tmp_path / "more" / "val.tar", ["y.jpg", "x.jpg"]))) == 1
    pictures = {split: open_dataset(shards, split).pictures for split in ("train", "val")}
    assert len(list(in_two_splits(pictures))) == 1


@pytest.mark.usefixtures("kept")
def test_a_remote_archive_is_searched_once(server, shards):
    url = f"{server.url}/train-000000.tar"
    first = open_dataset(url)
    before = server.requests
    assert_same_samples(open_dataset(url), first)
    assert server.requests - before <= 8  # whether the archive has changed, and the picture for both
    content = json.loads((shards.parent / "unpacked" / "a.json").read_text())
    content["annotations"] = content["annotations"][:1]
    (shards.parent / "unpacked" / "a.json").write_text(json.dumps(content))
    packed(shards.parent / "unpacked", shards / "train-000000.tar", ["a.jpg", "a.json"])
    os.utime(shards / "train-000000.tar", (1, 1))
    assert len(open_dataset(url)[0][1]["labels"]) == 1


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Everything is cached, however fast it was read and however young it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ssd.data.cache.WORTH_KEEPING", 0.0)
    monkeypatch.setattr("ssd.data.cache.YOUNG", -1e9)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_a_batch_are_read_at_the_same_time(shards, tmp_path, workers):
    names = "abcdefgh"
    for name in names:
        draw(tmp_path / f"{name}.jpg", (60, 40))
        write(tmp_path / f"{name}.json", {"annotations": [{"bbox": [0, 0, 9, 9], "label": "x"}]})
    packed(tmp_path, tmp_path / "served" / "all.tar", [f"{n}.{s}" for n in names for s in ("jpg", "json")])
    with serving(tmp_path / "served") as server:
        ours = open_dataset(f"{server.url}/all.tar", transform=EvalTransform(32))
        server.barrier = threading.Barrier(len(names))  # each request waits until all have come
        for loader in (eval_loader(ours, 8, workers), train_loader(ours, 8, 0, range(2), workers)):
            for batch in loader:
                assert len(batch.images) == 8
                server.barrier.reset()
    local = open_dataset(tmp_path / "served" / "all.tar", transform=EvalTransform(32))
    (reference,) = eval_loader(local, 8, 0)
    assert len(reference.images) == 8


def test_a_server_that_fails_for_a_moment(server, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    server.failing = 2
    dataset = open_dataset(f"{server.url}/val-000000.tar")
    server.failing = 2
    assert len(dataset[0][1]["labels"]) == 1
    server.failing = 3
    with pytest.raises(PartError, match=r"val-000000\.tar: cannot be read \(503"):
        dataset[0]
    server.failing = 3  # and one more: it is read ahead first, where an error is no error yet
    loader = iter(eval_loader(dataset.view(EvalTransform(32)), 8, 0))
    assert len(next(loader).images) == 1
    server.failing = 4
    with pytest.raises(PartError, match=r"val-000000\.tar: cannot be read \(503"):
        next(iter(eval_loader(dataset.view(EvalTransform(32)), 8, 0)))


def test_addresses_that_cannot_be_read(server, shards, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"/nothing\.tar: no such file"):
        open_dataset(f"{server.url}/nothing.tar")
    (shards / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"/empty/: no \.tar files; name them, as in train-\{000000"):
        open_dataset(f"{server.url}/empty/")
    assert len(open_dataset(f"{server.url}/val-000000.tar?token=abc")) == 1
    monkeypatch.setattr(remote, "WAITS", ())
    for place in ("http://127.0.0.1:9/a.tar", "http://127.0.0.1:9/set/"):
        with pytest.raises(PartError, match=r"127\.0\.0\.1:9/.*: cannot be read \(Cannot connect to host"):
            open_dataset(place)
    server.ranges = False
    dataset = open_dataset(f"{server.url}/val-000000.tar")  # is so small that it is read at once
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    packed(tmp_path, shards / "large.tar", ["noise.png", "noise.png"])
    for read in (lambda: dataset[0], lambda: open_dataset(f"{server.url}/large.tar")):
        with pytest.raises(PartError, match="the server cannot give parts of a file; copy the file to this machine"):
            read()
    with pytest.raises(ImportError, match=r"s3://bucket/a\.tar: cannot be opened here: Install s3fs"):
        open_dataset("s3://bucket/a.tar")
