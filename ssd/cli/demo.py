"""The command `ssd demo`."""

from __future__ import annotations

import argparse

from ssd.cli.arguments import Commands, add_fields, add_machine_options, command, fields_given
from ssd.training.settings import Settings


def add_demo(commands: Commands) -> None:
    """Adds `ssd demo` to the commands of `ssd`."""
    command(
        commands,
        _demo,
        _flags,
        "train and test a small detector on drawn shapes, without a download",
        """Draw pictures of circles, squares and triangles on busy backgrounds, and train a network on them as
`ssd train` does: a very light one on a CPU, the default one on a GPU. Then measure its mAP on other pictures, and draw
the objects that it finds there beside the true ones.""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.demo import ON_CPU, SETTINGS

    parser.add_argument(
        "--out",
        default="demo",
        metavar="DIR",
        help="folder for the pictures, the run and the results (default: %(default)s)",
    )
    add_fields(parser, Settings, ["epochs", "width"], SETTINGS | {"width": f"{ON_CPU['width']} on a CPU, 1 on a GPU"})
    add_machine_options(parser)


def _demo(arguments: argparse.Namespace) -> int:
    from ssd.demo import demo

    demo(arguments.out, device=arguments.device, workers=arguments.workers, **fields_given(arguments, Settings))
    return 0
