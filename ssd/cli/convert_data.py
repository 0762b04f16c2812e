"""The command `ssd convert-data`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ssd.cli.arguments import DATA, Commands, add_fields, checked, class_names, command, fields_given
from ssd.options import ReadOptions, some_classes


def add_convert_data(commands: Commands) -> None:
    """Adds `ssd convert-data` to the commands of `ssd`."""
    command(
        commands,
        _convert_data,
        _flags,
        "write a data set in another format",
        """Write a data set of any layout that `ssd train` reads as COCO, Pascal VOC, YOLO or WebDataset, with
the same splits. The pictures are not changed. Where the file system allows it, they are hard links, which need no
space; in archives of WebDataset they are copies.

  coco         images/train/..., annotations/instances_train.json
  voc          JPEGImages/..., Annotations/*.xml, ImageSets/Main/train.txt; the order of the classes is not kept
  yolo         images/train/..., labels/train/*.txt, data.yaml, classes.txt
  webdataset   train-000000.tar ..., each with pictures and a JSON file for each picture

Boxes have fractions of pixels, and are clipped to the picture. Edges that are read back differ by less than 0.000001
pixels. Boxes and sizes are those of the upright picture, as most programs show it. What a format cannot hold is
reported: crowds in voc and yolo, the mark of difficult objects in coco and yolo, and in voc boxes that are at most one
pixel wide or high.

examples:
  ssd convert-data my_pictures my_pictures_coco --format coco
  ssd convert-data coco coco_shards --format webdataset
  ssd convert-data VOC2007 VOC2012 voc_yolo --format yolo --split trainval --split test""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.data.writers import WRITERS

    parser.add_argument("data", nargs="+", metavar="IN", help=DATA)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not exist")
    parser.add_argument("--format", choices=WRITERS, required=True, help="the format to write")
    help = "a split to write; may be given several times (default: all)"
    parser.add_argument("--split", action="append", default=[], help=help)
    help = "names of the classes, separated by commas, or a file with one name per line (default: those of the data)"
    parser.add_argument("--classes", type=checked(class_names, some_classes), help=help)
    parser.add_argument("--link", action="store_true", help="make symbolic links to the pictures")
    add_fields(parser.add_argument_group("reading of the data"), ReadOptions())


def _convert_data(arguments: argparse.Namespace) -> int:
    from ssd.data.conversion import convert_dataset

    done, *notes = convert_dataset(
        *(arguments.data, arguments.out, arguments.format, arguments.split, arguments.classes),
        link=arguments.link,
        options=ReadOptions(**fields_given(arguments, ReadOptions)),
    )
    print(done)
    print("\n".join(notes), file=sys.stderr, end="\n" if notes else "")
    return 0
