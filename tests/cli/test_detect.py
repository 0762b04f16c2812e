"""`ssd detect`: what it writes and says."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from deep_pictures import png, tiff
from detect_command import contents, detect, write_photos, write_untrained
from PIL import Image

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.inference.detections import Detections


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 4, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("weights") / "w.pt")


def test_detect_draws_writes_coco_and_skips_broken_pictures(shapes, weights, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    pictures = sorted((shapes / "JPEGImages").iterdir())
    (folder / "a.jpg").write_bytes(pictures[0].read_bytes())
    (folder / "deeper" / "a.jpg").write_bytes(pictures[1].read_bytes()[:-9])
    (folder / "cut.jpg").write_bytes(pictures[2].read_bytes()[:2000])
    (folder / "text.png").write_text("not a picture")
    (folder / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    assert detect(folder, pictures[3], "--min-score", "0.1", "--top-k", "5", weights=weights, out=out) == 1
    printed = capsys.readouterr()
    assert "cut.jpg" in printed.err
    assert "text.png" in printed.err
    assert "2 of 5 pictures could not be read" in printed.err
    assert f"lack their last bytes, and were used: 1, such as {folder / 'deeper' / 'a.jpg'}" in printed.err
    assert "pictures with as many objects as --top-k allows (5): 3; with a higher --min-score than 0.1" in printed.err

    coco = json.loads((out / "detections.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["circle", "square", "triangle"]
    assert [c["id"] for c in coco["categories"]] == [1, 2, 3]
    assert [image["file_name"] for image in coco["images"]] == [
        str(folder / "a.jpg"),
        str(folder / "deeper" / "a.jpg"),
        str(pictures[3]),
    ]
    assert len(coco["annotations"]) == 15
    assert [a["id"] for a in coco["annotations"]] == list(range(1, 16))
    for a in coco["annotations"]:
        width, height = (coco["images"][a["image_id"] - 1][k] for k in ("width", "height"))
        x, y, w, h = a["bbox"]
        assert 0 <= x <= x + w <= width + 0.01
        assert 0 <= y <= y + h <= height + 0.01
        assert a["area"] == pytest.approx(w * h, rel=0.01, abs=1)
        assert 0.1 < a["score"] <= 1
    drawn = {str(p.relative_to(out)) for p in out.rglob("*.png")}
    assert drawn == {"a.png", "deeper/a.png", f"{pictures[3].stem}.png"}
    with Image.open(out / "a.png") as picture, Image.open(folder / "a.jpg") as original:
        assert picture.size == original.size
    assert not list(out.rglob("*.tmp"))


def test_detect_without_any_broken_picture_succeeds(shapes, weights, tmp_path):
    picture = str(sorted((shapes / "JPEGImages").iterdir())[0])
    assert detect(picture, "--min-score", "0.99", weights=weights, out=tmp_path) == 0  # and nothing to find
    assert json.loads((tmp_path / "detections.json").read_text())["annotations"] == []


def test_detect_mistakes_are_named(shapes, weights, tmp_path, capsys):
    def error(*arguments, weights=weights):
        assert detect(*arguments, weights=weights, out=tmp_path / "out") == 2
        return capsys.readouterr().err

    picture = sorted((shapes / "JPEGImages").iterdir())[0]
    assert "none.jpg: no such file or folder" in error(tmp_path / "none.jpg")
    assert "none.pt: no such checkpoint" in error(picture, weights=tmp_path / "none.pt")
    assert "no pictures" in error(tmp_path)


def test_the_help_of_format_says_when_it_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["detect", "--help"])
    assert "the format of --save labels, which requires it" in " ".join(capsys.readouterr().out.split())


def test_what_is_saved_is_chosen_without_contradictions(shapes, weights, tmp_path, capsys):
    picture = sorted((shapes / "JPEGImages").iterdir())[0]

    def run(*options):
        return detect(picture, *options, weights=weights, out=tmp_path / "out")

    for options, error in (
        (["--save", "labels"], "--save labels needs --format yolo, voc or coco"),
        (["--format", "voc"], "--format is only for --save labels"),
        (["--save", "drawings", "--no-drawings"], "--save drawings and --no-drawings contradict each other"),
    ):
        assert run(*options) == 2
        assert error in capsys.readouterr().err
    for options, error in (
        (["--save", "labels,boxes"], "argument --save: no 'boxes'; choose from drawings, labels, crops"),
        (["--save", "labels", "--format", "webdataset"], "argument --format: invalid choice: 'webdataset'"),
    ):
        with pytest.raises(SystemExit):
            run(*options)
        assert error in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("--save", "labels, drawings", "--format", "yolo") == 0
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"detections.json", ".lock", "yolo", f"{picture.stem}.png"}
    assert detect(picture, "--no-drawings", "--save", "labels", "--format", "yolo", weights=weights, out=tmp_path) == 0
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture
def photos(shapes, tmp_path, monkeypatch):
    """A folder of pictures that belong to somebody, and the working folder."""
    folder = write_photos(tmp_path, shapes)
    monkeypatch.chdir(folder)
    return folder


def test_detect_without_drawings(photos, weights, capsys):
    """Nothing is drawn, so a picture is not in the way of its drawing."""
    before = contents(photos)
    assert detect(".", "--no-drawings", "--min-score", "0.1", "--workers", "1", weights=weights, out=".") == 0
    written = contents(photos)
    coco = json.loads(written.pop(photos / "detections.json"))
    assert written.pop(photos / ".lock") == b""
    assert written == before
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.jpg", "deeper/c.PNG"]
    assert {a["image_id"] for a in coco["annotations"]} == {1, 2, 3}
    assert detect("a.png", weights=weights, out="drawn") == 0
    drawn = json.loads((photos / "drawn" / "detections.json").read_text())
    assert all(a["image_id"] == 1 for a in drawn["annotations"])


def test_detect_bounds_top_k_by_the_candidates(photos, weights):
    assert detect("b.jpg", "--top-k", "1000000000", "--no-drawings", weights=weights, out="found") == 0
    assert len(json.loads((photos / "found" / "detections.json").read_text())["annotations"]) > 200


def test_names_that_no_terminal_should_see(photos, weights, monkeypatch, capsys):
    """Bytes that are no text, control characters, and what the encoding of stdout lacks: escaped where printed."""
    names = [b"latin-\xe9.png", b"\x1b[31mred\n.png", "彩.png".encode()]
    for name in names:
        (photos / os.fsdecode(name)).write_bytes((photos / "a.png").read_bytes())
    (photos / "cut-\x1b\udce9.png").write_text("not a picture")
    assert detect(".", weights=weights, out="found") == 1
    printed = capsys.readouterr()
    assert "\\x1b[31mred\\n.png: " in printed.out
    assert "latin-\\udce9.png: " in printed.out
    assert "彩.png: " in printed.out
    assert "skipped: cut-\\x1b\\udce9.png: cannot read" in printed.err
    listed = json.loads((photos / "found" / "detections.json").read_text())["images"]
    assert {os.fsencode(image["file_name"]) for image in listed} > set(names)
    assert {os.fsencode(drawing.name) for drawing in (photos / "found").iterdir()} > set(names)
    assert detect("gone\x1b.png", weights=weights, out="found") == 2
    assert "gone\\x1b.png: no such file" in capsys.readouterr().err

    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", narrow)
    assert detect("彩.png", weights=weights, out="narrow") == 0
    narrow.flush()
    assert b"\\u5f69.png: " in narrow.buffer.getvalue()


def test_a_picture_too_large_to_be_harmless_is_named(photos, weights, capsys):
    """A header of 40000 x 40000 pixels, which some megabytes of zeros in zlib's format would fill."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (photos / "bomb.png").write_bytes(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    assert detect(".", weights=weights, out="found") == 1
    printed = capsys.readouterr()
    assert "skipped: bomb.png: cannot read the picture (Image size (1600000000 pixels)" in printed.err
    assert "3 pictures" in printed.out


def test_a_picture_that_is_gone_before_it_is_drawn_is_left_out(photos, weights, monkeypatch, capsys):
    original = Detections.draw

    def draw(found):
        if found.picture.path.name == "b.jpg":
            found.picture.path.unlink()
        return original(found)

    monkeypatch.setattr(Detections, "draw", draw)
    assert detect(".", weights=weights, out="found") == 1
    assert "1 of 3 pictures could not be read" in capsys.readouterr().err
    listed = json.loads((photos / "found" / "detections.json").read_text())["images"]
    assert [image["file_name"] for image in listed] == ["a.png", "deeper/c.PNG"]


def test_bits_of_deep_pictures(weights, tmp_path, capsys):
    array = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64, 1)
    (tmp_path / "a.png").write_bytes(png(array))
    for bits, brightest in (("12", 255), ("13", 127)):
        assert detect(tmp_path / "a.png", "--bits", bits, "--min-score", "1", weights=weights, out=tmp_path / bits) == 0
        with Image.open(tmp_path / bits / "a.png") as drawing:
            assert np.asarray(drawing).max() == brightest
    arguments = [tmp_path / "a.png", "--bits", "13", "--min-score", "1", "--resume"]
    assert detect(*arguments, weights=weights, out=tmp_path / "12") == 2
    assert "bits" in capsys.readouterr().err
    (tmp_path / "f.tif").write_bytes(tiff(array.astype(np.float32)))
    assert detect(tmp_path / "f.tif", weights=weights, out=tmp_path / "f") == 1
    assert "--bits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        detect(tmp_path / "a.png", "--bits", "0", weights=weights, out=tmp_path / "0")
