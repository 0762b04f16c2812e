"""ssd detect."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.cli.arguments import WEIGHTS, add_inference_options, add_machine_options, command, open_detector
from ssd.runtime.text import printable

if TYPE_CHECKING:
    from ssd.inference.detector import Detections
    from ssd.runtime.processes import Ranks


def add_detect(commands) -> None:
    command(
        commands,
        _detect,
        _flags,
        "find objects in pictures and draw them",
        """Find objects: draws each picture with boxes, names and scores into --out, and writes detections.json there:
COCO's format with "images", "categories" and "annotations" (bbox [x, y, width, height] in pixels, with a score; the
list under "annotations" is what COCO.loadRes takes). What cannot be read is named and left out, the rest is done, and
the exit code is 1. Only drawings and a detections.json of `ssd detect` itself are ever replaced; where folders are
searched, its drawings are passed over.

While it runs, each finished picture is a line in detections.0.jsonl (with torchrun each process has a file, by its
rank); at the end these files become detections.json. After Ctrl-C, SIGTERM, a kill or a full disk, the same command
with --resume continues, and its detections.json is that of a run that was never stopped.

examples:
  ssd detect photo.jpg --out found               the 80 classes of COCO; downloads 136 MB once
  ssd detect photo.jpg --weights run/best.pt --out found
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5 --resume""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.inference.detector import SHOWN

    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, or folders that are searched for them")
    parser.add_argument("--weights", default="coco", metavar="FILE", help=f"{WEIGHTS} (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for pictures and detections.json")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the results in --out, which must be of the same weights and options, and process only pictures "
        "without one: after a stopped run, or when pictures were added; without results, start from the beginning",
    )
    parser.add_argument("--no-drawings", action="store_true", help="detections.json alone")
    add_inference_options(parser, SHOWN)
    add_machine_options(parser, workers="threads that read and draw pictures")


def _detect(arguments: argparse.Namespace) -> int:
    from ssd.runtime.processes import UNLIMITED, joined

    with joined(UNLIMITED) as ranks:  # one may have slower pictures than another, hours of them
        return _detect_share(arguments, ranks)


def _detect_share(arguments: argparse.Namespace, ranks: Ranks) -> int:
    from tqdm import tqdm

    from ssd.data.loader import worker_count
    from ssd.data.reading import ImageReadError
    from ssd.drawing import save_png
    from ssd.inference.detector import SHOWN
    from ssd.inference.drawings import plan_drawings
    from ssd.inference.results import JSON_NAME, made_by, open_results
    from ssd.runtime.signals import stop_signals
    from ssd.runtime.threads import in_threads

    unread: list[OSError] = []

    def say_error(text: object) -> None:
        if ranks.first:
            print(printable(text), file=sys.stderr)

    def skip_folder(error: OSError) -> None:
        unread.append(error)
        say_error(f"skipped: {error}")

    out, workers = Path(arguments.out), max(1, worker_count(arguments.workers))
    drawn = not arguments.no_drawings
    drawings = plan_drawings(arguments.paths, out, draw=drawn, on_error=skip_folder)
    detector = open_detector(arguments, SHOWN)
    info = made_by(arguments.weights, detector.options)
    how = {"draw": drawn, "resume": arguments.resume, "ranks": ranks, "say": say_error}
    with open_results(out, drawings, detector.classes, info, **how) as results:
        before = len(drawings) - len(results.left)
        if before:
            say_error(f"resuming: {before} of {len(drawings)} pictures are done already")
        mine = ranks.block(results.left)
        stopped = False
        with tqdm(total=len(mine), unit="picture", disable=not ranks.first or None) as bar, stop_signals() as stopping:

            def skip(error: Exception) -> None:
                bar.write(f"skipped: {printable(error)}", file=sys.stderr)
                bar.update()

            def draw(found: Detections) -> Detections | Exception:
                try:
                    drawing = found.draw()
                except (ImageReadError, FileNotFoundError) as error:  # the file is another one by now
                    return error
                target = drawings[found.picture.path]
                target.parent.mkdir(parents=True, exist_ok=True)
                save_png(drawing, target)
                return found

            every = detector(iter(mine), batch_size=arguments.batch_size, workers=workers, on_error=skip)
            drawn_ones = in_threads(draw, every, workers, ahead=workers) if drawn else every
            for n, found in enumerate(drawn_ones, 1):
                if isinstance(found, Exception):
                    skip(found)
                else:
                    results.add(found)
                    bar.write(printable(f"{found.picture.path}: {found}"))
                    bar.update()
                # Of whole batches, so that a resumed run makes the same ones, which give the same last bits.
                if stopped := bool(stopping) and n % arguments.batch_size == 0:
                    break
            results.close()
            stopped = stopped or not ranks.wait(stopping)
        if stopped:
            if ranks.first:
                done = f"{results.done()} of {len(drawings)}"
                print(f"stopped after {done} pictures; to go on: the same command with --resume")
            raise KeyboardInterrupt
        if not ranks.first:
            return 0  # torchrun would end the first at once, which has the last word
        done, objects = results.finish()
    print(f"{done} pictures, {objects} objects: {printable(out / JSON_NAME)}")
    if done < len(drawings):
        say_error(f"{len(drawings) - done} of {len(drawings)} pictures could not be read")
    return int(done < len(drawings) or len(unread) > 0)
