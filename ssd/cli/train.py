"""The command `ssd train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssd.cli.arguments import (
    DATA,
    Commands,
    add_fields,
    add_machine_options,
    checked,
    command,
    fields_given,
    paragraphs,
)
from ssd.options import ReadOptions
from ssd.training.settings import Settings
from ssd_ext import LossOptions
from ssd_ext._checks import not_negative


def add_train(commands: Commands) -> None:
    """Adds `ssd train` to the commands of `ssd`."""
    command(
        commands,
        _train,
        _flags,
        "train a detector on folders of pictures",
        """Train a detector on your pictures. Writes last.pt, best.pt, curve.png, curve.csv, metrics.json, worst.png and
report.html into the folder --out; and scalars for TensorBoard, after pip install 'ssd-ext[tensorboard]'.

DATA is a folder in one of these layouts, as labelling tools export them:
{layouts}
Splits are recognised by their names: train and val, training and validation, train2017 and val2017 ... Without a
validation split, a tenth of the pictures is held out to choose best.pt. A test split is measured at the end. With
several folders, the network is trained on all of them together. Tar archives may be named instead of folders, also by
URL, such as "https://host/train-{{000000..000117}}.tar".

examples:
  ssd train my_pictures --out run                           from random weights, offline
  ssd train my_pictures --out run --weights imagenet        from a backbone's weights (a download)
  ssd train my_pictures --out run --network ssd300          the default on a GPU; on a CPU it takes hours
  ssd train my_pictures --out run --network ssdlite --size 512       a small, fast network on larger pictures
  ssd train coco --out run --only person,car                two of the classes; all others are background
  ssd train VOC2007 VOC2012 --split trainval --val-data VOC2007 --val-split test --out voc
  ssd train --out run --resume                              continue after Ctrl-C, with the same results
  ssd train my_pictures --out run --resume auto             start or continue, for schedulers that restart jobs""",
    )


def _flags(parser: argparse.ArgumentParser) -> None:
    from ssd.data import FORMATS

    layouts = paragraphs({format.FORMAT: format.LAYOUT for format in FORMATS})
    parser.description = (parser.description or "").format(layouts=layouts)
    parser.add_argument("data", nargs="*", metavar="DATA", help=DATA)
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--resume",
        nargs="?",
        choices=["auto"],
        const=True,
        default=False,
        metavar="auto",
        help="continue the run in --out with its own settings; auto: start a run if --out has none, else continue "
        "it; with auto, give DATA and settings each time, the same as at the start",
    )
    defaults = {"epochs": "depends on the number of pictures, or on --minutes", "width": "1, or that of the weights"}
    add_fields(parser.add_argument_group("settings of the run"), Settings, defaults=defaults)
    machine = add_machine_options(parser, bf16=False)  # bf16 and compile are settings of the run
    machine.add_argument(
        "--save-every",
        type=checked(float, not_negative),
        default=10.0,
        metavar="MINUTES",
        help="time between two checkpoints within an epoch, from which a killed run can continue; 0: only at the end "
        "of an epoch (default: %(default)g)",
    )


def _train(arguments: argparse.Namespace) -> int:
    from ssd.training.records import CURVE, CURVE_NUMBERS, METRICS
    from ssd.training.resuming import BEST, LAST, LENGTHS, LONGER
    from ssd.training.run import train

    loss, reading = fields_given(arguments, LossOptions), fields_given(arguments, ReadOptions)
    given = {name: value for name, value in fields_given(arguments, Settings).items() if name != "data"}
    if arguments.resume is True:
        if arguments.data or given or loss or reading:
            names = [f"--{name.replace('_', '-')}" for name in (*given, *loss, *reading)]
            extra = ["DATA", *names] if arguments.data else names
            longer = "" if given.keys().isdisjoint(LENGTHS) else f". {LONGER}"
            raise ValueError(f"--resume continues with the settings of the run; leave out {', '.join(extra)}{longer}")
        settings = None
    elif not arguments.data:
        raise ValueError("name at least one DATA folder (or --resume a run)")
    else:
        settings = Settings(tuple(arguments.data), **given, loss=loss, reading=ReadOptions(**reading))
    train(
        settings,
        arguments.out,
        resume=arguments.resume,
        given=["data", *given, *(f"loss.{name}" for name in loss), *(f"reading.{name}" for name in reading)],
        save_every=arguments.save_every,
        device=arguments.device,
        workers=arguments.workers,
    )
    print(f"wrote {Path(arguments.out) / BEST}, {LAST}, {CURVE}, {CURVE_NUMBERS} and {METRICS}")
    return 0
