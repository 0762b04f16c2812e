"""`ssd detect` on videos and streams: what it writes and says, and what is left of a run that was stopped."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from clips import cut, frames_of, set_matrix, streaming, write_clip
from detect_command import detect, write_untrained
from own_process import PATHS

from ssd import Detector
from ssd.data import Video, video
from ssd.drawing import draw_detections
from ssd.inference import results
from ssd.inference.video import FrameLines, is_drawn_video

FEW = ["--top-k", "5", "--min-score", "0.1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("weights") / "w.pt")


def lines_of(path):
    """The first line of a file of JSON lines, and the others. Each must be whole."""
    text = path.read_text()
    assert text.endswith("\n")
    first, *others = map(json.loads, text.splitlines())
    return first, others


def test_each_frame_has_a_line_and_a_drawing(weights, tmp_path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 12, sound=True)
    assert detect(clip, *FEW, weights=weights, out=tmp_path / "found.mp4") == 0
    assert f"12 frames, 60 objects: {tmp_path}/found.jsonl, {tmp_path}/found.mp4" in capsys.readouterr().out
    first, others = lines_of(tmp_path / "found.jsonl")
    assert [c["name"] for c in first["categories"]] == ["circle", "square", "triangle"]
    assert first["info"]["video"] == str(clip)
    assert first["info"]["top_k"] == 5
    assert first["info"]["weights"].startswith("w.pt (")
    assert "started" not in first["info"]
    detector = Detector.load(weights, device="cpu", top_k=5, min_score=0.1)
    frames = list(Video(clip))
    for n, (line, found) in enumerate(zip(others, detector(frames), strict=True)):
        assert (line["frame"], line["width"], line["height"]) == (n, 64, 48)
        assert line["time"] == pytest.approx(n / 10)
        assert [{k: v for k, v in row.items() if k != "name"} for row in line["objects"]] == results.rows_of(found)
        assert [row["name"] for row in line["objects"]] == [one.name for one in found]
    times, drawings = frames_of(tmp_path / "found.mp4")
    assert times == pytest.approx([i / 10 for i in range(12)])
    for drawing, found in zip(drawings, detector(frames), strict=True):
        expected = np.asarray(found.draw()).astype(int)
        assert np.median(np.abs(drawing - expected)) <= 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "found.jsonl", "found.mp4"]


def test_turned_frames_of_odd_size_are_upright_in_all_results(weights, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 2, (128, 96))
    set_matrix(clip, 0, 1, -1, 0)
    odd = write_clip(tmp_path / "b.mkv", 2, (95, 127), codec="ffv1", pix_fmt="yuv444p")
    assert detect(clip, odd, *FEW, weights=weights, out=tmp_path / "found") == 0
    for name, size in (("a", (96, 128)), ("b", (95, 127))):
        _, lines = lines_of(tmp_path / "found" / f"{name}.jsonl")
        assert {(line["width"], line["height"]) for line in lines} == {size}
        _, drawings = frames_of(tmp_path / "found" / f"{name}.mp4")
        assert drawings[0].shape == (128, 96, 3)
    detector = Detector.load(weights, device="cpu", top_k=5, min_score=0.1)
    expected = np.asarray(detector(next(iter(Video(clip)))).draw()).astype(int)
    assert np.median(np.abs(frames_of(tmp_path / "found" / "a.mp4")[1][0] - expected)) <= 6


def test_several_videos_go_into_a_folder_and_results_are_replaced(weights, tmp_path):
    clips = [write_clip(tmp_path / name, 3) for name in ("a.mp4", "b.mkv")]
    for expected in (False, True):
        assert (tmp_path / "found" / "a.mp4").exists() == expected
        assert detect(*clips, *FEW, weights=weights, out=tmp_path / "found") == 0
    names = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert names == ["a.jsonl", "a.mp4", "b.jsonl", "b.mp4"]
    assert detect(clips[0], *FEW, "--no-drawings", weights=weights, out=tmp_path / "lines") == 0
    assert [path.name for path in (tmp_path / "lines").iterdir()] == ["a.jsonl"]


def test_every_nth_frame_and_no_more_than_so_many(weights, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", 30)
    drawn = []
    original = FrameLines.add
    monkeypatch.setattr(
        FrameLines, "add", lambda self, frame, found: drawn.append(found) or original(self, frame, found)
    )
    options = ["--every", "4", "--max-frames", "18", "--batch-size", "3"]
    assert detect(clip, *FEW, *options, weights=weights, out=tmp_path / "found.mp4") == 0
    assert [line["frame"] for line in lines_of(tmp_path / "found.jsonl")[1]] == [0, 4, 8, 12, 16]
    times, drawings = frames_of(tmp_path / "found.mp4")
    assert times == pytest.approx([i / 10 for i in range(18)])
    # The frames between have the boxes of the last one before them.
    for n, frame in enumerate(Video(clip)):
        if n < 18:
            its = drawn[n // 4]
            drawing = draw_detections(frame.pixels(), its.boxes, its.labels, its.scores, classes=its.classes)
            expected = np.asarray(drawing).astype(int)
            assert np.median(np.abs(drawings[n].astype(int) - expected)) <= 6


def test_classes_and_thresholds_apply(weights, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 3)
    (tmp_path / "t.json").write_text('{"circle": 0.2}')
    options = ["--only", "circle", "--thresholds", tmp_path / "t.json", "--min-score", "0.3"]
    assert detect(clip, *options, weights=weights, out=tmp_path / "found.mp4") == 0
    first, others = lines_of(tmp_path / "found.jsonl")
    assert json.loads(first["info"]["thresholds"]) == {"circle": 0.2}
    assert {row["name"] for line in others for row in line["objects"]} == {"circle"}


def test_what_can_be_read_of_a_cut_video_is_kept(weights, tmp_path, capsys):
    broken = cut(write_clip(tmp_path / "cut.mp4", 60, movflags="faststart"), 0.6)
    (tmp_path / "text.mp4").write_text("no video")
    empty = write_clip(tmp_path / "empty.avi", 0, codec="mpeg4")
    whole = write_clip(tmp_path / "whole.mp4", 3)
    paths = [broken, tmp_path / "text.mp4", empty, tmp_path / "none.mp4", whole]
    assert detect(*paths, *FEW, weights=weights, out=tmp_path / "found") == 1
    said = capsys.readouterr().err
    assert "cut.mp4: ends after" in said
    assert "skipped: " + str(tmp_path / "text.mp4") + ": cannot be read as a video" in said
    assert "skipped: " + str(empty) + ": has no frames that can be decoded" in said
    assert "none.mp4: no such file" in said
    names = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert names == ["cut.jsonl", "cut.mp4", "whole.jsonl", "whole.mp4"]
    frames = len(list(Video(broken)))
    assert len(lines_of(tmp_path / "found" / "cut.jsonl")[1]) == frames > 10
    assert len(frames_of(tmp_path / "found" / "cut.mp4")[0]) == frames


def test_mistakes_are_named(weights, tmp_path, capsys, monkeypatch):
    clip, picture = write_clip(tmp_path / "a.mp4", 1), tmp_path / "a.png"
    picture.write_bytes(b"")

    def error(*arguments, out="found"):
        assert detect(*arguments, weights=weights, out=tmp_path / out) == 2
        return capsys.readouterr().err

    assert "a.png: pictures and videos have different results" in error(clip, picture)
    assert "a.mp4: videos are written as .mp4" not in error(clip, picture)
    for options, named in (
        (["--save", "labels", "--format", "yolo"], "--save labels is for pictures"),
        (["--save", "crops,drawings"], "--save crops is for pictures"),
        (["--format", "yolo"], "--format is for pictures"),
        (["--resume"], "--resume is for pictures"),
        (["--bits", "12"], "--bits is for pictures"),
        (["--save", "drawings", "--no-drawings"], "--save drawings and --no-drawings contradict each other"),
    ):
        assert named in error(clip, *options)
    for options in (["--every", "2"], ["--max-frames", "3"], ["--timeout", "1"], ["--retries", "0"]):
        assert f"{options[0]} is for videos" in error(picture, *options)
    assert "must be the only PATH" in error(clip, "rtsp://me:secret@host/x")
    assert "is one file for 2 videos" in error(clip, tmp_path / "b.mp4", out="x.mp4")
    assert "is an input" in error(clip, out="a.mp4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in error(clip)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'ssd-ext[video]'" in error(clip)
    assert not (tmp_path / "found").exists()


def test_a_camera_that_is_not_there(weights, tmp_path, capsys):
    assert detect("97", weights=weights, out=tmp_path / "found") == 1
    assert "skipped: camera 97: cannot be read as a video (/dev/video97: No such file" in capsys.readouterr().err


@pytest.fixture
def stream(tmp_path):
    return write_clip(tmp_path / "a.ts", 40, codec="mpeg4").read_bytes()


def test_a_stream_that_stalls_keeps_its_frames_and_is_retried(weights, tmp_path, stream, capsys, monkeypatch):
    monkeypatch.setattr(video, "PAUSE", 0.01)
    half, options = stream[: len(stream) // 2], [*FEW, "--timeout", "0.5"]
    with streaming((half, "stall")) as url:
        assert detect(url.replace("//", "//me:secret@"), *options, weights=weights, out=tmp_path / "one") == 1
    said = capsys.readouterr()
    assert f"{url}: no data for 0.5 seconds; with --retries, it is opened again" in said.err
    assert "secret" not in said.err + said.out + (tmp_path / "one" / "live.jsonl").read_text()
    first, before = lines_of(tmp_path / "one" / "live.jsonl")
    assert before
    assert first["info"]["started"].endswith("+00:00")
    assert len(frames_of(tmp_path / "one" / "live.mp4")[0]) == len(before)

    with streaming((half, "stall"), (stream, "end")) as url:
        assert detect(url, *options, "--retries", "1", weights=weights, out=tmp_path / "two.mp4") == 1
    assert "(attempt 1 of 1)" in capsys.readouterr().err
    _, lines = lines_of(tmp_path / "two.jsonl")
    assert lines[-1]["frame"] > 40  # frames of both connections, though some may be skipped
    assert (np.diff([line["time"] for line in lines]) > 0).all()
    # What was recorded is not replaced.
    with streaming((stream, "end")) as url:
        assert detect(url, *options, weights=weights, out=tmp_path / "two.mp4") == 2
    assert "is not replaced" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_live_stream_with_whole_files(weights, tmp_path, stream, number, monkeypatch):
    """While the stream stalls, and long before its timeout."""
    original, added = FrameLines.add, []

    def add(self, frame, found):
        original(self, frame, found)
        if not added:
            threading.Timer(0.3, os.kill, [os.getpid(), number]).start()
        added.append(frame.number)

    monkeypatch.setattr(FrameLines, "add", add)
    with streaming((stream[: len(stream) // 2], "stall")) as url:
        assert detect(url, *FEW, "--timeout", "3", weights=weights, out=tmp_path / "found.mp4") == 0
    assert len(lines_of(tmp_path / "found.jsonl")[1]) == len(added) > 0
    assert len(frames_of(tmp_path / "found.mp4")[0]) == len(added)


def test_a_signal_stops_a_file_with_whole_files(weights, tmp_path, monkeypatch, capsys):
    original = FrameLines.add

    def add(self, frame, found):
        original(self, frame, found)
        if frame.number == 10:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FrameLines, "add", add)
    clips = [write_clip(tmp_path / f"{name}.mp4", 100) for name in "ab"]
    assert detect(*clips, *FEW, "--batch-size", "4", weights=weights, out=tmp_path / "found") == 130
    assert "stopped" in capsys.readouterr().out
    _, lines = lines_of(tmp_path / "found" / "a.jsonl")
    assert 11 <= len(lines) < 40
    assert len(frames_of(tmp_path / "found" / "a.mp4")[0]) == len(lines)
    assert not (tmp_path / "found" / "b.jsonl").exists()


KILLED = """
import os, signal, sys
from ssd.cli import main
from ssd.inference.video import DrawnVideo
original, done = DrawnVideo.add, []
def add(self, frame):
    original(self, frame)
    done.append(frame)
    if len(done) == 70:
        os.kill(os.getpid(), signal.SIGKILL)
DrawnVideo.add = add
main(sys.argv[1:])
"""


def test_a_kill_leaves_whole_lines_and_a_video_that_can_be_opened(weights, tmp_path):
    clip, out = write_clip(tmp_path / "a.mp4", 100), tmp_path / "found.mp4"
    arguments = ["detect", clip, *FEW, "--weights", weights, "--out", out, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL
    _, lines = lines_of(tmp_path / "found.jsonl")
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= 70
    assert not out.exists()
    (left,) = tmp_path.glob(".found.mp4.*.tmp")
    assert 30 <= len(frames_of(left)[0]) <= 70  # all but the last seconds
    assert detect(clip, *FEW, weights=weights, out=out) == 0
    assert is_drawn_video(out)
    assert not left.exists()
    assert len(lines_of(tmp_path / "found.jsonl")[1]) == 100


def test_memory_is_bounded(weights, tmp_path, monkeypatch):
    """No more frames are alive than batches and threads hold, however many are between two with a search."""
    alive, most, lock = set(), [], threading.Lock()
    original = video.Frame

    class Counted(original):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with lock:
                alive.add(id(self))
                most.append(len(alive))

        def __del__(self):
            with lock:
                alive.discard(id(self))

    monkeypatch.setattr(video, "Frame", Counted)
    clip = write_clip(tmp_path / "a.mp4", 100)
    options = ["--every", "50", "--batch-size", "4", "--workers", "2"]
    assert detect(clip, *FEW, *options, weights=weights, out=tmp_path / "found.mp4") == 0
    assert len(most) == 100
    # Three batches, of which one waits, one is searched and one is replaced; and a few frames that are drawn.
    assert max(most) <= 20
