"""Which pictures `ssd detect` takes, how it calls their drawings, and what it never replaces."""

import json
import os

import pytest
from detect_command import contents, detect

from ssd.data import ImageReadError
from ssd.data.folder import Folder
from ssd.inference.drawings import plan_drawings


def test_pictures_of_one_name_do_not_overwrite_each_other(shapes, weights, tmp_path):
    pictures = sorted((shapes / "JPEGImages").iterdir())[:3]
    for folder, picture in zip(("a", "b", "c"), pictures, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(picture.read_bytes())
    folders = [tmp_path / folder for folder in ("a", "b", "c")]
    assert detect(*folders, folders[0] / "x.jpg", weights=weights, out=tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"x.png", "x_2.png", "x_3.png", "detections.json", ".lock"}


@pytest.mark.parametrize(
    ("inputs", "out", "named"),
    [
        *[(["{}"], "{}", "a.png"), (["."], ".", "a.png"), (["."], "../link", "a.png"), (["a.png"], "{}", "a.png")],
        *[(["../link"], "deeper/..", "a.png"), (["deeper"], "deeper/../deeper", "c.png")],
        *[(["b.jpg"], "elsewhere", "b.png"), (["b.jpg"], "results", "detections.json"), (["b.jpg"], "a.png", "a.png")],
        *[(["b.jpg"], "linked", "b.png"), (["b.jpg"], "dangling", "b.png"), (["."], "blocked", "blocked/deeper")],
    ],
)
def test_detect_replaces_nothing_but_its_own(photos, weights, capsys, inputs, out, named):
    if named == "c.png":
        (photos / "deeper" / "c.PNG").rename(photos / "deeper" / "c.png")
    for folder in ("elsewhere", "results", "linked", "dangling", "blocked"):
        (photos.parent / folder).mkdir()
        (photos / folder).symlink_to(photos.parent / folder)
    (photos / "elsewhere" / "b.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "results" / "detections.json").write_text('{"annotations": []}')
    (photos / "linked" / "b.png").symlink_to(photos / "a.png")
    (photos / "dangling" / "b.png").symlink_to(photos / "gone.png")
    (photos / "blocked" / "deeper").write_text("a file where drawings want a folder")
    before = contents(photos.parent)
    assert detect(*(name.format(photos) for name in inputs), weights=weights, out=out.format(photos)) == 2
    assert named in capsys.readouterr().err
    assert contents(photos.parent) == before
    assert (photos / "linked" / "b.png").is_symlink()


def test_detect_again_replaces_its_drawings_and_does_not_take_them_for_pictures(photos, weights):
    (photos / "found").mkdir()
    (photos / "found" / "mine.png").write_bytes((photos / "a.png").read_bytes())
    drawn = [photos / "found" / name for name in ("a.png", "b.png", "deeper/c.png", "found/mine.png")]
    for threshold in ("0.1", "0.1", "0.99"):
        before = {p: p.read_bytes() for p in drawn if p.exists()}
        assert detect(".", "--min-score", threshold, weights=weights, out="found") == 0
        listed = json.loads((photos / "found" / "detections.json").read_text())["images"]
        assert [image["file_name"] for image in listed] == ["a.png", "b.jpg", "deeper/c.PNG", "found/mine.png"]
        assert set((photos / "found").rglob("*.png")) == {*drawn, photos / "found" / "mine.png"}
    assert all(p.read_bytes() != before[p] for p in drawn)  # with fewer boxes
    # a drawing that is named is a picture like others, so it is not replaced either
    assert detect("found/a.png", weights=weights, out="found") == 2
    assert detect("found/a.png", weights=weights, out="other") == 0


def test_a_folder_with_the_name_of_a_drawing(shapes, weights, tmp_path):
    picture = min((shapes / "JPEGImages").iterdir()).read_bytes()
    for name in ("z/A.png/b.jpg", "z/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    out = tmp_path / "out"
    for _ in range(2):
        assert detect(tmp_path / "z", weights=weights, out=out) == 0
        assert {str(p.relative_to(out)) for p in out.rglob("*.png") if p.is_file()} == {"a_2.png", "A.png/b.png"}


def test_pipes_are_named_and_never_waited_for(photos, weights, capsys):
    os.mkfifo(photos / "pipe.jpg")
    before = contents(photos)
    assert detect("a.png", "pipe.jpg", weights=weights, out="found") == 2
    assert "pipe.jpg: neither a file nor a folder" in capsys.readouterr().err
    assert contents(photos) == before
    assert detect(".", weights=weights, out="found") == 1
    printed = capsys.readouterr()
    assert "skipped: pipe.jpg: cannot read the picture (not a regular file)" in printed.err
    assert "3 pictures" in printed.out
    (photos / "other").mkdir()
    for name in ("a.png", "detections.json"):
        os.mkfifo(photos / "other" / name)
        assert detect("a.png", weights=weights, out="other") == 2
        assert f"{name}: would be replaced" in capsys.readouterr().err
        (photos / "other" / name).unlink()


def test_folders_that_cannot_be_searched_are_named(photos, weights, monkeypatch, capsys):
    scandir = os.scandir

    def denied(folder):
        if os.path.basename(folder) == "deeper":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    assert detect(".", weights=weights, out="found") == 1
    printed = capsys.readouterr()
    assert "skipped: [Errno 13] Permission denied: './deeper'" in printed.err
    assert "2 pictures" in printed.out
    assert detect("deeper", weights=weights, out="found") == 2
    printed = capsys.readouterr().err
    assert "Permission denied: 'deeper'" in printed
    assert "no pictures" in printed
    with pytest.raises(PermissionError):
        plan_drawings(["deeper"], photos / "out")


def test_pictures_that_cannot_be_read_here_are_counted_and_the_others_read(photos, weights, tmp_path, capsys):
    for name in ("x.dng", "deeper/y.DNG", "z.jxl.txt"):
        (photos / name).write_bytes(b"anything")
    assert detect(photos, weights=weights, out=tmp_path / "out") == 1
    output = capsys.readouterr()
    assert f"skipped: 2 pictures cannot be read here, such as {photos}/deeper/y.DNG: convert them" in output.err
    assert "3 pictures," in output.out
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "z.dng").write_bytes(b"anything")
    with pytest.raises(ImageReadError, match=r"only/z\.dng: .*convert it to JPEG"):
        plan_drawings([tmp_path / "only"], tmp_path / "out")
    assert detect(tmp_path / "only", weights=weights, out=tmp_path / "out") == 2
    assert "only/z.dng" in capsys.readouterr().err


def test_the_pictures_of_a_folder_are_those_that_training_would_read(photos, tmp_path):
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/a.png", "._a.png", ".a.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes((photos / "a.png").read_bytes())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    found = [path.relative_to(photos).as_posix() for path in plan_drawings([photos], tmp_path / "out")]
    assert found == ["a.png", "b.jpg", "deeper/c.PNG", "linked/d.png"] == sorted(Folder(photos).pictures)
