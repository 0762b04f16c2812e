"""ssd detect."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.cli.arguments import WEIGHTS, add_inference_options, add_machine_options, command, open_weights
from ssd.settings import DRAWN

if TYPE_CHECKING:
    from ssd.data import PictureFile
    from ssd.detector import Detections
    from ssd.ranks import Ranks


def add_detect(commands) -> None:
    parser = command(
        commands,
        _detect,
        "find objects in pictures and draw them",
        """Find objects: draws each picture with boxes, names and scores into --out, and writes detections.json there:
COCO's format with "images", "categories" and "annotations" (bbox [x, y, width, height] in pixels, with a score; the
list under "annotations" is what COCO.loadRes takes). A picture that cannot be read is named and left out, the rest is
done, and the exit code is 1. Only drawings and a detections.json of `ssd detect` itself are ever replaced; where
folders are searched, its drawings are passed over.

examples:
  ssd detect photo.jpg --out found               the 80 classes of COCO; downloads 136 MB once
  ssd detect photo.jpg --weights run/best.pt --out found
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5""",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, or folders that are searched for them")
    parser.add_argument("--weights", default="coco", metavar="FILE", help=f"{WEIGHTS} (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for pictures and detections.json")
    parser.add_argument("--no-drawings", action="store_true", help="detections.json alone")
    add_inference_options(parser, DRAWN)
    add_machine_options(parser, workers="threads that read and draw pictures")


def _detect(arguments: argparse.Namespace) -> int:
    from ssd.ranks import joined

    with joined() as ranks:
        return _detect_share(arguments, ranks)


def _detect_share(arguments: argparse.Namespace, ranks: Ranks) -> int:
    from tqdm import tqdm

    from ssd.data.loader import worker_count
    from ssd.detector import Detector
    from ssd.draw import draw_detections, save_png
    from ssd.results import JSON_NAME, plan_drawings, shared_results
    from ssd.threads import in_threads

    out, workers = Path(arguments.out), max(1, worker_count(arguments.workers))
    drawings = plan_drawings(arguments.paths, out, draw=not arguments.no_drawings)
    model, classes, options = open_weights(arguments, DRAWN)
    detector = Detector(model, classes, options, bf16=getattr(arguments, "bf16", None))
    mine = ranks.block(list(drawings))
    quiet = None if ranks.first else True
    with tqdm(total=len(mine), unit="picture", disable=quiet) as bar, shared_results(out, classes, ranks) as results:

        def skip(error: Exception) -> None:
            bar.write(f"skipped: {error}", file=sys.stderr)
            bar.update()

        def draw(found: tuple[PictureFile, Detections]) -> tuple[PictureFile, Detections]:
            picture, detections = found
            target = drawings[picture.path]
            target.parent.mkdir(parents=True, exist_ok=True)
            save_png(draw_detections(picture.pixels(), *detections, classes=classes), target)
            return found

        every = detector.stream(mine, arguments.batch_size, skip, workers=workers)
        for picture, found in every if arguments.no_drawings else in_threads(draw, every, workers, ahead=workers):
            results.add(picture, found)
            counts = Counter(classes[label - 1] for label in found.labels.tolist())
            names = ", ".join(f"{n} {name}" for name, n in counts.items())
            bar.write(f"{picture.path}: {names or 'nothing found'}")
            bar.update()
    counts = ranks.gather((results.images.count, results.annotations.count))
    done, objects = map(sum, zip(*counts, strict=True))
    if ranks.first:
        print(f"{done} pictures, {objects} objects: {out / JSON_NAME}")
        if done < len(drawings):
            print(f"{len(drawings) - done} of {len(drawings)} pictures could not be read", file=sys.stderr)
    return int(done < len(drawings))
