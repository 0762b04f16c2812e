"""The command `ssd eval`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ssd.cli.arguments import (
    DATA,
    WEIGHTS,
    Commands,
    add_fields,
    add_inference_options,
    add_machine_options,
    command,
    fields_given,
    merging_given,
    open_detector,
)
from ssd.options import ReadOptions
from ssd.runtime.faults import first_of
from ssd.runtime.text import printable
from ssd_ext import DetectionOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ssd.data import BoxDataset
    from ssd.inference.detector import Detector
    from ssd.runtime.processes import Ranks


def add_eval(commands: Commands) -> None:
    """Adds `ssd eval` to the commands of `ssd`."""
    command(
        commands,
        _eval,
        _flags,
        "measure the average precision of a checkpoint, or of detections in a file",
        """Measure average precision per class by the rules of Pascal VOC (area, 11point), or COCO's twelve figures
(coco, which needs `pip install 'ssd-ext[coco]'`). Without --split, a network of ssd train is measured on the pictures
of its data that it was not trained on: the test split, else the validation split, else the pictures held out. A data
set that was moved or converted is known by the names of its pictures. Of other data all pictures are measured. Crowds
and objects marked as difficult are ignored: they are neither hits nor misses. COCO's rules have no difficult objects;
with --method coco these are treated as crowds. Objects with a box that cannot be used are listed and not counted.

examples:
  ssd eval my_pictures --weights run/best.pt --split test
  ssd eval VOC2007 --weights voc/best.pt --split test --method 11point      the metric of VOC 2007
  ssd eval my_pictures --weights run/best.pt --report report.html           what goes wrong, and which score to choose
  ssd eval coco --weights coco --split val2017 --method coco --curves curves.png
  ssd eval coco --detections results.json --split val2017 --method coco     results of any program, in COCO's format
  ssd eval cells --weights run/best.pt --method coco --max-dets 500 --top-k 1000     many objects in each picture
  ssd eval my_pictures --detections found/detections.json                   written by ssd detect""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.evaluation.coco import CocoOptions
    from ssd.evaluation.evaluate import METHODS

    parser.add_argument("data", nargs="+", metavar="DATA", help=DATA)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="FILE", help=WEIGHTS)
    detections = "detections to measure: results in COCO's format if DATA is in COCO's format, or a detections.json"
    source.add_argument("--detections", metavar="FILE", help=detections)
    parser.add_argument("--split", help="split to measure on, such as test (default: see above)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="rules (default: %(default)s)")
    parser.add_argument(
        "--iou", type=float, help="least IoU of a hit; cannot be used with --method coco (default: 0.5)"
    )
    add_fields(parser, CocoOptions())
    parser.add_argument("--curves", metavar="FILE.png", help="draw the precision-recall curve of each class")
    report = (
        "write an HTML report with thresholds, kinds of errors and the worst pictures, and its numbers to FILE.json"
    )
    parser.add_argument("--report", metavar="FILE.html", help=report)
    add_fields(parser.add_argument_group("reading of the data"), ReadOptions())
    add_inference_options(parser, DetectionOptions())
    add_machine_options(parser)


class _Detected(NamedTuple):
    """The detections that are measured, and the data that they are compared with."""

    dataset: BoxDataset
    classes: Sequence[str]
    detections: Sequence[tuple[Tensor, Tensor, Tensor]]
    targets: Sequence[Mapping[str, Tensor]]
    in_pixels: bool  # whether the boxes of detections and targets are in pixels, not in fractions of the picture
    part: str  # the part of the data, for the report
    options: DetectionOptions | None  # None for detections in a file


def _eval(arguments: argparse.Namespace) -> int:
    from ssd.evaluation.coco import CocoOptions
    from ssd.evaluation.evaluate import METRICS
    from ssd.evaluation.report import check_report
    from ssd.runtime.files import check_writable
    from ssd.runtime.processes import UNLIMITED, joined

    if arguments.iou is not None and not METRICS[arguments.method].takes_iou:
        raise ValueError(f"--iou cannot be used with --method {arguments.method}; leave it out")
    if (given := fields_given(arguments, CocoOptions)) and not METRICS[arguments.method].takes_options:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags}: can only be used with --method coco; add it, or leave out {flags}")
    arguments.coco = CocoOptions(**given) if given else None
    if arguments.curves:
        if not Path(arguments.curves).parent.is_dir():
            raise FileNotFoundError(f"{Path(arguments.curves).parent}: no such folder, for --curves {arguments.curves}")
        check_writable(arguments.curves)
    if arguments.report:
        check_report(arguments.report)
    with joined(UNLIMITED) as ranks:  # a slow process is waited for
        if arguments.weights:
            detected = _of_weights(arguments, ranks)
            ranks.from_first(lambda: _measure(arguments, detected))
        else:
            ranks.from_first(lambda: _measure(arguments, _of_file(arguments)))
    return 0


def _measure(arguments: argparse.Namespace, detected: _Detected) -> None:
    """Measures the detections, prints the result, and writes the files that were asked for."""
    from ssd.evaluation.curves import plot_precision
    from ssd.evaluation.evaluate import score, score_found
    from ssd.evaluation.report import Origin, write_report
    from ssd.evaluation.uncertainty import describe, interval
    from ssd.inference.selection import Selection

    dataset, classes, detections, targets, in_pixels, part, options = detected
    if only := getattr(arguments, "only", None):
        selection = Selection(classes, -math.inf, only)
        kept = [selection(labels, scores) for _, labels, scores in detections]
        detections = [(b[k], lab[k], s[k]) for (b, lab, s), k in zip(detections, kept, strict=True)]
    rules = arguments.iou, arguments.method, arguments.coco
    if in_pixels:
        result = score(detections, targets, classes, *rules)
    else:
        result = score_found(detections, targets, dataset, classes, *rules)
    print(result)
    if line := describe(result, interval(result, dataset.groups)):
        print(printable(line), file=sys.stderr)
    if arguments.curves:
        plot_precision(result, arguments.curves)
    if arguments.report:
        source = arguments.weights or arguments.detections
        origin = Origin(arguments.command_line, arguments.data, part, source, options)
        write_report(arguments.report, result, detections, targets, dataset, classes, origin, in_pixels=in_pixels)
        print(printable(f"{arguments.report}: the report"), file=sys.stderr)


def _of_weights(arguments: argparse.Namespace, ranks: Ranks) -> _Detected:
    import torch

    from ssd.evaluation.evaluate import check, detect_all, detect_pictures
    from ssd.export import is_exported
    from ssd.training.unseen import UNKNOWN, open_unseen
    from ssd.weights.hub import local_file
    from ssd.weights.loading import open_weights

    detector = open_detector(arguments, DetectionOptions())

    def opened(split: str | None, reading: ReadOptions = ReadOptions()) -> BoxDataset:
        return _open_data(arguments, arguments.weights, split, detector.classes, detector, reading)

    def chosen() -> tuple[BoxDataset, str]:
        if is_exported(local_file(arguments.weights)):
            dataset = opened(arguments.split)
            return dataset, "" if arguments.split else f"measured on all {len(dataset)} pictures; {UNKNOWN}"
        checkpoint = open_weights(arguments.weights)
        if arguments.tiles is None and (tiles := checkpoint.get("settings", {}).get("tiles")):
            print(f"the network was trained on tiles; to measure it with tiles, add --tiles {tiles}", file=sys.stderr)
        return open_unseen(checkpoint, arguments.data, opened, arguments.split)

    dataset, line = ranks.from_first(chosen)
    if ranks.first:
        _tell(dataset, line)
    check(dataset, detector.classes, arguments.iou, arguments.method, arguments.coco)
    most = detector.options.top_k if detector.tiles is None else math.inf  # it limits each tile
    if ranks.first and arguments.coco and most < arguments.coco.max_dets:
        limits = f"--top-k {detector.options.top_k} and --max-dets {arguments.coco.max_dets}"
        print(f"{limits}: no picture has more detections than --top-k; raise it to measure more", file=sys.stderr)
    machine = {"batch_size": arguments.batch_size, "workers": arguments.workers, "ranks": ranks}
    detections: Sequence[tuple[Tensor, Tensor, Tensor]]
    targets: Sequence[Mapping[str, Tensor]]
    if in_pixels := len(merging_given(arguments)) > 0:
        detections, targets = detect_pictures(detector, dataset, **machine), dataset.truths
    else:
        device = torch.device(arguments.device) if arguments.device else None
        detections, targets = detect_all(detector.predict, dataset, **machine, device=device)
    part = line or _part(arguments)
    return _Detected(dataset, detector.classes, detections, targets, in_pixels, part, detector.options)


def _of_file(arguments: argparse.Namespace) -> _Detected:
    from ssd.evaluation.detection_file import DetectionFile

    if given := fields_given(arguments, DetectionOptions) | merging_given(arguments):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{arguments.detections}: the options of detection do not apply to detections in a file; leave out {flags}"
        )
    file = DetectionFile(arguments.detections)
    dataset = _open_data(arguments, arguments.detections, arguments.split, file.classes)
    found = file.detections(dataset)
    _tell(dataset, *file.notes)
    return _Detected(dataset, dataset.classes, found, dataset.truths, True, _part(arguments), None)


def _part(arguments: argparse.Namespace) -> str:
    return "all splits" if arguments.split is None else f"split {arguments.split}"


def _open_data(
    arguments: argparse.Namespace,
    source: str,
    split: str | None,
    classes: Sequence[str] | None,
    detector: Detector | None = None,
    reading: ReadOptions = ReadOptions(),
) -> BoxDataset:
    """Opens the data with the classes of the weights or detections in `source`, prepared for the detector.

    `reading` has the values of flags that are not given.
    """
    from ssd.data import UnknownClassError, open_dataset

    options = reading._replace(**fields_given(arguments, ReadOptions))
    try:
        transform, levels = (detector.prepare, detector.levels) if detector else (None, None)
        levels = None if options.bits else levels
        return open_dataset(arguments.data, split, classes, transform, keep_crowds=True, options=options, levels=levels)
    except UnknownClassError as error:
        raise ValueError(f"{source}: its classes are not those of the data: {error}") from error


def _tell(dataset: BoxDataset, *lines: str) -> None:
    """Prints what was found in the data, what was left out, and the lines."""
    from ssd.data.findings import summary

    for line in (summary(dataset), *dataset.notes, *first_of(dataset.dropped), *filter(None, lines)):
        print(printable(line), file=sys.stderr)
