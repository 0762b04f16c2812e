"""The command `ssd info`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ssd.cli.arguments import DATA, Commands, add_fields, command, fields_given, say
from ssd.options import ReadOptions
from ssd.runtime.faults import first_of
from ssd.training.settings import Settings

if TYPE_CHECKING:
    from ssd.data.dataset import BoxDataset
    from ssd.data.members import AnyFile
    from ssd.data.prior_fit import Fit
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
  ssd info my_pictures --report data.html      the same with pictures, copies and odd boxes, and data.json beside it
  ssd info --report-bug                        this installation as Markdown for an issue, without paths and names
  ssd info my_pictures --speed       how many pictures a core prepares per second, and how many cores a GPU needs""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="*", metavar="DATA", help=DATA)
    help = "measure how fast DATA is read, for about 10 seconds; by default with the augmentation of the recipe scratch"
    parser.add_argument("--speed", action="store_true", help=help)
    help = "decode all pictures, and list those that cannot be read (exit code 1) or lack their last bytes"
    parser.add_argument("--pixels", action="store_true", help=help)
    help = (
        "write an HTML file with drawn pictures, pictures that are there twice and odd annotations, and the numbers as "
        "JSON beside it; decodes all pictures, and lists those that cannot be read (exit code 0)"
    )
    parser.add_argument("--report", metavar="FILE.html", help=help)
    help = (
        "without DATA: print the installation as Markdown to paste into an issue: versions, machine, kernels, build; "
        "without paths, and without the names of the user and the host"
    )
    parser.add_argument("--report-bug", action="store_true", help=help)
    add_fields(parser, Settings, ["network", "size", "augment"])
    add_fields(parser.add_argument_group("reading of the data"), ReadOptions())


def _info(arguments: argparse.Namespace) -> int:
    if not arguments.data:
        for flag in ("speed", "pixels", "report"):
            if getattr(arguments, flag):
                raise ValueError(f"--{flag} reads DATA: name at least one folder")
        if arguments.report_bug:
            from ssd.reports.bug import bug_report

            print(bug_report())
            return 0
        import ssd_ext

        print(ssd_ext.info())
        return 0
    if arguments.report_bug:
        raise ValueError("--report-bug describes the installation, not data: give it without DATA")
    import torch

    from ssd.data import AUGMENTATIONS
    from ssd.data.findings import counted, in_two_splits, summary, warnings
    from ssd.data.prior_fit import describe_fit, measure_fit
    from ssd.data.speed import measure_speed
    from ssd.networks import build_network

    if arguments.report:
        from ssd.reports.data import check_data_report

        check_data_report(arguments.report)
    given: dict[str, Any] = {n: v for n, v in fields_given(arguments, Settings).items() if n != "data"}
    options = ReadOptions(**fields_given(arguments, ReadOptions))
    dataset = _open(arguments, options)
    asked = Settings(tuple(arguments.data), **given, reading=dataset.options)
    names, splits, why_none = _splits(asked, dataset.classes)
    choice = _choice(asked, dataset, names, splits)
    settings = choice.settings
    with torch.device("meta"):
        network = build_network(str(settings.network), 2, **settings.network_options())
    fit = measure_fit(dataset, network)
    pictures = {name: part.pictures for name, part in splits.items()} if len(splits) > 1 else {}
    say(summary(dataset))
    say("objects: " + ", ".join(f"{n} {name}" for name, n in dataset.counts.items()))
    for name in pictures:
        counts = splits[name].counts
        rarest = [f"; rarest class: {n} {its}" for its, n in sorted(counts.items(), key=itemgetter(1))[:1]]
        n_pictures = counted(len(splits[name]), "picture", "pictures")
        n_objects = counted(sum(counts.values()), "object", "objects")
        say(f"split {name}: {n_pictures}, {n_objects}{''.join(rarest)}")
    for line in (*choice.notes, *describe_fit(fit, dataset.classes), *dataset.notes, *first_of(dataset.dropped)):
        say(line)
    for warning in (*warnings(dataset), *in_two_splits(pictures)):
        say(f"warning: {warning}")
    if arguments.report:
        _write_report(arguments, dataset, splits, fit, choice, why_none)
    if arguments.speed:
        print("speed of one core, by CPU time:")
        print(measure_speed(dataset, AUGMENTATIONS[str(settings.augment)], network.input_size))
    return _check_pixels(dataset.pictures) if arguments.pixels else 0


def _open(arguments: argparse.Namespace, options: ReadOptions) -> BoxDataset:
    """Opens all pictures. A report lists pictures that cannot be read, so it opens the others without them."""
    from ssd.data import ImageReadError, open_dataset

    try:
        return open_dataset(arguments.data, options=options)
    except ImageReadError:
        if not arguments.report or options.skip_unreadable:
            raise
        return open_dataset(arguments.data, options=options._replace(skip_unreadable=1.0))


def _choice(
    settings: Settings, dataset: BoxDataset, names: dict[str, str | None], splits: dict[str, BoxDataset]
) -> Choice:
    """What training would choose on this machine.

    Args:
        settings: the settings of the run.
        dataset: all pictures.
        names, splits: see `_splits`. Without names, or objects to learn from, training ends with an error; then all
            pictures decide.
    """
    from ssd.runtime.device import pick_device
    from ssd.training.choice import choose_network, fit_to_data
    from ssd.training.splits import divided, objects_of

    choice, _ = choose_network(settings, pick_device())
    if not choice.waits:
        return choice
    whole = splits.get(names.get("split") or "", dataset)
    if names and sum(whole.counts.values()):
        used = set().union(*(part.used_classes for part in (whole, *splits.values())))
        whole = whole.with_classes([name for name in whole.classes if name in used])
        train = whole if names["val_split"] else divided(whole, settings)[0]
        return fit_to_data(choice, objects_of(train), whole.classes)
    return fit_to_data(choice, dataset.objects, dataset.classes)


def _check_pixels(pictures: Sequence[AnyFile]) -> int:
    """Decodes all pictures, lists the damaged ones, and returns the exit code."""
    from ssd.data.pixels import check_pixels

    unreadable, cut = check_pixels(pictures)
    for what, found in (("cannot be read", unreadable), ("lack their last bytes, and are read", cut)):
        say(f"pictures that {what}: {len(found)} of {len(pictures)}")
        for line in first_of(found):
            say(f"  {line}")
    return int(len(unreadable) > 0)


def _splits(settings: Settings, classes: Sequence[str]) -> tuple[dict[str, str | None], dict[str, BoxDataset], str]:
    """Opens the splits for training, validation and test, as far as the data has them.

    Returns:
        The result of `choose_splits`, the splits, and why both are empty if training would ask for a split.
    """
    from ssd.data import open_dataset
    from ssd.training.splits import choose_splits

    try:
        names = choose_splits(Settings(settings.data))
    except ValueError as error:  # there are several splits of a kind
        return {}, {}, str(error)
    chosen = dict.fromkeys(filter(None, names.values()))
    splits = {name: open_dataset(settings.data, name, classes, options=settings.reading) for name in chosen}
    return names, splits, ""


def _write_report(
    arguments: argparse.Namespace,
    dataset: BoxDataset,
    splits: dict[str, BoxDataset],
    fit: Fit,
    choice: Choice,
    why_none: str,
) -> None:
    """Writes the report, and says where it is."""
    from ssd.networks import network_class
    from ssd.reports.data import DataOrigin, write_data_report

    settings = choice.settings
    layout = settings.priors or network_class(str(settings.network)).layouts[0]
    notes = [*choice.notes, *([f"no splits are compared: {why_none}"] if why_none else [])]
    origin = DataOrigin(arguments.command_line, arguments.data, str(settings.network), layout, notes)
    write_data_report(arguments.report, dataset, splits, fit, origin)
    say(f"{arguments.report}: the report, for a browser")
