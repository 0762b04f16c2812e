"""Reads the frames of video files, cameras and streams: upright, as RGB, with their times."""

from __future__ import annotations

import errno
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from os import PathLike
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from ssd.data.picture_formats import TURNS, is_picture
from ssd.data.reading import TURNED, Picture

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"),
)
URL = re.compile(r"(rtsps?|rtmps?|https?|udp|rtp|srt|tcp)://", re.IGNORECASE)
CAMERA = re.compile(r"\d+|/dev/video\d+", re.ASCII)
RATE = 30  # frames per second of sources that do not tell it
PAUSE = 1.0  # seconds before the first attempt to open a source again, doubled for each further one
LONGEST_PAUSE = 30.0
TOLERANCE = 1.0  # seconds by which a file may be shorter than its header says: not all frames have a duration
# For each matrix [[a, b], [c, d]] of a video, which maps (x, y) to (a x + c y, b x + d y), the EXIF orientation that
# says the same. ISO/IEC 14496-12, section 8.3.2.
ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


class VideoReadError(ValueError):
    """A video, camera or stream cannot be opened, or no longer gives frames.

    Examples:
        >>> from pathlib import Path
        >>> from ssd.data import Video
        >>> _ = Path("clip.mp4").write_bytes(b"no video")
        >>> Video("clip.mp4")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ssd.data.video.VideoReadError: clip.mp4: ...
    """


def load_av() -> ModuleType:
    """Imports PyAV.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(f"videos and cameras need PyAV ({error}): pip install 'ssd-ext[video]'") from None
    module: ModuleType = av
    return module


def open_container(place: str | PathLike[str], **options: Any) -> Any:  # a container; its streams have many types
    """Opens a file or a URL with PyAV, with the options of `av.open`; metadata that is not UTF-8 is no error."""
    av = load_av()
    if int(av.__version__.split(".")[0]) < 19:  # since then, it always replaces what is not UTF-8
        options["metadata_errors"] = "replace"
    return av.open(place, **options)


def is_video(source: str | PathLike[str]) -> bool:
    """Tells by its name whether this is a video file, a camera (see `Video`), or the URL of a video or stream.

    A file or folder whose name is a number is no camera, and the URL of a picture is no stream.
    """
    name = os.fspath(source)
    if URL.match(name):
        return not is_picture(urlsplit(name).path)
    if CAMERA.fullmatch(name):
        return name.startswith("/") or not os.path.exists(name)
    return os.path.splitext(name)[1].lower() in SUFFIXES and not os.path.isdir(name)


def is_device(source: str) -> bool:
    """Tells by its name whether this is a camera or a URL, and not a file."""
    return bool(URL.match(source) or CAMERA.fullmatch(source))


def without_password(source: str) -> str:
    """Removes the name of a user and the password from a URL, so that they are not printed or stored."""
    return re.sub(r"(?<=://)[^/]*@", "", source) if URL.match(source) else source


def upright_rgb(frame: VideoFrame) -> np.ndarray:
    """Converts a frame of PyAV to RGB. Grey frames and frames with more than 8 bits are converted too.

    Args:
        frame: the frame. If it has a display matrix that turns or mirrors it, this is applied. Turns by other angles
            than 90, 180 and 270 degrees are not.

    Returns:
        (H, W, 3) uint8.
    """
    return np.ascontiguousarray(TURNS.get(_orientation(frame), np.asarray)(frame.to_ndarray(format="rgb24")))


def _orientation(frame: VideoFrame) -> int:
    """The EXIF orientation of a frame."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    a, b, _, c, d = np.sign(np.frombuffer(matrix, np.int32)[:5]).tolist()
    return ORIENTATIONS.get((a, b, c, d), 1)


class Frame(Picture):
    """A frame of a video. It is converted to RGB when its pixels are first needed.

    Attributes:
        number: position in its source, from 0.
        time: seconds since the first frame.
        aspect: width of a pixel divided by its height; None if unknown.
    """

    def __init__(self, frame: VideoFrame, number: int, time: float, aspect: Fraction | None = None) -> None:
        self.number, self.time = number, time
        turned = _orientation(frame) in TURNED
        self.height, self.width = (frame.width, frame.height) if turned else (frame.height, frame.width)
        self.aspect = 1 / aspect if aspect and turned else aspect
        self._frame = frame

    @cached_property
    def _rgb(self) -> Tensor:
        return torch.from_numpy(upright_rgb(self._frame)).permute(2, 0, 1)

    def _decode(self, reduction: int) -> Tensor:
        return self._rgb


class Video:
    """A video file, a camera or a stream. Iterating over it gives a `Frame` for each frame, once.

    A camera or a stream that cannot be opened, breaks, or sends nothing for `timeout` seconds is opened again if
    `retries` allows it; a live stream also when it ends. The times of a live source then go on with the clock, and a
    video at a URL goes on after its last frame. Files are not opened again.

    Args:
        source: path of a file; number of a camera, from 0, or on Linux its path such as /dev/video0; or a URL.
        timeout: seconds, more than 0; for URLs.
        retries: number of attempts to open the source again. Each frame makes all of them available again.
        on_retry: called before each of these attempts with a message that says why.

    Attributes:
        name: the source without a password.
        live: whether it is a camera, or a URL whose video has no known duration.
        total: number of frames, which may be an estimate; None if unknown.
        rate: frames per second on average, 30 if unknown.
        faults: once all frames were read, a line for each thing that is wrong with a file, such as damaged frames.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: there is no such file.
        VideoReadError: the source cannot be opened, or has no video. Iterating raises it if the source breaks, if it
            has no frames, or if they were read already.

    Examples:
        >>> from PIL import Image
        >>> from ssd.data import Video
        >>> first, *others = (Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue"))
        >>> first.save("clip.gif", save_all=True, append_images=others, duration=100)
        >>> video = Video("clip.gif")
        >>> video.total, video.rate, video.live
        (3, 10.0, False)
        >>> [(frame.number, round(frame.time, 1), frame.width, frame.height) for frame in video]
        [(0, 0.0, 60, 40), (1, 0.1, 60, 40), (2, 0.2, 60, 40)]
    """

    def __init__(
        self,
        source: str | int | PathLike[str],
        *,
        timeout: float = 10.0,
        retries: int = 0,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._av = load_av()
        self._source = str(source) if isinstance(source, int) else os.fspath(source)
        self._timeout, self._retries, self._on_retry = timeout, retries, on_retry
        camera = CAMERA.fullmatch(self._source)
        self.name = f"camera {self._source}" if camera else without_password(self._source)
        if not is_device(self._source) and not os.path.isfile(self._source):
            raise FileNotFoundError(f"{self.name}: no such file")
        self._closed = threading.Event()  # also ends a pause between two attempts
        self._begun = False  # whether an iteration has begun, which closes the container
        self._attempts = 0
        self.faults: list[str] = []
        self._container, self._stream = self._connect()
        self._length, self._sure = _length(self._container, self._stream)
        self.live = is_device(self._source) and self._length is None
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or RATE)
        self.total: int | None = self._stream.frames or (round(self._length * self.rate) if self._length else None)

    def close(self) -> None:
        """Ends the frames, also if another thread reads them: after the next one, or after `timeout`."""
        self._closed.set()
        if not self._begun:
            self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        if self._begun:
            raise VideoReadError(f"{self.name}: its frames were read already: open it again")
        self._begun = True
        if self._closed.is_set():
            return
        number, damaged, times = 0, 0, _Times(self.live, 1 / self.rate)
        while True:
            broken = ""
            try:
                unit = _fraction(self._stream.time_base)
                for frame in self._decoded():
                    if self._closed.is_set():
                        return
                    if frame is None or frame.is_corrupt:
                        damaged += 1
                    if frame is not None and (time := times.of(frame, unit)) is not None:
                        self._attempts = 0
                        yield Frame(frame, number, time, _fraction(self._stream.sample_aspect_ratio))
                        number += 1
            except self._av.FFmpegError as error:
                if not self._may_be_the_end(error):
                    broken = self._reason(error, "breaks off")
            finally:
                self._container.close()
            if not broken and self._sure and self._length and times.end + TOLERANCE < self._length:
                broken = f"ends after {times.end:.1f} of {self._length:.1f} seconds"
            if not is_device(self._source) or not (broken or (self.live and self._retries)):
                break
            try:
                self._container, self._stream = self._connect(broken or "ended")
            except VideoReadError:
                if self._closed.is_set():
                    return
                raise
            times.start_again()
        if not number:
            raise VideoReadError(f"{self.name}: {broken or 'has no frames that can be decoded'}")
        if broken:
            self.faults.append(f"{self.name}: {broken}; the file may be cut or damaged")
        if damaged and not self.live:  # a live stream often begins in the middle of a group of frames
            self.faults.append(f"{self.name}: {damaged} damaged frames, which are missing or wrong")

    def _connect(self, broken: str = "") -> tuple[InputContainer, VideoStream]:
        """Opens the source; if that fails, or if it broke for this reason, as often as `retries` allows."""
        while True:
            if not broken:
                try:
                    return self._open()
                except self._av.FFmpegError as error:
                    broken = self._reason(error, "cannot be read as a video")
            if self._attempts >= self._retries or not is_device(self._source):
                raise VideoReadError(f"{self.name}: {broken}")
            pause = min(PAUSE * 2**self._attempts, LONGEST_PAUSE)
            self._attempts += 1
            if self._on_retry:
                attempt = f"attempt {self._attempts} of {self._retries}"
                self._on_retry(f"{self.name}: {broken}; opening it again in {pause:g} seconds ({attempt})")
            if self._closed.wait(pause):
                raise VideoReadError(f"{self.name}: {broken}")
            broken = ""

    def _open(self) -> tuple[InputContainer, VideoStream]:
        place, options = self._source, {}
        kind = None
        if CAMERA.fullmatch(place):
            kind, place = _camera(place)
        elif place.lower().startswith("rtsp"):
            options["rtsp_flags"] = "prefer_tcp"  # without it, lost packets of UDP damage frames
        # Only reading from a network can be ended by a timeout.
        timeout = self._timeout if URL.match(place) else None
        container = open_container(place, format=kind, options=options, timeout=timeout)
        stream = container.streams.best("video")
        if stream is None:
            kinds = ", ".join(each.type for each in container.streams)
            only = f", only {kinds}" if kinds else ""
            container.close()
            raise VideoReadError(f"{self.name}: has no video{only}")
        if not is_device(self._source):
            stream.thread_type = "AUTO"  # decodes several frames at once, which would delay those of a live source
        return container, stream

    def _decoded(self) -> Iterator[VideoFrame | None]:
        """Decodes all frames; None: one that is too damaged. If reading fails, raises after the frames before it."""
        packets, broken = self._container.demux(self._stream), None
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._av.FFmpegError as error:
                broken = error
                break
            try:
                yield from self._stream.decode(packet)
            except self._av.FFmpegError:
                yield None
        with suppress(self._av.FFmpegError):
            yield from self._stream.decode(None)  # frames that the decoder still holds
        raise broken

    def _may_be_the_end(self, error: Any) -> bool:  # an FFmpegError of a package that may be missing
        """Whether FFmpeg reports this also at the end of the source.

        It does for HTTP streams without a size: FFmpeg 8 if the server ends them by closing the connection, FFmpeg 9
        if it ends them by their last chunk.
        """
        http, size = self._source.lower().startswith("http"), self._container.size
        return error.errno == errno.EIO and http and (size is None or size < 0)

    def _reason(self, error: Any, what: str) -> str:  # an FFmpegError of a package that may be missing
        if isinstance(error, self._av.error.ExitError):
            return f"no data for {self._timeout:g} seconds"
        # The file of a camera says which one was meant; a URL may have a password.
        place = f"{error.filename}: " if CAMERA.fullmatch(self._source) and error.filename else ""
        return f"{what} ({place}{error.strerror})"


class _Times:
    """Computes the time of each frame: seconds since the first one, each later than the one before.

    Args:
        live: see `Video`.
        interval: seconds between two frames, for frames that have no valid time.
    """

    def __init__(self, live: bool, interval: float) -> None:
        self._live, self._interval = live, interval
        self._origin: float | None = None  # the frame's own time at which ours is 0
        self._began: float | None = None  # the clock's time at which ours was 0
        self._seen = self.end = -math.inf
        self._last: float | None = None

    def start_again(self) -> None:
        """Continues after the source was opened again."""
        if self._live:
            self._origin = None
        elif self._last is not None:
            self._seen = self._last

    def of(self, frame: VideoFrame, unit: Fraction | None) -> float | None:
        """The time of the next frame; None if it was read before the source was opened again.

        Args:
            frame: the frame. Those that a decoder still held at the end of a file do not know their unit.
            unit: seconds per unit of its times.
        """
        time, now = None, monotonic()
        if self._began is None:
            self._began = now
        unit = unit or Fraction(0)
        if frame.pts is not None:
            own = float(frame.pts * unit)
            if self._origin is None:
                earliest = 0.0 if self._last is None else self._last + self._interval
                self._origin = own - max(now - self._began, earliest)
            time = own - self._origin
            if time <= self._seen:
                return None
        if self._last is None:
            time = 0.0
        elif time is None or time <= self._last:
            time = self._last + self._interval
        self._last = time
        self.end = time + (float(frame.duration * unit) if frame.duration else self._interval)
        return time


def _fraction(value: Any) -> Fraction | None:  # a Fraction, or from PyAV 19 on an AVRational
    """A number of PyAV as a Fraction; None if it is unknown."""
    return Fraction(value.numerator, value.denominator) if value else None


def _length(container: InputContainer, stream: VideoStream) -> tuple[float | None, bool]:
    """The length of a video in seconds, and whether it is that of its frames and not of a longer sound."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base), True
    if match := re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, match.groups())
        return 3600 * hours + 60 * minutes + seconds, True
    if container.duration is not None:
        return container.duration / load_av().time_base, len(container.streams) == 1
    return None, False


def _camera(name: str) -> tuple[str, str]:
    """FFmpeg's input format for the cameras of this system, and its name of a camera.

    Raises:
        VideoReadError: there is no camera of this number, on Windows.
    """
    if sys.platform == "darwin":
        return "avfoundation", name
    if sys.platform != "win32":
        return "v4l2", name if name.startswith("/") else f"/dev/video{name}"
    cameras = [c.name for c in load_av().enumerate_input_devices("dshow") if "video" in c.media_types]
    if int(name) >= len(cameras):
        raise VideoReadError(f"camera {name}: there is none; the cameras are {', '.join(cameras) or 'not found'}")
    return "dshow", f"video={cameras[int(name)]}"
