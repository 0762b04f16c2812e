"""The command `ssd convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssd.cli.arguments import Commands, checked, class_names, command
from ssd.options import some_classes


def add_convert(commands: Commands) -> None:
    """Adds `ssd convert` to the commands of `ssd`."""
    command(
        commands,
        _convert,
        _flags,
        "turn the weights of another project into a checkpoint",
        """Write a checkpoint of this project from the weights of another project, with their priors, input
normalisation and class names. No code from the file is run. IN is one of
  coco                        torchvision's SSD300, trained on COCO (downloads 136 MB once)
  coco:ssdlite320             torchvision's SSDlite, trained on COCO (downloads 14 MB once)
  checkpoint_ssd300.pth.tar   a checkpoint of sgrvinod's tutorial: the pickled model, or its state dict
  ssd300_vgg16_coco-*.pth     a state dict of torchvision's ssd300_vgg16 or ssdlite320_mobilenet_v3_large
  ssd300_mAP_77.43_v2.pth     a state dict of amdegroot's ssd.pytorch, or of a fork of it for 512 pixels
  vgg_ssd512_voc0712.pth      a state dict of lufficc's vgg_ssd300 or vgg_ssd512
  run/last.pt                 a checkpoint of this project: the copy leaves out the entries that only --resume needs
ssd train, eval, detect and export take these files as weights too.

If OUT ends in .safetensors, it has the format of the package safetensors: pip install 'ssd-ext[safetensors]'. All
commands read it as weights. Its parameters, priors, input normalisation and class names are those of a .pt file.

examples:
  ssd convert checkpoint_ssd300.pth.tar voc.pt
  ssd convert ssd_300_VOC0712.pth caffe.pt --bgr        ssd.pytorch's conversion of the original Caffe weights
  ssd convert run/best.pt best.safetensors""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="the weights to convert")
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="the checkpoint to write, .pt or .safetensors; the file must not exist"
    )
    parser.add_argument(
        "--classes",
        type=checked(class_names, some_classes),
        help="names of the classes, separated by commas, or a file with one name per line (default: the names in the "
        "file, or else those of the data that the other project trains on)",
    )
    parser.add_argument(
        "--bgr", action="store_true", help="the network was trained on BGR input, as Caffe's networks are"
    )


def _convert(arguments: argparse.Namespace) -> int:
    from ssd import load_weights
    from ssd.runtime.files import check_new
    from ssd.weights.checkpoint import levels_of, save_checkpoint
    from ssd.weights.loading import open_weights

    check_new(arguments.target)
    model, classes = load_weights(arguments.source, classes=arguments.classes, bgr=arguments.bgr, device="cpu")
    levels = levels_of(open_weights(arguments.source))
    save_checkpoint(arguments.target, model, classes, levels=levels)
    print(f"wrote {arguments.target}: {len(classes)} classes: {', '.join(classes)}")
    return 0
