"""The command `ssd info`."""

from __future__ import annotations

import argparse

from ssd.cli.arguments import DATA, Commands, add_fields, command
from ssd.training.settings import Settings


def add_info(commands: Commands) -> None:
    """Adds `ssd info` to the commands of `ssd`."""
    command(
        commands,
        _info,
        _flags,
        "show versions and kernels of this installation, or the contents of a data set",
        """Without DATA: show versions, and which kernels are compiled for which device. With DATA: count its pictures
and objects, and show the sizes of the objects, the share of them that no prior fits, and which objects are left out.

examples:
  ssd info my_pictures
  ssd info my_pictures --speed       how many pictures a core prepares per second, and how many cores a GPU needs""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="*", metavar="DATA", help=DATA)
    help = "measure how fast DATA is read, for about 10 seconds; by default with the augmentation of the recipe scratch"
    parser.add_argument("--speed", action="store_true", help=help)
    add_fields(parser, Settings, ["augment"])


def _info(arguments: argparse.Namespace) -> int:
    if not arguments.data:
        if arguments.speed:
            raise ValueError("--speed measures how fast DATA is read: name at least one folder")
        import ssd_ext

        print(ssd_ext.info())
        return 0
    from ssd.data import AUGMENTATIONS, open_dataset
    from ssd.data.prior_fit import describe_fit
    from ssd.data.speed import measure_speed
    from ssd.networks.ssd300 import SSD300

    dataset = open_dataset(arguments.data)
    print(f"{len(dataset)} pictures, {', '.join(f'{n} {name}' for name, n in dataset.counts.items())}")
    print("\n".join(describe_fit(dataset)))
    print("\n".join(map(str, dataset.dropped)), end="\n" if dataset.dropped else "")
    if arguments.speed:
        print("speed of one core, by CPU time:")
        augment = AUGMENTATIONS[str(getattr(arguments, "augment", Settings(("",)).augment))]
        print(measure_speed(dataset, augment, SSD300.input_size))
    return 0
