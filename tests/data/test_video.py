"""Frames of files and streams: which there are, how they are turned, when they are shown, and what breaks."""

import sys
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import add_silence, av, cut, frames_of, pictures, set_matrix, streaming, write_clip

from ssd.data import Video, VideoReadError, video
from ssd.data.reading import as_picture
from ssd.data.video import is_video, without_password


def test_each_frame_has_its_number_time_and_pixels(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 12, sound=True)
    clip = Video(path)
    assert (clip.name, clip.live, clip.total, clip.rate) == (str(path), False, 12, 10)
    frames = list(clip)
    times, expected = frames_of(path)
    assert [frame.number for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx(times)
    assert times == pytest.approx([i / 10 for i in range(12)])
    for frame, array in zip(frames, expected, strict=True):
        assert (frame.height, frame.width) == (48, 64)
        assert np.array_equal(frame.pixels().permute(1, 2, 0).numpy(), array)
    assert clip.faults == []


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts", "mov"])
def test_containers(tmp_path, suffix):
    path = write_clip(tmp_path / f"a.{suffix}", 12, codec="mpeg4")
    frames = list(clip := Video(path))
    assert len(frames) == clip.total == 12
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(12)])
    assert clip.faults == []


def test_times_are_those_of_the_file(tmp_path):
    times = [0, 0.1, 0.15, 1.5, 1.6, 4]
    path = write_clip(tmp_path / "a.mp4", 6, times=times)
    assert [frame.time for frame in Video(path)] == pytest.approx(times)
    later = write_clip(tmp_path / "b.mkv", 6, times=[5 + time for time in times])
    assert [frame.time for frame in Video(later)] == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (-1, 0, 0, -1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, 1, -1, 0),
        (0, -1, -1, 0),
        (0, -1, 1, 0),
    ],
)
def test_frames_are_upright(tmp_path, matrix):
    path = write_clip(tmp_path / "a.mp4", 1)
    (stored,) = frames_of(path)[1]
    set_matrix(path, *matrix)
    (frame,) = Video(path)
    a, b, c, d = matrix
    y, x = np.indices((48, 64))
    column, row = a * x + c * y, b * x + d * y
    upright = np.zeros((np.ptp(row) + 1, np.ptp(column) + 1, 3), np.uint8)
    upright[row - row.min(), column - column.min()] = stored
    assert (frame.height, frame.width) == upright.shape[:2]
    assert np.array_equal(frame.pixels().permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "gray"), ("ffv1", "yuv420p10le"), ("libx264", "yuv444p")])
def test_grey_and_deep_frames_become_rgb(tmp_path, codec, pix_fmt):
    path = write_clip(tmp_path / "a.mkv", 2, codec=codec, pix_fmt=pix_fmt)
    for frame, picture in zip(Video(path), pictures(2), strict=True):
        pixels = frame.pixels().permute(1, 2, 0).numpy().astype(int)
        if pix_fmt == "gray":
            picture = np.repeat(picture @ np.array([0.299, 0.587, 0.114])[:, None], 3, axis=2)  # BT.601
        # The median, since colours of half the resolution change pixels at edges.
        assert np.median(np.abs(pixels - picture)) <= 3


def test_what_is_cut_is_read_up_to_there(tmp_path):
    for name, movflags in (("a.mp4", "faststart"), ("a.mkv", "")):
        path = cut(write_clip(tmp_path / name, 60, movflags=movflags), 0.6)
        frames = list(clip := Video(path))
        assert 10 < len(frames) < 50
        assert f"{path}: ends after " in clip.faults[0]
        assert "of 6.0 seconds; the file may be cut or damaged" in clip.faults[0]
    whole = cut(write_clip(tmp_path / "b.mp4", 60), 0.6)  # without the index, which is at the end
    with pytest.raises(VideoReadError, match=r"b\.mp4: cannot be read as a video \(Invalid data"):
        Video(whole)


def test_damaged_frames_are_counted_and_the_others_read(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 60, movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 4 + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 600] = bytes(600)
    path.write_bytes(content)
    frames = list(clip := Video(path))
    assert len(frames) > 30
    assert "damaged frames, which are missing or wrong" in clip.faults[-1]


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoReadError, match=r"text\.mp4: cannot be read as a video"):
        Video(tmp_path / "text.mp4")
    with av.open(tmp_path / "sound.mkv", "w") as sound:
        add_silence(sound)
    with pytest.raises(VideoReadError, match=r"sound\.mkv: has no video, only audio"):
        Video(tmp_path / "sound.mkv")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such file"):
        Video(tmp_path / "none.mp4")
    with pytest.raises(VideoReadError, match="camera 97: cannot be read as a video"):
        Video(97)
    with pytest.raises(VideoReadError, match=r"rtsp://127\.0\.0\.1:1/x: cannot be read as a video") as refused:
        Video("rtsp://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(refused.value)


def test_a_video_without_frames_is_an_error(tmp_path):
    path = write_clip(tmp_path / "a.avi", 0, codec="mpeg4")
    with pytest.raises(VideoReadError, match=r"a\.avi: has no frames that can be decoded"):
        list(Video(path))


def test_without_pyav_the_error_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"need PyAV .*: pip install 'ssd-ext\[video\]'"):
        Video(tmp_path / "a.mp4")


def test_sources_are_known_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    videos = [
        "a.mp4",
        "a.MOV",
        "0",
        "12",
        "/dev/video0",
        "rtsp://host/stream",
        "HTTP://host/a",
        "https://host/a.m3u8?b=1",
    ]
    others = ["a.jpg", "7", "folder.mp4", "folder", "1.png", "http://host/a.jpg", "s3://host/a.mp4x", "a.gif"]
    assert [is_video(name) for name in videos] == [True] * len(videos)
    assert [is_video(name) for name in others] == [False] * len(others)


def test_passwords_are_removed():
    assert without_password("rtsp://me:pass/word@host:1/x@y") == "rtsp://me:pass/word@host:1/x@y"  # no valid URL
    assert without_password("rtsp://me:secret@host:1/x@y") == "rtsp://host:1/x@y"
    assert without_password("a@b.mp4") == "a@b.mp4"


@pytest.fixture
def stream(tmp_path):
    return write_clip(tmp_path / "a.ts", 40).read_bytes()


def collect(clip, frames):
    """Adds frames to a list, which has those before an error."""
    for frame in clip:
        frames.append(frame)


def test_a_stream_that_stalls_is_named(stream, tmp_path):
    with streaming((stream[: len(stream) // 2], "stall")) as url:
        live, frames = Video(url, timeout=0.5), []
        assert live.live
        with pytest.raises(VideoReadError, match=rf"{url}: no data for 0\.5 seconds"):
            collect(live, frames)
    (tmp_path / "half.ts").write_bytes(stream[: len(stream) // 2])
    # All before the stall, also those that the decoder held; less the last one, whose end is not known.
    assert len(frames) in (len(half := frames_of(tmp_path / "half.ts")[0]), len(half) - 1)


def test_a_stream_that_stalls_or_ends_is_opened_again(stream, monkeypatch):
    monkeypatch.setattr(video, "PAUSE", 0.01)
    half, said = stream[: len(stream) // 2], []
    with streaming((half, "stall"), (b"", "break"), (stream, "end")) as url:
        live = Video(url, timeout=0.5, retries=2, on_retry=said.append)
        frames = []
        with pytest.raises(VideoReadError, match=rf"{url}: cannot be read as a video"):
            collect(live, frames)
    assert 40 < len(frames) < 80
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert "no data for 0.5 seconds; opening it again in 0.01 seconds (attempt 1 of 2)" in said[0]
    assert "(attempt 2 of 2)" in said[1]
    assert ": ended; opening it again in 0.01 seconds (attempt 1 of 2)" in said[2]  # counted anew
    assert (np.diff([frame.time for frame in frames]) > 0).all()


def test_times_of_a_live_source_go_on_with_the_clock(monkeypatch):
    """The source counts from 7 seconds, and after a break from 3. Then it has frames without a time, or an old one."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(video, "monotonic", lambda: clock.now)
    times, unit = video._Times(live=True, interval=0.04), Fraction(1, 100)

    def of(pts):
        return times.of(SimpleNamespace(pts=pts, duration=4), unit)

    assert [of(700), of(704), of(720)] == pytest.approx([0, 0.04, 0.2])
    times.start_again()
    clock.now = 105.5
    assert [of(300), of(310), of(None), of(310)] == pytest.approx([5.5, 5.6, 5.64, 5.68])
    times.start_again()
    clock.now = 105.6  # the frames came faster than the clock
    assert [of(0), of(10)] == pytest.approx([5.72, 5.82])
    assert times.end == pytest.approx(5.86)


@pytest.mark.parametrize("end", ["end", "close"])
def test_a_live_stream_ends_without_retries(stream, end):
    with streaming((stream, end)) as url:
        assert len(list(Video(url))) == 40


def test_a_file_at_a_url_goes_on_after_its_last_frame(tmp_path, monkeypatch):
    """The server closes the first connection in the middle of the file."""
    monkeypatch.setattr(video, "PAUSE", 0.01)
    path = write_clip(tmp_path / "a.mp4", 60, movflags="faststart")
    content, said = path.read_bytes(), []
    with streaming((content[: len(content) // 2], "break"), (content, "end")) as url:
        clip = Video(url, retries=1, on_retry=said.append)
        frames = list(clip)
    assert not clip.live
    assert len(said) == 1
    times, expected = frames_of(path)
    assert [frame.time for frame in frames] == pytest.approx(times)
    assert all(np.array_equal(f.pixels().permute(1, 2, 0).numpy(), e) for f, e in zip(frames, expected, strict=True))


def test_closing_ends_a_pause(stream, monkeypatch):
    monkeypatch.setattr(video, "PAUSE", 1000.0)
    monkeypatch.setattr(video, "LONGEST_PAUSE", 1000.0)
    paused = threading.Event()
    with streaming((stream, "end")) as url:
        live = Video(url, retries=1, on_retry=lambda _: paused.set())
        thread = threading.Thread(target=lambda: [None for _ in live], daemon=True)
        thread.start()
        assert paused.wait(30)
        time.sleep(0.05)
        live.close()
        thread.join(30)
        assert not thread.is_alive()


def test_a_closed_video_gives_no_frames_and_a_second_reading_is_an_error(tmp_path):
    clip = Video(write_clip(tmp_path / "a.mp4", 2))
    clip.close()
    with pytest.raises(AssertionError, match="not open"):  # of PyAV: the file is not open any more
        next(clip._container.demux())
    assert list(clip) == []
    clip = Video(tmp_path / "a.mp4")
    assert len(list(clip)) == 2
    with pytest.raises(VideoReadError, match=r"a\.mp4: its frames were read already: open it again"):
        list(clip)


def test_a_frame_of_pyav_is_a_picture(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 1)
    set_matrix(path, 0, 1, -1, 0)
    with av.open(path) as container:
        picture = as_picture(next(container.decode(video=0)))
    (frame,) = Video(path)
    assert (picture.height, picture.width) == (64, 48)
    assert torch.equal(picture.pixels(), frame.pixels())
