"""Writes what `ssd detect` finds in a video: a video with boxes, and a file with a JSON line for each frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np
from PIL.Image import Image

from ssd.data.video import SUFFIXES, URL, Frame, is_device, load_av, open_container
from ssd.drawing import MARK
from ssd.inference.detections import Detections
from ssd.inference.results import Info, Line, append_line, first_line, info_of, rows_of
from ssd.runtime.files import check_writable, file_names, locked_file, naming, replacing

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.video.stream import VideoStream

SUFFIX = ".mp4"
# The first encoder that PyAV has: libx264 is in its wheels, the others in builds without code under the GPL.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
X264 = {"preset": "veryfast", "crf": "20", "bf": "0"}  # without B-frames: the first frame is then at time 0
BIT_RATE = 0.2  # bits per pixel, for the encoders that do not know a quality
# The file is fragmented while it is written, so that players open it after a kill; in the end it becomes a usual one.
MUXER = {"movflags": "hybrid_fragmented", "flush_packets": "1"}
KEY_FRAMES = 2.0  # seconds between two key frames; as much of the drawn video may be lost by a kill
TICKS = 90_000  # per second, which all usual frame rates divide
BT709 = 1  # ITU-T H.273: colour primaries, transfer and matrix of HD video
LIMITED = 1  # the range of values, AVCOL_RANGE_MPEG


class VideoOutputs(NamedTuple):
    """The files that are written for a video."""

    lines: Path  # detections, see `FrameLines`
    drawn: Path | None  # the video with boxes; None: none is written


def plan_outputs(sources: Sequence[str], out: Path, *, draw: bool = True) -> dict[str, VideoOutputs]:
    """Chooses the files for each video.

    Args:
        sources: files, cameras or URLs, see `ssd.data.Video`.
        out: the path of a video that ends in .mp4, if there is one source; or else a folder, which need not exist.
        draw: whether a video with boxes is written.

    Returns:
        For each source its files: `out` and the same name with the suffix .jsonl; or in the folder `out` a name that is
        made from that of the source, with the suffixes .mp4 and .jsonl.

    Raises:
        FileExistsError: a file that `ssd detect` did not write, an input, or anything recorded from a camera or stream
            would be replaced.
        PermissionError: nothing can be written to the folder.
        ValueError: `out` is one file for several sources, or has the suffix of another format.
    """
    suffix = out.suffix.lower()
    if suffix not in (*SUFFIXES, ".jsonl") or out.is_dir():
        stems = [out / name for name in file_names([_stem(source) for source in sources])]
    elif suffix != SUFFIX:
        raise ValueError(f"{out}: videos are written as {SUFFIX}; choose an --out that ends in it, or a folder")
    elif len(sources) > 1:
        raise ValueError(f"{out}: is one file for {len(sources)} videos; choose a folder as --out")
    else:
        stems = [out.with_suffix("")]
    plan = {}
    for source, stem in zip(sources, stems, strict=True):
        drawn = out if len(stems) == 1 and stem == out.with_suffix("") else stem.with_name(f"{stem.name}{SUFFIX}")
        plan[source] = VideoOutputs(stem.with_name(f"{stem.name}.jsonl"), drawn if draw else None)
    for source, outputs in plan.items():
        for target in filter(None, outputs):
            if os.path.lexists(target):
                _check_replaceable(target, source, sources)
    check_writable(out)
    return plan


def _stem(source: str) -> str:
    """A name for the files of a source, without suffix."""
    if URL.match(source):
        place = urlsplit(source)
        return Path(place.path).stem or place.hostname or "stream"
    return Path(source).stem if not is_device(source) else f"camera{source.removeprefix('/dev/video')}"


def _check_replaceable(target: Path, source: str, sources: Sequence[str]) -> None:
    """Raises FileExistsError if a file must not be replaced by the results of a source."""
    if is_device(source):
        raise FileExistsError(
            f"{target}: exists, and what was recorded from a camera or stream is not replaced; choose another --out"
        )
    if any(not is_device(each) and os.path.exists(each) and target.samefile(each) for each in sources):
        raise FileExistsError(f"{target}: is an input and would be replaced by its results; choose another --out")
    if not (target.is_file() and (is_drawn_video(target) if target.suffix.lower() == SUFFIX else info_of(target))):
        raise FileExistsError(f"{target}: would be replaced, but `ssd detect` did not write it; choose another --out")


def is_drawn_video(path: Path) -> bool:
    """Tells from the header of a file whether `drawing_video` wrote it; False if it is no video."""
    av = load_av()
    try:
        with open_container(path) as container:
            return container.metadata.get("comment") == MARK
    except (av.FFmpegError, OSError):
        return False


def to_line(frame: Frame, found: Detections) -> Line:
    """Converts the detections in a frame to a line of JSON.

    Returns:
        "frame", the number of the frame from 0; "time", in seconds since the first frame; "width" and "height" in
        pixels; and "objects": for each of them "name", that of its class, and the keys of `Detections.to_coco` without
        "image_id".
    """
    objects = [{"name": one.name, **row} for one, row in zip(found, rows_of(found), strict=True)]
    size = {"width": frame.width, "height": frame.height}
    return {"frame": frame.number, "time": round(frame.time, 6), **size, "objects": objects}


class FrameLines:
    """Adds lines to the file of `writing_lines`.

    Attributes:
        objects: number of objects so far.
    """

    def __init__(self, file: FileIO) -> None:
        self.objects = 0
        self._file = file

    def add(self, frame: Frame, found: Detections) -> None:
        """Adds the detections in a frame. They are not lost if the process is killed after this call."""
        append_line(self._file, to_line(frame, found))
        self.objects += len(found)


@contextmanager
def writing_lines(path: Path, classes: Sequence[str], info: Info) -> Iterator[FrameLines]:
    """Writes the detections in a video, in a file of JSON lines that is locked meanwhile.

    The first line has "info" and "categories" as in detections.json. Each frame adds a line, see `to_line`, which is in
    the file at once.

    Args:
        path: the file; it is replaced.
        classes: class names without background; the category id of `classes[i - 1]` is i.
        info: weights and options, see `ssd.inference.results.made_by`.

    Yields:
        An object with the method `add` for a frame.

    Raises:
        ValueError: another run is writing the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), open(path, "ab", buffering=0) as file, locked_file(file, path):
        file.truncate(0)  # not before the file is locked
        file.write(first_line(classes, info).encode())
        yield FrameLines(file)


class DrawnVideo:
    """Encodes the frames of the file of `drawing_video`. One thread at a time may use it.

    Args:
        container: the file, opened by PyAV.
        frame: the first frame, which determines the size; sides are rounded up to even numbers, as players need them.
        rate: frames per second, approximately.
    """

    def __init__(self, container: OutputContainer, frame: Frame, rate: float) -> None:
        av = load_av()
        encoder = next(name for name in ENCODERS if name in av.codec.codecs_available)
        self.width, self.height = frame.width + frame.width % 2, frame.height + frame.height % 2
        options = {"g": str(max(1, round(KEY_FRAMES * rate))), **(X264 if encoder == ENCODERS[0] else {})}
        self._container = container
        added = container.add_stream(encoder, rate=Fraction(rate).limit_denominator(1001), options=options)
        self._stream = cast("VideoStream", added)  # its type depends on the encoder
        coder = self._stream.codec_context
        coder.width, coder.height, coder.pix_fmt = self.width, self.height, "yuv420p"
        coder.time_base = Fraction(1, TICKS)
        coder.colorspace = coder.color_primaries = coder.color_trc = BT709
        coder.color_range = LIMITED
        if encoder != ENCODERS[0]:
            coder.bit_rate = round(BIT_RATE * rate * self.width * self.height)
        if frame.aspect:
            coder.sample_aspect_ratio = frame.aspect
        self._last = -1

    def prepare(self, drawing: Image, time: float) -> VideoFrame:
        """Converts a drawing to the colours and the size of the video. Other threads may call this.

        Args:
            drawing: RGB. If it has another size than the video, it is resized.
            time: seconds since the first frame, more than that of the frame before it.
        """
        rgb = np.asarray(drawing)
        if (drawing.width + drawing.width % 2, drawing.height + drawing.height % 2) == (self.width, self.height):
            # An edge is repeated, since resizing by one pixel would blur the frame.
            rgb = np.pad(rgb, ((0, drawing.height % 2), (0, drawing.width % 2), (0, 0)), "edge")
        frame = (
            load_av()
            .VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            .reformat(self.width, self.height, "yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
        )
        frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
        return frame

    def add(self, frame: VideoFrame) -> None:
        """Encodes a frame that `prepare` made."""
        frame.pts = self._last = max(frame.pts, self._last + 1)  # two frames less than a tick apart
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encodes what the encoder still holds."""
        self._container.mux(self._stream.encode(None))


@contextmanager
def drawing_video(path: Path, frame: Frame, rate: float) -> Iterator[DrawnVideo]:
    """Writes a video in the format MP4, which appears when the `with` block has ended. It has no sound.

    A killed process leaves `.<name>.mp4.<process>.tmp`, which players open after it was renamed.

    Args:
        path: file to write, in an existing folder.
        frame, rate: see `DrawnVideo`.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    with (
        replacing(path) as temporary,
        load_av().open(temporary, "w", format="mp4", options=MUXER) as container,
    ):
        container.metadata["comment"] = MARK
        video = DrawnVideo(container, frame, rate)
        yield video
        video.finish()
