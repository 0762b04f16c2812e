"""What several commands share: flags made from options, and the weights that they name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ssd.training.recipes import RECIPES
from ssd.training.settings import VARIANCES, Settings, not_negative, positive
from ssd_ext import DetectionOptions, LossOptions

if TYPE_CHECKING:  # `ssd --help` imports none of them
    from ssd.inference.detector import Detector

DATA = "folders in Pascal VOC, COCO or YOLO layout"
WEIGHTS = (
    "a checkpoint such as run/best.pt, a file of ssd export, weights of another project (see ssd convert), or coco"
)


class Command(argparse.ArgumentParser):
    """A parser whose flags are added when it is used: what they take their defaults from is slow to import."""

    flags: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, *args, **options):
        if self.flags is not None:
            flags, self.flags = self.flags, None
            flags(self)
        return super().parse_known_args(*args, **options)


def command(
    commands,
    run: Callable[[argparse.Namespace], int],
    flags: Callable[[argparse.ArgumentParser], None],
    summary: str,
    description: str,
) -> None:
    """Adds a command that is named after the function that runs it.

    Args:
        commands: of the parser of `ssd`, whose parsers are `Command`s.
        run: runs it; returns the exit code.
        flags: adds its flags to its parser.
        summary, description: for the help.
    """
    raw = argparse.RawDescriptionHelpFormatter
    name = run.__name__.removeprefix("_")
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=raw)
    parser.set_defaults(run=run)
    parser.flags = flags


def checked(kind: type, *checks: Callable[[Any], None]) -> Callable[[str], Any]:
    """A type of argparse whose errors say what is wrong."""

    def parse(text: str) -> Any:
        value = kind(text)
        try:
            for check in checks:
                check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no such number
    return parse


def add_fields(parser, options: Any, only: Sequence[str] = (), defaults: dict[str, Any] | None = None) -> None:
    """One flag for each field of `Settings` or of a named tuple of options, from the field's type, default and meaning.

    A flag that is not given is absent from the parsed arguments, so that no value stands for "not given".

    Args:
        parser: a parser or a group of one.
        options: `Settings`, or the named tuple, whose values are the defaults.
        only: these fields; by default all.
        defaults: other defaults to tell of.
    """
    hints = get_type_hints(options if isinstance(options, type) else type(options), include_extras=True)
    for name in only or [n for n in hints if n not in VARIANCES and n != "data"]:
        kind, text, *checks = get_args(hints[name])
        if name == "loss":
            add_fields(parser, LossOptions(), [n for n in LossOptions._fields if n not in VARIANCES])
            continue
        if default := _told((defaults or {}).get(name, getattr(options, name)), name):
            text += f" (default: {default})"
        settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif name == "classes":
            settings |= {"type": class_names, "help": f"{text}, separated by commas, or a file of one per line"}
        elif get_origin(kind) is tuple:
            settings |= {"nargs": "+", "metavar": "DATA"}
        else:
            settings["type"] = checked(kind, *checks)
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)


def _told(default: Any, name: str) -> str:
    """How a help text tells of a default: where recipes differ, with theirs."""
    recipes: dict[Any, list[str]] = {}
    for recipe in RECIPES:
        settings = Settings(("",), recipe=recipe)
        value = getattr(settings.loss if name in LossOptions._fields else settings, name, default)
        recipes.setdefault(value, []).append(recipe)
    if name != "recipe" and len(recipes) > 1:
        return "; ".join(f"{', '.join(names)} {value}" for value, names in recipes.items() if value is not None)
    return "" if default is None or default is False else str(default)


def fields_given(arguments: argparse.Namespace, options: type) -> dict[str, Any]:
    """The fields of the options that have a flag on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in get_type_hints(options)}


def class_names(text: str) -> tuple[str, ...]:
    from ssd.runtime.text import read_lines

    try:
        is_file = Path(text).is_file()
    except OSError:  # many names are too long for that of a file
        is_file = False
    try:
        names = read_lines(Path(text)) if is_file else text.split(",")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tuple(name.strip() for name in names if name.strip())


def add_machine_options(
    parser: argparse.ArgumentParser, *, workers: str = "processes that read pictures", bf16: bool = True
) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: a GPU if there is one)")
    default = "(default: one per core, at most 4)"
    group.add_argument("--workers", type=checked(int, not_negative), help=f"{workers} {default}")
    if bf16:
        add_fields(group, Settings, only=["bf16", "compile"])
    return group


def add_inference_options(parser: argparse.ArgumentParser, defaults: DetectionOptions) -> None:
    group = parser.add_argument_group("detections")
    pictures = "pictures per forward pass (default: %(default)s)"
    group.add_argument("--batch-size", type=checked(int, positive), default=8, help=pictures)
    add_fields(group, defaults)


def open_detector(arguments: argparse.Namespace, defaults: DetectionOptions) -> Detector:
    """What --weights and the options on the command line ask for."""
    from ssd.inference.detector import Detector

    return Detector.load(
        arguments.weights,
        defaults=defaults,
        device=arguments.device,
        bf16=getattr(arguments, "bf16", None),
        compile=getattr(arguments, "compile", False),
        **fields_given(arguments, DetectionOptions),
    )
