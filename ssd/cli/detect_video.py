"""The part of `ssd detect` that reads videos, cameras and streams."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.cli.arguments import checked, made_with, open_detector
from ssd.runtime.text import printable
from ssd.training.settings import positive
from ssd_ext._checks import not_negative

if TYPE_CHECKING:
    from av import VideoFrame

    from ssd.data.video import Frame, Video
    from ssd.inference.detections import Detections
    from ssd.inference.detector import Detector
    from ssd.inference.results import Info
    from ssd.inference.video import VideoOutputs

TIMEOUT = 10.0  # seconds; the default of --timeout


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that apply to videos only. None: the flag was not given."""
    group = parser.add_argument_group("videos, cameras and streams")
    group.add_argument(
        "--every",
        type=checked(int, positive),
        metavar="N",
        help="find objects in every N-th frame; the frames between are drawn with the boxes of the one before them "
        "(default: 1)",
    )
    group.add_argument(
        "--max-frames", type=checked(int, positive), metavar="N", help="stop after N frames (default: all)"
    )
    group.add_argument(
        "--timeout",
        type=checked(float, positive),
        metavar="SECONDS",
        help=f"a stream without data for so long counts as broken (default: {TIMEOUT:g})",
    )
    group.add_argument(
        "--retries",
        type=checked(int, not_negative),
        metavar="N",
        help="open a camera or stream up to N times again if it cannot be opened, breaks or ends, after pauses of 1, "
        "2, 4, ... seconds, at most 30; each frame makes all N attempts available again (default: 0)",
    )


def check_no_video_options(arguments: argparse.Namespace) -> None:
    """Raises ValueError if a flag that applies to videos only was given."""
    for flag in ("--every", "--max-frames", "--timeout", "--retries"):
        if getattr(arguments, flag[2:].replace("-", "_")) is not None:
            raise ValueError(f"{flag} is for videos, cameras and streams, and there are only pictures; leave it out")


def _check_options(arguments: argparse.Namespace, videos: Sequence[str]) -> None:
    """Raises ValueError if paths or flags do not go together with videos."""
    from ssd.data.video import is_device, without_password

    names = [without_password(path) for path in arguments.paths]
    if others := [path for path in names if path not in set(map(without_password, videos))]:
        raise ValueError(
            f"{others[0]}: pictures and videos have different results; process them in two commands. Folders are "
            "searched for pictures only: to process the videos in one, name them"
        )
    if len(videos) > 1 and any(map(is_device, videos)):
        raise ValueError("a camera or stream may never end, so it must be the only PATH; start a command for each")
    saved = set(arguments.save or ()) - {"drawings"}
    given = {
        f"--save {','.join(sorted(saved))}": saved,
        "--format": arguments.format,
        "--resume": arguments.resume,
        "--bits": arguments.bits,
    }
    if wrong := [flag for flag, value in given.items() if value]:
        raise ValueError(f"{wrong[0]} is for pictures and not for videos; leave it out")
    if arguments.no_drawings and arguments.save:
        raise ValueError("--save drawings and --no-drawings contradict each other; leave out one of them")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("videos are processed by one process; start `ssd detect` without torchrun for each video")


def detect_videos(arguments: argparse.Namespace, videos: Sequence[str]) -> int:
    """Finds objects in video files, or in a camera or a stream.

    Args:
        arguments: the flags of `ssd detect`.
        videos: the paths for which `ssd.data.video.is_video` is true.

    Returns:
        The exit code: 1 if a video cannot be read, or not to its end.

    Raises:
        ValueError, OSError, ImportError: wrong input, see `ssd.inference.video.plan_outputs` and `ssd.Detector.load`.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the work on a file; its results so far are complete files.
    """
    from ssd.data.video import Video, VideoReadError, load_av
    from ssd.inference.detector import SHOWN
    from ssd.inference.selection import read_thresholds
    from ssd.inference.video import plan_outputs
    from ssd.runtime.signals import stop_signals

    _check_options(arguments, videos)
    load_av()
    plan = plan_outputs(videos, Path(arguments.out), draw=not arguments.no_drawings)
    if arguments.thresholds is not None:
        arguments.thresholds = read_thresholds(arguments.thresholds)
    detector = open_detector(arguments, SHOWN)
    info = made_with(arguments, detector)
    failed = 0
    for source, outputs in plan.items():
        try:
            video = Video(
                source,
                timeout=arguments.timeout or TIMEOUT,
                retries=arguments.retries or 0,
                on_retry=_say_error,
            )
        except (VideoReadError, FileNotFoundError) as error:
            _say_error(f"skipped: {error}")
            failed += 1
            continue
        with stop_signals() as stopping:
            failed += not _detect_video(video, outputs, detector, info, arguments, stopping)
        if stopping and not video.live:
            raise KeyboardInterrupt
    return int(failed > 0)


def _detect_video(
    video: Video,
    outputs: VideoOutputs,
    detector: Detector,
    info: Info,
    arguments: argparse.Namespace,
    stopping: Sized,
) -> bool:
    """Writes the results of a video, and returns whether all of it was read."""
    from ssd.data.video import VideoReadError
    from ssd.runtime.threads import ReadAhead

    batch_size = arguments.batch_size
    faults: list[str] = []

    def batches() -> Iterator[list[Frame]]:
        while True:
            try:
                # Frames of a live source are processed at once, without waiting for a whole batch of them.
                frames = ahead.take(batch_size, full=not video.live, stopping=stopping)
            except VideoReadError as error:  # comes after the frames that could be read
                faults.append(str(error))
                return
            if not frames:
                return
            yield frames

    frames_read = ReadAhead(islice(video, arguments.max_frames), batch_size, newest=video.live)
    with frames_read as ahead, closing(video):  # closing the video first ends a pause of the thread
        following = batches()
        first = next(following, None)
        if first:
            _write_results(video, first, following, outputs, detector, info, arguments)
    if stopping:
        print("stopped")
    if ahead.dropped:
        _say_error(f"{video.name}: {ahead.dropped} frames were skipped, because the network is slower than the source")
    if faults and video.live and not arguments.retries:
        faults[0] += "; with --retries, it is opened again"
    for fault in faults + video.faults:
        _say_error(fault if first else f"skipped: {fault}")
    return not (faults or video.faults)


def _write_results(
    video: Video,
    first: list[Frame],
    batches: Iterable[list[Frame]],
    outputs: VideoOutputs,
    detector: Detector,
    info: Info,
    arguments: argparse.Namespace,
) -> None:
    """Writes the results of the first frames and of the batches after them.

    While the network runs, one thread decodes the next frames, several draw the frames before, and one encodes those
    before them. Each takes a frame only when few are waiting for the next thread, so memory is bounded.
    """
    from tqdm import tqdm

    from ssd.data.loader import worker_count
    from ssd.drawing import draw_detections
    from ssd.inference.video import drawing_video, writing_lines
    from ssd.runtime.files import discard_leftovers
    from ssd.runtime.threads import in_threads

    workers, every, most = max(1, worker_count(arguments.workers)), arguments.every or 1, arguments.max_frames
    info = {**info, "video": video.name, "every": every}
    if video.live:
        info["started"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")

    def found() -> Iterator[tuple[Frame, Detections]]:
        """Each frame with the detections in it, or in the last frame before it in which objects were searched."""
        due, last = 0, None
        for frames in chain([first], batches):
            chosen = []
            for frame in frames:
                if frame.number >= due:  # also if the frame that was due has been skipped
                    chosen.append(frame)
                    due = frame.number + every
            results = dict(zip(chosen, detector(chosen, batch_size=len(frames), workers=workers), strict=True))
            for frame, its in results.items():
                lines.add(frame, its)
            for frame in frames:
                last = results.get(frame, last)
                assert last is not None  # objects are searched in the first frame
                yield frame, last

    done = 0
    total = video.total if most is None else min(most, video.total or most)
    with (
        writing_lines(outputs.lines, detector.classes, info) as lines,
        tqdm(total=total, unit="frame", disable=None) as bar,
        ExitStack() as stack,
    ):
        finished: Iterator[object] = found()
        if outputs.drawn:
            if not video.live:
                discard_leftovers(outputs.drawn)  # not of a live source, which cannot be read again
            drawn = stack.enter_context(drawing_video(outputs.drawn, first[0], video.rate))

            def draw(item: tuple[Frame, Detections]) -> VideoFrame:
                frame, its = item
                drawing = draw_detections(frame.pixels(), its.boxes, its.labels, its.scores, classes=its.classes)
                return drawn.prepare(drawing, frame.time)

            finished = in_threads(drawn.add, in_threads(draw, found(), workers, ahead=workers), 1, ahead=workers)
        for _ in finished:
            done += 1
            bar.update()
    written = ", ".join(printable(path) for path in outputs if path)
    print(f"{done} frames, {lines.objects} objects: {written}")


def _say_error(text: object) -> None:
    print(printable(text), file=sys.stderr)
