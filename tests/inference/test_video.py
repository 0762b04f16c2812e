"""What is written for a video: which files, how the frames are encoded, and the lines of JSON."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import av, frames_of, pictures, write_clip
from PIL import Image

from ssd.data.video import Video
from ssd.drawing import MARK, save_png
from ssd.inference.detector import Detections
from ssd.inference.results import info_of
from ssd.inference.video import drawing_video, is_drawn_video, plan_outputs, to_line, writing_lines


def draw_all(path, times, size=(64, 48), frames=None, **attributes):
    """Writes pictures as a drawn video."""
    drawings = pictures(len(times), size) if frames is None else frames
    first = SimpleNamespace(width=size[0], height=size[1], aspect=None, **attributes)
    with drawing_video(path, first, 10) as video:
        for drawing, time in zip(drawings, times, strict=True):
            video.add(video.prepare(Image.fromarray(drawing), time))
        assert not path.exists()
    return drawings


def test_drawn_frames_keep_their_times_and_colours(tmp_path):
    times = [0, 0.1, 0.15, 1.5, 1.6, 4]
    drawings = draw_all(tmp_path / "a.mp4", times)
    found, frames = frames_of(tmp_path / "a.mp4")
    assert found == pytest.approx(times, abs=1e-5)
    for frame, drawing in zip(frames, drawings, strict=True):
        assert np.median(np.abs(frame.astype(int) - drawing)) <= 4  # a lossy codec
    assert is_drawn_video(tmp_path / "a.mp4")
    assert not list(tmp_path.glob("*.tmp"))


def test_colours_are_those_of_hd_video(tmp_path):
    """Players take the colours of a video for those of BT.709; with the matrix of BT.601, green is 15 off."""
    green = np.zeros((1, 48, 64, 3), np.uint8)
    green[..., 1] = 200
    draw_all(tmp_path / "a.mp4", [0], frames=green)
    with av.open(tmp_path / "a.mp4") as container:
        (frame,) = container.decode(video=0)
    assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited range
    luma = frame.to_ndarray()[:48].mean()
    assert luma == pytest.approx(16 + 219 * 0.7152 * 200 / 255, abs=1.5)


@pytest.mark.parametrize("size", [(127, 95), (64, 95), (127, 48)])
def test_odd_sides_are_padded(tmp_path, size):
    drawings = draw_all(tmp_path / "a.mp4", [0, 0.1], size)
    for frame, drawing in zip(frames_of(tmp_path / "a.mp4")[1], drawings, strict=True):
        width, height = size
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        assert np.median(np.abs(frame[:height, :width].astype(int) - drawing)) <= 4
        assert np.median(np.abs(frame[height - 1 :, width - 1 :].astype(int) - drawing[-1, -1])) <= 8


def test_frames_of_another_size_are_resized(tmp_path):
    drawings = [pictures(1)[0], pictures(1, (128, 96))[0]]
    draw_all(tmp_path / "a.mp4", [0, 0.1], frames=drawings)
    first, second = frames_of(tmp_path / "a.mp4")[1]
    assert first.shape == second.shape == (48, 64, 3)
    assert np.median(np.abs(first.astype(int) - second)) <= 4


def test_frames_at_almost_the_same_time_are_kept(tmp_path):
    draw_all(tmp_path / "a.mp4", [0, 1e-6, 2e-6, 0.1])
    times, _ = frames_of(tmp_path / "a.mp4")
    assert len(times) == 4
    assert (np.diff(times) > 0).all()


def test_pixels_that_are_not_square_stay_so(tmp_path):
    write_clip(tmp_path / "a.mkv", 1, aspect=(4, 3))
    (frame,) = Video(tmp_path / "a.mkv")
    with drawing_video(tmp_path / "b.mp4", frame, 10) as video:
        video.add(video.prepare(Image.fromarray(pictures(1)[0]), 0))
    (found,) = Video(tmp_path / "b.mp4")
    assert found.aspect == frame.aspect == pytest.approx(4 / 3)


def test_an_error_leaves_no_file(tmp_path):
    first = SimpleNamespace(width=64, height=48, aspect=None)
    with pytest.raises(ValueError, match="stopped"), drawing_video(tmp_path / "a.mp4", first, 10):
        raise ValueError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_lines_are_in_the_file_at_once(tmp_path):
    path = tmp_path / "deeper" / "a.jsonl"
    frame = SimpleNamespace(number=3, time=0.1 + 0.2, width=60, height=40)
    boxes = torch.tensor([[6.0, 4, 30.004, 24], [0, 0, 60, 40]])
    found = Detections(frame, boxes, torch.tensor([2, 1]), torch.tensor([0.9, 0.5]), ("dog", "cat"))
    with writing_lines(path, ("dog", "cat"), {"weights": "w.pt", "every": 1}) as lines:
        head = json.loads(path.read_text())
        lines.add(frame, found)
        first, second = path.read_text().splitlines()
        with pytest.raises(ValueError, match=r"a\.jsonl: another run is writing there; choose another file"):
            writing_lines(path, (), {}).__enter__()
    assert head["info"] == info_of(path) == {"description": MARK, "weights": "w.pt", "every": 1}
    assert head["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert json.loads(first) == head
    line = json.loads(second)
    assert line == to_line(frame, found)
    assert {key: line[key] for key in ("frame", "time", "width", "height")} == {
        "frame": 3,
        "time": 0.3,
        "width": 60,
        "height": 40,
    }
    dog, cat = line["objects"][1], line["objects"][0]
    assert dog == {
        "name": "dog",
        "category_id": 1,
        "bbox": [0, 0, 60, 40],
        "area": 2400,
        "iscrowd": 0,
        "score": 0.5,
    }
    assert cat["bbox"] == [6, 4, 24, 20]
    assert lines.objects == 2
    with writing_lines(path, ("dog",), {}):
        assert len(path.read_text().splitlines()) == 1  # replaced


def test_files_have_the_names_of_their_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Path("found")

    def names(*sources, out="found", **options):
        return [
            tuple(path and str(path) for path in files)
            for files in plan_outputs(sources, Path(out), **options).values()
        ]

    assert names("a.mp4", out="x/y.mp4") == [("x/y.jsonl", "x/y.mp4")]
    assert names("a.mp4", out="y.MP4", draw=False) == [("y.jsonl", None)]
    assert names("a.mp4", "b/A.mkv") == [("found/a.jsonl", "found/a.mp4"), ("found/A_2.jsonl", "found/A_2.mp4")]
    assert names("v1.2.mov") == [("found/v1.2.jsonl", "found/v1.2.mp4")]
    assert names("0") == [("found/camera0.jsonl", "found/camera0.mp4")]
    assert names("/dev/video2") == [("found/camera2.jsonl", "found/camera2.mp4")]
    assert names("rtsp://me:secret@host:1/yard?x=1") == [("found/yard.jsonl", "found/yard.mp4")]
    assert names("rtsp://me:secret@host:1") == [("found/host.jsonl", "found/host.mp4")]
    with pytest.raises(ValueError, match=r"found\.avi: videos are written as \.mp4"):
        names("a.mp4", out="found.avi")
    with pytest.raises(ValueError, match=r"found\.jsonl: videos are written as \.mp4"):
        names("a.mp4", out="found.jsonl")
    with pytest.raises(ValueError, match=r"found\.mp4: is one file for 2 videos"):
        names("a.mp4", "b.mp4", out="found.mp4")
    assert not found.exists()


def test_files_of_others_inputs_and_recordings_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "a.mp4", 1)
    (tmp_path / "b.jsonl").write_text("{}\n")
    draw_all(tmp_path / "drawn.mp4", [0])
    save_png(Image.new("RGB", (8, 8)), tmp_path / "c.mp4")
    for source, out, error in (
        ("a.mp4", "a.mp4", "is an input"),
        ("drawn.mp4", "drawn.mp4", "is an input"),
        ("drawn.mp4", "a.mp4", "did not write it"),
        ("a.mp4", "b.mp4", r"b\.jsonl: would be replaced, but `ssd detect` did not write it"),
        ("a.mp4", "c.mp4", "did not write it"),
        ("0", "drawn.mp4", "what was recorded from a camera or stream is not replaced"),
    ):
        with pytest.raises(FileExistsError, match=error):
            plan_outputs([source], Path(out))
    plan_outputs(["a.mp4"], Path("drawn.mp4"))
