"""ssd detect."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.cli.arguments import WEIGHTS, add_inference_options, add_machine_options, command, open_detector
from ssd.data.text import printable

if TYPE_CHECKING:
    from ssd.detector import Detections
    from ssd.ranks import Ranks


def add_detect(commands) -> None:
    from ssd.detector import SHOWN

    parser = command(
        commands,
        _detect,
        "find objects in pictures and draw them",
        """Find objects: draws each picture with boxes, names and scores into --out, and writes detections.json there:
COCO's format with "images", "categories" and "annotations" (bbox [x, y, width, height] in pixels, with a score; the
list under "annotations" is what COCO.loadRes takes). What cannot be read is named and left out, the rest is done, and
the exit code is 1. Only drawings and a detections.json of `ssd detect` itself are ever replaced; where folders are
searched, its drawings are passed over.

examples:
  ssd detect photo.jpg --out found               the 80 classes of COCO; downloads 136 MB once
  ssd detect photo.jpg --weights run/best.pt --out found
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5""",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, or folders that are searched for them")
    parser.add_argument("--weights", default="coco", metavar="FILE", help=f"{WEIGHTS} (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for pictures and detections.json")
    parser.add_argument("--no-drawings", action="store_true", help="detections.json alone")
    add_inference_options(parser, SHOWN)
    add_machine_options(parser, workers="threads that read and draw pictures")


def _detect(arguments: argparse.Namespace) -> int:
    from ssd.ranks import joined

    with joined() as ranks:
        return _detect_share(arguments, ranks)


def _detect_share(arguments: argparse.Namespace, ranks: Ranks) -> int:
    from tqdm import tqdm

    from ssd.data.loader import worker_count
    from ssd.data.reading import ImageReadError
    from ssd.detector import SHOWN
    from ssd.draw import save_png
    from ssd.results import JSON_NAME, plan_drawings, shared_results
    from ssd.threads import in_threads

    unread: list[OSError] = []

    def skip_folder(error: OSError) -> None:
        unread.append(error)
        if ranks.first:
            print(f"skipped: {printable(error)}", file=sys.stderr)

    out, workers = Path(arguments.out), max(1, worker_count(arguments.workers))
    drawings = plan_drawings(arguments.paths, out, draw=not arguments.no_drawings, on_error=skip_folder)
    detector = open_detector(arguments, SHOWN)
    mine = ranks.block(list(drawings))
    quiet = None if ranks.first else True
    with (
        tqdm(total=len(mine), unit="picture", disable=quiet) as bar,
        shared_results(out, detector.classes, ranks) as results,
    ):

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
        for found in every if arguments.no_drawings else in_threads(draw, every, workers, ahead=workers):
            if isinstance(found, Exception):
                skip(found)
                continue
            results.add(found)
            bar.write(printable(f"{found.picture.path}: {found}"))
            bar.update()
    counts = ranks.gather((results.images.count, results.annotations.count))
    done, objects = map(sum, zip(*counts, strict=True))
    if ranks.first:
        print(f"{done} pictures, {objects} objects: {printable(out / JSON_NAME)}")
        if done < len(drawings):
            print(f"{len(drawings) - done} of {len(drawings)} pictures could not be read", file=sys.stderr)
    return int(done < len(drawings) or len(unread) > 0)
