"""The command `ssd export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssd.cli.arguments import Commands, add_fields, command, fields_given, paragraphs
from ssd_ext import DetectionOptions


def add_export(commands: Commands) -> None:
    """Adds `ssd export` to the commands of `ssd`."""
    command(
        commands,
        _export,
        _flags,
        "write a detector as one program that runs without the code of `ssd`",
        """Write a program whose input is pictures as bytes (B, 3, size, size) and whose output is boxes, labels, scores
and counts; size is the input size of the network. The file also holds the class names and detection options. Before
the file is written, the program's detections are compared with the network's. The formats:
{formats}
ssd detect and ssd eval take these files as --weights (docs/shipping.md).

examples:
  ssd export run/best.pt                                     writes run/best.pt2
  ssd export run/best.pt --format aoti --min-score 0.5""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.export import FORMATS
    from ssd.inference.detector import SHOWN

    formats = paragraphs({name: format.summary for name, format in FORMATS.items()})
    parser.description = (parser.description or "").format(formats=formats)
    help = "a checkpoint such as run/best.pt, weights of another project (see ssd convert), coco, coco:ssdlite320 or hf://owner/name"
    parser.add_argument("source", metavar="WEIGHTS", help=help)
    parser.add_argument("--format", choices=FORMATS, default="pt2", help="format of the file (default: %(default)s)")
    parser.add_argument(
        "--out", metavar="FILE", help="the file to write, which must not exist (default: named after WEIGHTS)"
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="pictures as bytes, or as numbers in 0..1 (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="device that the program will run on (default: %(default)s)")
    check = parser.add_mutually_exclusive_group()
    help = "pictures or folders for the comparison (default: pictures of the training data, or drawn ones)"
    check.add_argument("--check", nargs="+", metavar="DATA", help=help)
    check.add_argument("--no-check", dest="check", action="store_const", const=(), help="skip the comparison")
    help = "8-bit convolutions (openvino only), calibrated on pictures of this folder, such as the training data"
    parser.add_argument("--int8", metavar="DATA", help=help)
    add_fields(parser.add_argument_group("detections"), SHOWN)


def _export(arguments: argparse.Namespace) -> int:
    from ssd.export import FORMATS, export
    from ssd.inference.detector import SHOWN
    from ssd.weights.hub import HUB

    named = Path(arguments.source)
    if arguments.source.startswith(HUB):
        named = Path(named.name)  # in the current folder
    out = arguments.out or str(named.with_suffix(FORMATS[arguments.format].suffix))
    metadata = export(
        arguments.source,
        out,
        arguments.format,
        SHOWN._replace(**fields_given(arguments, DetectionOptions)),
        input_dtype="float32" if arguments.input == "float" else "uint8",
        device=arguments.device,
        check=arguments.check,
        int8=arguments.int8,
    )
    print(f"wrote {out}: {len(metadata.classes)} classes: {', '.join(metadata.classes)}")
    return 0
