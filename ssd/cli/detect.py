"""The command `ssd detect`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.cli.arguments import (
    WEIGHTS,
    Commands,
    add_inference_options,
    add_machine_options,
    checked,
    class_names,
    command,
    made_with,
    open_detector,
)
from ssd.cli.detect_video import add_video_options, check_no_video_options, detect_videos
from ssd.options import one_to_32, some_classes
from ssd.runtime.text import printable

if TYPE_CHECKING:
    from ssd.inference.detections import Detections
    from ssd.runtime.processes import Ranks


OUTPUTS = ("drawings", "labels", "crops")  # the choices of --save


def add_detect(commands: Commands) -> None:
    """Adds `ssd detect` to the commands of `ssd`."""
    command(
        commands,
        _detect,
        _flags,
        "find objects in pictures and videos, and draw them",
        """Find objects in pictures, or in videos (see below). Draws each picture with boxes, names and scores into
--out, and writes detections.json there, in COCO's format with "images", "categories" and "annotations" (bbox [x, y,
width, height] in pixels, and a score; COCO.loadRes takes the list under "annotations"). A picture that cannot be read
is reported and skipped, and the exit code is then 1. Of the files in --out, only drawings, crops and a detections.json
that `ssd detect` wrote are replaced. When folders are searched for pictures, drawings, labels and crops of `ssd detect`
are skipped.

--save labels writes a data set to correct in a labelling tool, into a folder of --out with the name of the format:
  yolo   images/*, labels/*.txt, classes.txt, data.yaml      for LabelImg, Label Studio, Ultralytics
  voc    JPEGImages/*, Annotations/*.xml                     for LabelImg, CVAT
  coco   images/*, annotations/instances_all.json            for CVAT, Label Studio
The pictures in it are hard links if the file system allows it, and copies otherwise. Two pictures of the same name get
different names. The folder is written after the last picture, and must not exist before, so corrected labels are never
replaced. ssd train and ssd eval read it.

--save crops writes each object as a picture: crops/<class>/<picture>_<n>.png is the n-th detection of the picture, by
descending score. In class names, "_" replaces characters that file names must not contain. Without --resume, the folder
crops must be empty or missing.

During the run, each finished picture adds a line to detections.0.jsonl (with torchrun, each process has a file named
after its rank). At the end these files become detections.json. After Ctrl-C, SIGTERM, a kill or a full disk, the same
command with --resume continues, and writes the same detections.json as a run without interruption.

Videos, cameras (0 is the first one) and URLs of streams need `pip install 'ssd-ext[video]'`. --out names an MP4 file,
such as found.mp4, or a folder. The video with boxes is written there, without sound, and beside it a file such as
found.jsonl: its first line has the weights, options and classes, and each frame adds a line {"frame": 0, "time": 0.0,
"width": 640, "height": 480, "objects": [...]} at once. The time is in seconds since the first frame. Ctrl-C and SIGTERM
end both files so that they can be used; after a stream or camera the exit code is then 0. If a source is faster than
the network, frames of a camera or stream are skipped. A damaged or cut file is read as far as possible, and the exit
code is then 1.

examples:
  ssd detect photo.jpg --out found               the 80 classes of COCO; downloads 136 MB once
  ssd detect photo.jpg --out found --weights coco:ssdlite320         the same with a smaller network; downloads 14 MB
  ssd detect photo.jpg --weights run/best.pt --out found
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5 --resume
  ssd detect holiday/ --weights run/best.pt --out found --save labels --format yolo
  ssd detect holiday/ --weights run/best.pt --out found --save drawings,crops
  ssd detect holiday/ --weights run/best.pt --out found --only dog,cat
  ssd detect holiday/ --weights run/best.pt --out found --thresholds thresholds.json
  ssd detect aerial/ --weights run/best.pt --out found --tiles 640          small objects in large pictures
  ssd detect holiday/ --weights run/best.pt --out found --flip              boxes fit better; over twice the time
  ssd detect holiday/ --weights run/best.pt --out found --class-agnostic    one detection at each place
  ssd detect clip.mp4 --weights run/best.pt --out found.mp4                   also writes found.jsonl
  ssd detect a.mp4 b.mov --weights run/best.pt --out found --every 5          found/a.mp4, found/a.jsonl, ...
  ssd detect 0 --weights run/best.pt --out camera.mp4 --max-frames 1000       a camera
  ssd detect rtsp://192.168.0.5/yard --weights run/best.pt --out yard --no-drawings --retries 10 --timeout 5""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.inference.detector import SHOWN
    from ssd.inference.labels import FORMATS

    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures, or folders to search for pictures; or videos, the number of a camera, or a URL",
    )
    parser.add_argument("--weights", default="coco", metavar="FILE", help=f"{WEIGHTS} (default: %(default)s)")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for drawings and detections.json; for one video also a file such as found.mp4",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the results in --out and process only the pictures without a result, after a stopped run or when "
        "pictures were added; the weights and options must be the same; without results, start from the beginning",
    )
    parser.add_argument(
        "--save",
        type=_outputs,
        metavar="LIST",
        help=f"what to write beside detections.json, separated by commas: {', '.join(OUTPUTS)} (default: drawings)",
    )
    parser.add_argument(
        "--no-drawings",
        action="store_true",
        help="write no drawings; without --save the only output is then detections.json",
    )
    parser.add_argument("--format", choices=FORMATS, help="the format of --save labels, which requires it")
    parser.add_argument(
        "--bits",
        type=checked(int, one_to_32),
        help="bits per sample that pictures with more than 8 use, such as 12 in files of 16 (default: as in the "
        "training data of the weights, or else as many as the files have)",
    )
    group = add_inference_options(parser, SHOWN)
    group.add_argument(
        "--only",
        type=checked(class_names, some_classes),
        metavar="CLASSES",
        help="keep only detections of these classes: names separated by commas, or a file with one name per line. The "
        "others are removed after NMS and after --top-k",
    )
    group.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help='JSON object {"class name": score}, or the JSON file of a report of ssd eval: for these classes, the '
        "scores take the place of --min-score. Detections are removed after NMS and after --top-k",
    )
    add_video_options(parser)
    add_machine_options(parser, workers="threads that read and draw pictures")


def _outputs(text: str) -> tuple[str, ...]:
    """Parses the value of `--save`."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise argparse.ArgumentTypeError(f"no {', '.join(map(repr, unknown))}; choose from {', '.join(OUTPUTS)}")
    return names


def _saved(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The outputs beside detections.json.

    Raises:
        ValueError: options contradict each other.
    """
    saved: tuple[str, ...] = arguments.save or (() if arguments.no_drawings else ("drawings",))
    if arguments.no_drawings and "drawings" in saved:
        raise ValueError("--save drawings and --no-drawings contradict each other; leave out one of them")
    if "labels" in saved and arguments.format is None:
        from ssd.inference.labels import FORMATS

        raise ValueError(f"--save labels needs --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if arguments.format is not None and "labels" not in saved:
        raise ValueError("--format is only for --save labels; add that, or leave out --format")
    return saved


def _check_apart(drawings: Iterable[Path], folders: Sequence[Path | None]) -> None:
    """Raises ValueError if a drawing would be in one of these folders. Some file systems ignore case."""
    one_of_each = {drawing.parent: drawing for drawing in drawings}
    for folder in filter(None, folders):
        for drawing in one_of_each.values():
            if str(folder).lower() in (str(parent).lower() for parent in drawing.parents):
                raise ValueError(
                    f"{folder}: the drawing {drawing} would be in this folder, which is for other files; save no "
                    "drawings, or choose another --out"
                )


def _detect(arguments: argparse.Namespace) -> int:
    from ssd.data.video import is_video

    if videos := list(filter(is_video, dict.fromkeys(arguments.paths))):
        return detect_videos(arguments, videos)
    check_no_video_options(arguments)
    from ssd.runtime.processes import UNLIMITED, joined

    with joined(UNLIMITED) as ranks:  # the pictures of one process may take hours longer than another's
        return _detect_share(arguments, ranks)


def _detect_share(arguments: argparse.Namespace, ranks: Ranks) -> int:
    from tqdm import tqdm

    from ssd.data.loader import worker_count
    from ssd.data.reading import ImageReadError
    from ssd.drawing import save_png
    from ssd.inference.crops import FOLDER as CROPS
    from ssd.inference.crops import plan_crops, save_crops
    from ssd.inference.detector import SHOWN
    from ssd.inference.drawings import plan_drawings
    from ssd.inference.labels import plan_labels, write_labels
    from ssd.inference.results import JSON_NAME, open_results
    from ssd.inference.selection import read_thresholds
    from ssd.runtime.files import file_names
    from ssd.runtime.signals import stop_signals
    from ssd.runtime.threads import in_threads

    unread: list[Exception] = []

    def say_error(text: object) -> None:
        if ranks.first:
            print(printable(text), file=sys.stderr)

    def skip_some(error: Exception) -> None:
        unread.append(error)
        say_error(f"skipped: {error}")

    out, workers = Path(arguments.out), max(1, worker_count(arguments.workers))
    saved = _saved(arguments)
    drawn = "drawings" in saved
    drawings = plan_drawings(arguments.paths, out, draw=drawn, on_error=skip_some)
    labels = out / arguments.format if "labels" in saved else None
    names = plan_labels(drawings, labels) if labels else {}
    if arguments.thresholds is not None:
        arguments.thresholds = read_thresholds(arguments.thresholds)
    crops = plan_crops(drawings, out, resume=arguments.resume) if "crops" in saved else None
    if drawn:
        _check_apart(drawings.values(), [labels, out / CROPS if crops is not None else None])
    detector = open_detector(arguments, SHOWN)
    folders = file_names(detector.classes)
    info = made_with(arguments, detector)
    if arguments.bits is not None:
        info = {**info, "bits": arguments.bits}
        detector.levels = 0, 2**arguments.bits - 1
    with open_results(
        *(out, drawings, detector.classes, info),
        draw=drawn,
        crops=crops,
        labels=labels,
        resume=arguments.resume,
        ranks=ranks,
        say=say_error,
    ) as results:
        before = len(drawings) - len(results.left)
        if before:
            say_error(f"resuming: {before} of {len(drawings)} pictures already have a result")
        mine = ranks.block(results.left)
        stopped, cut, full = False, [], 0
        with tqdm(total=len(mine), unit="picture", disable=not ranks.first or None) as bar, stop_signals() as stopping:

            def skip(error: Exception) -> None:
                bar.write(f"skipped: {printable(error)}", file=sys.stderr)
                bar.update()

            def save(found: Detections) -> Detections | Exception:
                assert isinstance(found.picture.path, Path)  # all pictures are files on the disk
                target = drawings[found.picture.path]
                try:
                    drawing = found.draw() if drawn else None
                    pieces = found.crops() if crops is not None else []
                except (ImageReadError, FileNotFoundError) as error:  # the file was changed or removed after detection
                    return error
                if crops is not None:
                    save_crops(pieces, found.labels.tolist(), out, crops[found.picture.path], folders)
                if drawing is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    save_png(drawing, target)
                return found

            every = detector(iter(mine), batch_size=arguments.batch_size, workers=workers, on_error=skip)
            saving = in_threads(save, every, workers, ahead=workers) if drawn or crops is not None else every
            for n, found in enumerate(saving, 1):
                if isinstance(found, Exception):
                    skip(found)
                else:
                    results.add(found)
                    if found.picture.cut:
                        cut.append(found.picture.path)
                    full += detector.tiles is None and len(found) == detector.options.top_k
                    bar.write(printable(f"{found.picture.path}: {found}"))
                    bar.update()
                # Stops only after whole batches. A resumed run then forms the same batches as a run without a stop,
                # so its results are equal to the last bit.
                if stopped := bool(stopping) and n % arguments.batch_size == 0:
                    break
            results.close()
            stopped = stopped or not ranks.wait(stopping)
        if stopped:
            if ranks.first:
                so_far = f"{results.done()} of {len(drawings)}"
                print(f"stopped after {so_far} pictures; to continue, add --resume to the same command")
            raise KeyboardInterrupt
        if not ranks.first:
            return 0  # with another exit code, torchrun would end the first process before it writes the results
        done, objects = results.finish()
        notes = write_labels(labels, results.lines(), names, detector.classes, on_error=skip_some) if labels else []
    if cut:
        say_error(f"pictures that lack their last bytes, and were used: {len(cut)}, such as {cut[0]}")
    if full and not before and ranks.size == 1:  # those of other sessions and processes were not counted
        say_error(
            f"pictures with as many objects as --top-k allows ({detector.options.top_k}): {full}; with a higher "
            f"--min-score than {detector.options.min_score:g} there are fewer"
        )
    print(f"{done} pictures, {objects} objects: {printable(out / JSON_NAME)}")
    for note in notes:
        print(printable(note))
    if done < len(drawings):
        say_error(f"{len(drawings) - done} of {len(drawings)} pictures could not be read")
    return int(done < len(drawings) or len(unread) > 0)
