"""ssd export and ssd convert."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssd.cli.arguments import add_fields, class_names, command, fields_given
from ssd_ext import DetectionOptions


def add_export(commands) -> None:
    from ssd.export import FORMATS
    from ssd.inference.detector import SHOWN

    parser = command(
        commands,
        _export,
        "write a detector as one program, for use without this network's code",
        """Write a file that takes the bytes of pictures (B, 3, 300, 300) and gives boxes, labels, scores and counts.
Classes and detection options are inside. Its detections are compared with the network's before it takes its name.
  pt2      a graph that torch loads (torch.export)
  aoti     compiled by AOTInductor for the likes of this machine; runs in C++ without Python
  onnx     standard operators only, for ONNX Runtime and whatever else reads ONNX
  openvino for Intel's processors: an .xml and a .bin; with --int8 the fastest there
ssd detect and ssd eval take these files as --weights (docs/shipping.md).

examples:
  ssd export run/best.pt                                     writes run/best.pt2
  ssd export run/best.pt --format aoti --min-score 0.5""",
    )
    parser.add_argument("source", metavar="WEIGHTS", help="a checkpoint such as run/best.pt, see ssd convert, or coco")
    parser.add_argument("--format", choices=FORMATS, default="pt2", help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", help="the file, which must not exist (default: named after WEIGHTS)")
    parser.add_argument("--input", choices=("uint8", "float"), default="uint8", help="pictures as bytes or as 0..1")
    parser.add_argument("--device", default="cpu", help="that the file shall run on (default: %(default)s)")
    check = parser.add_mutually_exclusive_group()
    help = "pictures or folders to compare on (default: those trained on, or drawn ones)"
    check.add_argument("--check", nargs="+", metavar="DATA", help=help)
    check.add_argument("--no-check", dest="check", action="store_const", const=(), help="compare nothing")
    help = "8-bit convolutions (openvino), by the ranges they have on pictures of this folder, such as those trained on"
    parser.add_argument("--int8", metavar="DATA", help=help)
    add_fields(parser.add_argument_group("detections"), SHOWN)


def _export(arguments: argparse.Namespace) -> int:
    from ssd.export import FORMATS, export
    from ssd.inference.detector import SHOWN

    out = arguments.out or str(Path(arguments.source).with_suffix(FORMATS[arguments.format].suffix))
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


def add_convert(commands) -> None:
    parser = command(
        commands,
        _convert,
        "turn the weights of another project into a checkpoint",
        """Write a checkpoint of this project from the weights of another, with their priors, input and class names.
No code from the file is run. IN is one of
  coco                        torchvision's SSD300, trained on COCO (downloads 136 MB once)
  checkpoint_ssd300.pth.tar   of sgrvinod's tutorial: with the pickled model, or its state dict
  ssd300_vgg16_coco-*.pth     a state dict of torchvision's ssd300_vgg16
  ssd300_mAP_77.43_v2.pth     a state dict of amdegroot's ssd.pytorch
  run/last.pt                 a checkpoint of this project: leaves out what only --resume needs
All other commands take these too.

examples:
  ssd convert checkpoint_ssd300.pth.tar voc.pt
  ssd convert ssd_300_VOC0712.pth caffe.pt --bgr        ssd.pytorch's conversion of the original Caffe weights""",
    )
    parser.add_argument("source", metavar="IN", help="the weights")
    parser.add_argument("target", type=Path, metavar="OUT", help="the checkpoint, which must not exist")
    help = "names of the classes, separated by commas, or a file of one per line (default: those of the project)"
    parser.add_argument("--classes", type=class_names, help=help)
    parser.add_argument("--bgr", action="store_true", help="the network takes blue first, as Caffe's do")


def _convert(arguments: argparse.Namespace) -> int:
    from ssd import load_weights
    from ssd.weights.checkpoint import save_checkpoint

    if arguments.target.exists():
        raise FileExistsError(f"{arguments.target}: exists; choose another name")
    model, classes = load_weights(arguments.source, classes=arguments.classes, bgr=arguments.bgr, device="cpu")
    save_checkpoint(arguments.target, model, classes)
    print(f"wrote {arguments.target}: {len(classes)} classes: {', '.join(classes)}")
    return 0
