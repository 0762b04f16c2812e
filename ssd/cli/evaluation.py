"""ssd eval."""

from __future__ import annotations

import argparse
import sys

from ssd.cli.arguments import WEIGHTS, add_inference_options, add_machine_options, command, open_detector
from ssd_ext import DetectionOptions


def add_eval(commands) -> None:
    from ssd.evaluate import METHODS

    parser = command(
        commands,
        _eval,
        "mean average precision of a checkpoint, per class",
        """Average precision per class by the rules of Pascal VOC: objects marked as difficult count neither way.

examples:
  ssd eval my_pictures --weights run/best.pt --split test
  ssd eval VOC2007 --weights voc/best.pt --split test --method 11point      the VOC 2007 metric""",
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="folders in Pascal VOC, COCO or YOLO layout")
    parser.add_argument("--weights", required=True, metavar="FILE", help=WEIGHTS)
    parser.add_argument("--split", help="list of ImageSets/Main (default: all pictures)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="default: %(default)s")
    parser.add_argument("--iou", type=float, default=0.5, help="least IoU of a hit (default: %(default)s)")
    add_inference_options(parser, DetectionOptions())
    add_machine_options(parser)


def _eval(arguments: argparse.Namespace) -> int:
    from ssd.data import open_dataset
    from ssd.data.augmentation import EvalTransform
    from ssd.evaluate import evaluate
    from ssd.ranks import joined

    detector = open_detector(arguments, DetectionOptions())
    dataset = open_dataset(arguments.data, arguments.split, detector.classes, EvalTransform(), keep_crowds=True)
    with joined() as ranks:
        for drop in dataset.dropped if ranks.first else ():
            print(drop, file=sys.stderr)
        result = evaluate(
            detector.predict,
            dataset,
            detector.classes,
            iou_threshold=arguments.iou,
            method=arguments.method,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            ranks=ranks,
        )
        if ranks.first:
            print(result)
    return 0
