"""The command `ssd info`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssd.cli.arguments import DATA, Commands, add_fields, command, fields_given, say
from ssd.options import ReadOptions
from ssd.runtime.faults import first_of
from ssd.training.settings import Settings

if TYPE_CHECKING:
    from ssd.data.dataset import BoxDataset
    from ssd.data.members import AnyFile
    from ssd.training.choice import Choice


def add_info(commands: Commands) -> None:
    """Adds `ssd info` to the commands of `ssd`."""
    command(
        commands,
        _info,
        _flags,
        "show versions and kernels of this installation, or the contents of a data set",
        """Without DATA: show versions, and which kernels are compiled for which device. With DATA: show what was
found in it, the number of objects of each class and their sizes, the share of objects that no prior of the network fits
that ssd train would choose on this machine, which objects are left out, and what looks like a mistake.

examples:
  ssd info my_pictures
  ssd info my_pictures --network ssdlite --size 512       whether the priors of this network fit the objects
  ssd info my_pictures --speed       how many pictures a core prepares per second, and how many cores a GPU needs""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="*", metavar="DATA", help=DATA)
    help = "measure how fast DATA is read, for about 10 seconds; by default with the augmentation of the recipe scratch"
    parser.add_argument("--speed", action="store_true", help=help)
    help = "decode all pictures, and list those that cannot be read (exit code 1) or lack their last bytes"
    parser.add_argument("--pixels", action="store_true", help=help)
    add_fields(parser, Settings, ["network", "size", "augment"])
    add_fields(parser.add_argument_group("reading of the data"), ReadOptions())


def _info(arguments: argparse.Namespace) -> int:
    if not arguments.data:
        for flag in ("speed", "pixels"):
            if getattr(arguments, flag):
                raise ValueError(f"--{flag} reads DATA: name at least one folder")
        import ssd_ext

        print(ssd_ext.info())
        return 0
    import torch

    from ssd.data import AUGMENTATIONS, open_dataset
    from ssd.data.findings import in_two_splits, summary, warnings
    from ssd.data.prior_fit import describe_fit
    from ssd.data.speed import measure_speed
    from ssd.networks import build_network

    given: dict[str, Any] = {n: v for n, v in fields_given(arguments, Settings).items() if n != "data"}
    options = ReadOptions(**fields_given(arguments, ReadOptions))
    asked = Settings(tuple(arguments.data), **given, reading=options)
    dataset = open_dataset(arguments.data, options=options)
    choice = _choice(asked, dataset)
    settings = choice.settings
    with torch.device("meta"):
        network = build_network(str(settings.network), 2, **settings.network_options())
    say(summary(dataset))
    say("objects: " + ", ".join(f"{n} {name}" for name, n in dataset.counts.items()))
    for line in (*choice.notes, *describe_fit(dataset, network), *dataset.notes, *dataset.dropped):
        say(line)
    for warning in (*warnings(dataset), *in_two_splits(_pictures_of_splits(arguments.data, options))):
        say(f"warning: {warning}")
    if arguments.speed:
        print("speed of one core, by CPU time:")
        print(measure_speed(dataset, AUGMENTATIONS[str(settings.augment)], network.input_size))
    return _check_pixels(dataset.pictures) if arguments.pixels else 0


def _choice(settings: Settings, dataset: BoxDataset) -> Choice:
    """The network and the size that training would choose on this machine."""
    from ssd.runtime.device import pick_device
    from ssd.training.choice import choose_network, choose_size, open_chosen

    choice, _ = choose_network(settings, pick_device())
    try:
        return open_chosen(choice)[1] if choice.by_data else choice
    except ValueError:  # training asks which split is meant, or has nothing to learn from
        return choose_size(choice, dataset.objects, dataset.classes)


def _check_pixels(pictures: Sequence[AnyFile]) -> int:
    """Decodes all pictures, lists the damaged ones, and returns the exit code."""
    from ssd.data.pixels import check_pixels

    unreadable, cut = check_pixels(pictures)
    for what, found in (("cannot be read", unreadable), ("lack their last bytes, and are read", cut)):
        say(f"pictures that {what}: {len(found)} of {len(pictures)}")
        for line in first_of(found):
            say(f"  {line}")
    return int(len(unreadable) > 0)


def _pictures_of_splits(data: Sequence[str], options: ReadOptions) -> dict[str, Sequence[AnyFile]]:
    """The pictures of the splits for training, validation and test, as far as the data has them."""
    from ssd.data import open_dataset
    from ssd.training.splits import choose_splits

    try:
        names = choose_splits(Settings(tuple(data)))
    except ValueError:  # there are several splits of a kind; training asks for one
        return {}
    chosen = list(dict.fromkeys(filter(None, names.values())))
    if len(chosen) < 2:
        return {}
    return {name: open_dataset(data, name, options=options).pictures for name in chosen}
