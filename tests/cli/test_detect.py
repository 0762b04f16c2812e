"""`ssd detect` and the detector behind it: what is found, and what is never replaced."""

import io
import json
import os
import signal
import struct
import zlib

import pytest
import torch
from PIL import Image

from ssd import load_weights
from ssd.cli import main
from ssd.data import ImageReadError, read_image
from ssd.data.augmentation import EvalTransform
from ssd.data.colour import to_input
from ssd.data.shapes import write_shapes
from ssd.inference import results
from ssd.inference.detector import Detections, Detector
from ssd.inference.drawings import plan_drawings
from ssd.networks.ssd300 import SSD300
from ssd.runtime.files import locked
from ssd.weights.checkpoint import save_checkpoint
from ssd_ext import DetectionOptions


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 4, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that never trained: its scores are all near 1 / 4, so it finds plenty."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    model = SSD300(4, width=0.01)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("pred_convs"):
                p.mul_(0.01)
    save_checkpoint(path, model, classes=["circle", "square", "triangle"])
    return path


def detect(*arguments, weights, out):
    return main(["detect", *map(str, arguments), "--weights", str(weights), "--out", str(out), "--device", "cpu"])


def test_detect_draws_writes_coco_and_skips_broken_pictures(shapes, weights, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    pictures = sorted((shapes / "JPEGImages").iterdir())
    (folder / "a.jpg").write_bytes(pictures[0].read_bytes())
    (folder / "deeper" / "a.jpg").write_bytes(pictures[1].read_bytes())
    (folder / "cut.jpg").write_bytes(pictures[2].read_bytes()[:-3000])
    (folder / "text.png").write_text("not a picture")
    (folder / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    assert detect(folder, pictures[3], "--min-score", "0.1", "--top-k", "5", weights=weights, out=out) == 1
    printed = capsys.readouterr()
    assert "cut.jpg" in printed.err
    assert "text.png" in printed.err
    assert "2 of 5 pictures could not be read" in printed.err

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


def test_pictures_of_one_name_do_not_overwrite_each_other(shapes, weights, tmp_path):
    pictures = sorted((shapes / "JPEGImages").iterdir())[:3]
    for folder, picture in zip(("a", "b", "c"), pictures, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(picture.read_bytes())
    folders = [tmp_path / folder for folder in ("a", "b", "c")]
    assert detect(*folders, folders[0] / "x.jpg", weights=weights, out=tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"x.png", "x_2.png", "x_3.png", "detections.json", ".lock"}


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def photos(shapes, tmp_path, monkeypatch):
    """A folder of pictures that belong to somebody, and the working folder."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name, picture in zip(
        ("a.png", "b.jpg", "deeper/c.PNG"), sorted((shapes / "JPEGImages").iterdir()), strict=False
    ):
        with Image.open(picture) as image:
            image.save(folder / name)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    return folder


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


def test_detector_gives_what_the_files_show(shapes, weights):
    detector = Detector(*load_weights(weights, device="cpu"), DetectionOptions(min_score=0.1, top_k=7), bf16=False)
    paths = [str(path) for path in sorted((shapes / "JPEGImages").iterdir())]
    every = list(detector(iter(paths), batch_size=3))
    assert [str(found.picture.path) for found in every] == paths
    for found in every:
        picture, boxes, labels, scores = found.picture, found.boxes, found.labels, found.scores
        assert torch.equal(picture.pixels(), read_image(picture.path))
        assert boxes.shape == (7, 4)
        assert boxes.min() >= 0
        assert (boxes <= 300).all()
        assert boxes.max() > 1
        assert sorted(scores.tolist(), reverse=True) == scores.tolist()
        assert set(labels.tolist()) <= {1, 2, 3}
        offsets, logits = detector.model(to_input(EvalTransform()(picture)[None]))
        (expected,), (expected_labels,), _ = detector.model.detect_objects(offsets, logits, 0.1, 0.45, 7)
        torch.testing.assert_close(boxes, expected.clamp(0, 1) * 300, rtol=1e-3, atol=0.05)  # other batches, other sums
        assert torch.equal(labels, expected_labels)


def test_boxes_are_in_the_pixels_of_a_picture_that_is_no_square(weights, tmp_path):
    Image.effect_noise((600, 150), 90).save(tmp_path / "wide.png")
    detector = Detector(*load_weights(weights, device="cpu"), DetectionOptions(min_score=0.1))
    found = detector(tmp_path / "wide.png")
    assert 500 < found.boxes[:, [0, 2]].max() <= 600
    assert 120 < found.boxes[:, [1, 3]].max() <= 150


def test_detector_leaves_out_what_cannot_be_read(shapes, weights, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    paths = [tmp_path / "text.png", *sorted((shapes / "JPEGImages").iterdir()), tmp_path / "gone.png"]
    detector, errors = Detector(*load_weights(weights, device="cpu")), []
    every = detector(iter(paths), batch_size=2, on_error=errors.append)
    assert [found.picture.path for found in every] == paths[1:-1]
    assert [type(error) for error in errors] == [ImageReadError, FileNotFoundError]
    with pytest.raises(ImageReadError, match=r"text\.png"):
        detector(paths)


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


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Seven pictures and a damaged one in the working folder, and what a run that is never stopped leaves of them."""
    monkeypatch.chdir(tmp_path)
    pictures = sorted((write_shapes(tmp_path / "shapes", 7, 0) / "JPEGImages").iterdir())
    (tmp_path / "in").mkdir()
    for i, picture in enumerate(pictures):
        picture.rename(tmp_path / "in" / f"{i}.jpg")
    (tmp_path / "in" / "3a.jpg").write_bytes((tmp_path / "in" / "3.jpg").read_bytes()[:2000])
    return tmp_path


HOW = ["in", "--min-score", "0.1", "--top-k", "9", "--batch-size", "2", "--workers", "1"]


def left_by(folder):
    """The files of a folder by their names."""
    return {str(path.relative_to(folder)): content for path, content in contents(folder).items()}


@pytest.fixture
def at_picture(monkeypatch):
    def at(number, action):
        """Does something before the results of this picture are added, counted from 1."""
        original, calls = results.Results.add, []

        def add(self, found):
            calls.append(found.picture.path.name)
            if len(calls) == number:
                action()
            original(self, found)

        monkeypatch.setattr(results.Results, "add", add)
        return calls

    return at


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("action", "kept"),
    [
        (lambda: signal.raise_signal(signal.SIGTERM), 4),  # ends the batch
        (lambda: signal.raise_signal(signal.SIGINT), 4),
        (lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)), 2),  # ends at once
    ],
)
def test_a_stopped_detection_goes_on(many, weights, at_picture, capsys, action, kept):
    assert detect(*HOW, weights=weights, out="whole") == 1
    at_picture(3, action)
    assert detect(*HOW, weights=weights, out="found") == 130
    if kept == 4:
        assert "stopped after 4 of 8 pictures; to go on: the same command with --resume" in capsys.readouterr().out
    stopped = left_by(many / "found")
    assert stopped["detections.0.jsonl"].count(b"\n") == 1 + kept
    assert "detections.json" not in stopped
    for other, error in (
        ([], f"found: holds unfinished results of {kept} pictures; continue with --resume"),
        (["--resume", "--top-k", "8"], "detections.0.jsonl: was made with top_k 9, and this run has 8"),
    ):
        assert detect(*HOW, *other, weights=weights, out="found") == 2
        assert error in capsys.readouterr().err
        assert left_by(many / "found") == stopped
    added = at_picture(0, None)
    assert detect(*HOW, "--resume", weights=weights, out="found") == 1
    assert len(added) == 7 - kept
    printed = capsys.readouterr()
    assert f"resuming: {kept} of 8 pictures are done already" in printed.err
    assert "1 of 8 pictures could not be read" in printed.err
    assert left_by(many / "found") == left_by(many / "whole")


def test_what_a_kill_has_cut_is_done_again(many, weights, at_picture):
    """And what several processes have left is put together, whoever of them it was."""
    assert detect(*HOW, weights=weights, out="whole") == 1
    at_picture(6, interrupt)
    assert detect(*HOW, weights=weights, out="found") == 130
    part = many / "found" / "detections.0.jsonl"
    head, *lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(head + lines[4] + lines[1][:-1])  # cut before the line's end
    (many / "found" / "detections.12.jsonl").write_bytes(head + lines[3] + lines[0] + lines[2][:20])
    for name in (".detections.json.123.tmp", ".5.png.123.tmp"):
        (many / "found" / name).write_text("left by a kill")
    added = at_picture(0, None)
    assert detect(*HOW, "--resume", weights=weights, out="found") == 1
    assert added == ["1.jpg", "2.jpg", "5.jpg", "6.jpg"]
    assert left_by(many / "found") == left_by(many / "whole")


def test_a_full_disk_ends_detection_and_it_goes_on(many, weights, at_picture, capsys):
    resource = pytest.importorskip("resource")
    assert detect(*HOW, "--no-drawings", weights=weights, out="whole") == 1
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_picture(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4500, limits[1])))
    try:
        assert detect(*HOW, "--no-drawings", weights=weights, out="found") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed, part = capsys.readouterr(), (many / "found" / "detections.0.jsonl").read_bytes()
    assert "File too large: 'found/detections.0.jsonl'" in printed.err
    assert not part.endswith(b"\n")
    assert printed.out.count(".jpg: ") == part.count(b"\n") - 1  # what was announced is there
    assert detect(*HOW, "--no-drawings", "--resume", weights=weights, out="found") == 1
    assert left_by(many / "found") == left_by(many / "whole")


def test_pictures_that_are_added_later_are_done_alone(many, weights, at_picture, capsys):
    """Also where one takes the name that the drawing of another had."""
    (many / "in" / "3a.jpg").unlink()
    (many / "later").mkdir()
    for name in ("0", "4", "6"):
        (many / "in" / f"{name}.jpg").rename(many / "later" / f"{name}.jpg")
    assert detect(*HOW, "--resume", weights=weights, out="found") == 0
    assert not list((many / "found").glob("*.jsonl"))
    (many / "later" / "4.jpg").rename(many / "in" / "2.gif")  # before 2.jpg, which was drawn as 2.png
    (many / "later" / "6.jpg").rename(many / "in" / "6.jpg")
    added = at_picture(0, None)
    assert detect(*HOW, "--resume", weights=weights, out="found") == 0
    assert added == ["2.gif", "2.jpg", "6.jpg"]
    assert detect(*HOW, weights=weights, out="whole") == 0
    assert left_by(many / "found") == left_by(many / "whole")

    before = left_by(many / "found")
    assert detect("later", "in/1.jpg", "--resume", *HOW[1:], weights=weights, out="found") == 2
    assert "holds results of 5 pictures that this run does not name, such as in/2.gif" in capsys.readouterr().err
    (many / "in").rename(many / "moved")
    assert detect("moved", "--resume", *HOW[1:], weights=weights, out="found") == 2
    assert "holds results of 6 pictures that this run does not name, such as in/1.jpg" in capsys.readouterr().err
    assert left_by(many / "found") == before
    (many / "moved").rename(many / "in")
    (many / "in" / "5.jpg").rename(many / "5.jpg")
    assert detect(*HOW, "--resume", weights=weights, out="found") == 0
    assert "results left out, as their pictures no longer exist: 1, such as in/5.jpg" in capsys.readouterr().err
    assert len(json.loads((many / "found" / "detections.json").read_text())["images"]) == 5
    assert json.loads(before["detections.json"])["images"][3]["drawing"] == "3.png"


def test_detection_without_resume_begins_anew(photos, weights, at_picture, capsys):
    """Older results are there until the new ones are whole, and another run cannot come between."""
    assert detect(".", weights=weights, out="found") == 0
    before = contents(photos)
    at_picture(2, interrupt)
    assert detect(".", "--no-drawings", "--top-k", "1", weights=weights, out="found") == 130
    part = photos / "found" / "detections.0.jsonl"
    assert contents(photos) == before | {part: part.read_bytes()}
    with locked(photos / "found"):
        assert detect(".", "--resume", weights=weights, out="found") == 2
    assert "another run is writing there" in capsys.readouterr().err
    part.write_text("of somebody else")
    assert detect(".", "--resume", weights=weights, out="found") == 2
    assert "detections.0.jsonl: would be replaced, and is not of `ssd detect`" in capsys.readouterr().err


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


def test_a_folder_with_the_name_of_a_drawing(shapes, weights, tmp_path):
    picture = min((shapes / "JPEGImages").iterdir()).read_bytes()
    for name in ("z/A.png/b.jpg", "z/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    out = tmp_path / "out"
    for _ in range(2):
        assert detect(tmp_path / "z", weights=weights, out=out) == 0
        assert {str(p.relative_to(out)) for p in out.rglob("*.png") if p.is_file()} == {"a_2.png", "A.png/b.png"}


def test_a_network_with_nan_writes_strict_json(photos, weights, tmp_path):
    model, classes = load_weights(weights, device="cpu")
    with torch.no_grad():
        for name, parameter in model.pred_convs.named_parameters():
            if name.startswith("loc_") and name.endswith("bias"):
                parameter[2] = torch.nan  # the width of the first box of each cell
    save_checkpoint(tmp_path / "nan.pt", model, classes)
    assert detect(".", "--min-score", "0.1", weights=tmp_path / "nan.pt", out="found") == 0
    text = (photos / "found" / "detections.json").read_text()
    assert len(json.loads(text, parse_constant=pytest.fail)["annotations"]) > 0
    with pytest.raises(ValueError, match="not JSON compliant"), results.coco_results(tmp_path, classes) as rows:
        rows.annotations.add(score=float("nan"))


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
