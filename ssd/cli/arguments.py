"""Code that several commands share: flags made from the fields of options, and loading of `--weights`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from ssd.networks import DEFAULT
from ssd.options import LARGEST_OVERLAP, OVERLAP, ReadOptions
from ssd.runtime.text import printable
from ssd.training.recipes import RECIPES
from ssd.training.settings import VARIANCES, Settings, positive
from ssd_ext import DetectionOptions, LossOptions
from ssd_ext._checks import not_negative

if TYPE_CHECKING:  # so that `ssd --help` does not import the detector
    from ssd.inference.detector import Detector
    from ssd.inference.results import Info

Value = TypeVar("Value")

DATA = "folders, or tar archives, of annotated pictures; see ssd train --help for their layouts"
WEIGHTS = (  # the help of --weights
    "a checkpoint such as run/best.pt, a file written by ssd export, weights of another project (see ssd convert), "
    "coco (torchvision's SSD300), coco:ssdlite320 (torchvision's SSDlite), or a file of the Hugging Face Hub "
    "(hf://owner/name or hf://owner/name/file)"
)

MERGING = (
    "tiles",
    "overlap",
    "flip",
    "class_agnostic",
)  # flags that change what a detector does after `Detector.predict`


class Parser(argparse.ArgumentParser):
    """A parser that takes only whole names of flags, and whose errors are a line or two, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses like the base class; an unknown argument is an error of this parser, and not of the one above."""
        args = list(sys.argv[1:] if args is None else args)
        own = args[: args.index("--")] if "--" in args else args
        if self._subparsers is not None:  # what follows the command is checked by its own parser
            own = list(takewhile(lambda arg: arg.startswith("-"), own))
        if not {"-h", "--help"}.intersection(own):
            self._check_names(own)  # before the base class misses the flag that is misspelt
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument: {' '.join(unknown)}")
        return known, []

    def _check_names(self, args: Sequence[str]) -> None:
        """Ends with an error if there is no flag of a name, and tells the flags that are like it."""
        flags = list(self._option_string_actions)
        for arg in args:
            name = arg.split("=")[0]
            if name.startswith("--") and name.strip("-") and " " not in arg and name not in flags:
                longer = [flag for flag in flags if flag.startswith(name)]
                like = longer[:3] or get_close_matches(name, flags, n=1, cutoff=0.7)
                asked = f"; did you mean {' or '.join(like)}?" if like else ""
                self.error(f"there is no option {name}{asked}")

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, and ends the process with exit code 2."""
        self.exit(2, f"{self.prog}: error: {printable(message)}\nsee {self.prog} --help\n")


class Command(Parser):
    """A parser that adds its flags when it is first used.

    The defaults of the flags come from modules that are slow to import. So each command imports only its own.

    Attributes:
        flags: adds the flags to the parser; None once it was called.
    """

    flags: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Adds the flags, then parses like the base class."""
        if self.flags is not None:
            flags, self.flags = self.flags, None
            flags(self)
        return super().parse_known_args(args, namespace)


Commands: TypeAlias = "argparse._SubParsersAction[Command]"  # quoted: the class is not generic at run time


def command(
    commands: Commands,
    run: Callable[[argparse.Namespace], int],
    flags: Callable[[argparse.ArgumentParser], None],
    summary: str,
    description: str,
) -> None:
    """Adds a command to `ssd`, named after the function that runs it.

    Args:
        commands: the subcommands of the parser of `ssd`.
        run: runs the command and returns the exit code; its name is the command's, with "_" in front and for "-".
        flags: adds the command's flags to its parser.
        summary: one line for `ssd --help`.
        description: the text for `ssd COMMAND --help`.
    """
    raw = argparse.RawDescriptionHelpFormatter
    name = run.__name__.removeprefix("_").replace("_", "-")
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=raw)
    parser.set_defaults(run=run)
    parser.flags = flags


def paragraphs(texts: Mapping[str, str]) -> str:
    """Formats a table for a description: each name, and beside it the text about it, in lines of 120 characters."""
    width = max(map(len, texts)) + 4
    return "\n".join(
        textwrap.fill(text, 120, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width)
        for name, text in texts.items()
    )


def checked(kind: Callable[[str], Value], *checks: Callable[[Value], None]) -> Callable[[str], Value]:
    """Makes a `type` for argparse that checks the value and reports why it is wrong.

    Args:
        kind: converts the text, such as `int` or `float`.
        checks: functions that raise ValueError for a value out of range.

    Returns:
        A function from text to value, which raises `argparse.ArgumentTypeError` if a check fails.
    """

    def parse(text: str) -> Value:
        value = kind(text)
        try:
            for check in checks:
                check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    parse.__name__ = kind.__name__  # argparse shows this name if the text cannot be converted
    return parse


def add_fields(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    options: Any,
    only: Sequence[str] = (),
    defaults: dict[str, Any] | None = None,
) -> None:
    """Adds one flag for each field of `Settings` or of a named tuple of options.

    The flag's type, default and help come from the field. A flag that is not given is absent from the parsed
    arguments, so no value has to mean "not given".

    Args:
        parser: a parser, or a group of one.
        options: the class `Settings`, or a named tuple whose values are the defaults.
        only: names of the fields to add; empty: all.
        defaults: for some fields, the default that the help states instead of the field's own.
    """
    hints = get_type_hints(options if isinstance(options, type) else type(options), include_extras=True)
    for name in only or [n for n in hints if n not in VARIANCES and n != "data"]:
        kind, text, *checks = get_args(hints[name])
        if kind is ReadOptions or name == "loss":
            nested = ReadOptions() if kind is ReadOptions else LossOptions()
            add_fields(parser, nested, [n for n in nested._fields if n not in VARIANCES])
            continue
        if default := _default_text((defaults or {}).get(name, getattr(options, name)), name):
            text += f" (default: {default})"
        settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif name in ("classes", "only"):
            settings |= {
                "type": checked(class_names, *checks),
                "metavar": "CLASSES",
                "help": f"{text}: a list separated by commas, or a file with one name per line",
            }
        elif name == "size_limits":
            settings |= {"type": checked(_numbers, *checks), "metavar": "SMALL,LARGE"}
        elif get_origin(kind) is tuple:
            settings |= {"nargs": "+", "metavar": "DATA"}
        else:
            settings["type"] = checked(kind, *checks)
            if name == "skip_unreadable":
                settings |= {"nargs": "?", "const": 0.01, "metavar": "SHARE"}
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)


def _default_text(default: Any, name: str) -> str:
    """A default as the help states it, with the value of each recipe if recipes differ; empty if there is none."""
    recipes: dict[Any, list[str]] = {}
    for recipe in RECIPES:
        settings = _settings_of(recipe)
        value = getattr(settings.loss if name in LossOptions._fields else settings, name, default)
        recipes.setdefault(value, []).append(recipe)
    if name != "recipe" and len(recipes) > 1:
        return "; ".join(
            f"{'on' if value is True else value} with the recipe {' or '.join(names)}"
            for value, names in recipes.items()
            if value is not None
        )
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None or default is False else str(default)


@cache
def _settings_of(recipe: str) -> Settings:
    """The settings of a recipe, for the network that has every option."""
    chosen: dict[str, Any] = {"recipe": recipe, "network": DEFAULT}
    return Settings(("",), **chosen)


def _numbers(text: str) -> tuple[float, ...]:
    """Parses numbers separated by commas."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers separated by commas, got {text!r}") from None


def fields_given(arguments: argparse.Namespace, options: type) -> dict[str, Any]:
    """The options that were given on the command line.

    Args:
        arguments: parsed flags that `add_fields` added.
        options: the class of the options, `Settings` or a named tuple.

    Returns:
        Dict from the name of each field that was given to its value.
    """
    return {name: value for name, value in vars(arguments).items() if name in get_type_hints(options)}


def merging_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that change what a detector does after `Detector.predict`, and were given on the command line.

    Args:
        arguments: parsed flags that `add_inference_options` added.

    Returns:
        Dict from the name of each option of `ssd.Detector` that was given to its value.
    """
    given = {name: getattr(arguments, name) for name in MERGING}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def class_names(text: str) -> tuple[str, ...]:
    """Parses a list of classes: names separated by commas, or the path of a file with one name per line.

    Raises:
        argparse.ArgumentTypeError: the file is not text.
    """
    from ssd.runtime.text import read_lines

    try:
        is_file = Path(text).is_file()
    except OSError:  # many names together are too long for a file name
        is_file = False
    try:
        names = read_lines(Path(text)) if is_file else text.split(",")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tuple(name.strip() for name in names if name.strip())


def add_machine_options(
    parser: argparse.ArgumentParser, *, workers: str = "processes that read pictures", bf16: bool = True
) -> argparse._ArgumentGroup:
    """Adds the flags of the machine: `--device`, `--workers` and, with `bf16`, `--bf16` and `--compile`.

    Args:
        parser: the parser of a command.
        workers: what the workers are, for the help.
        bf16: also add `--bf16` and `--compile`.

    Returns:
        The group that the flags are in.
    """
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: a GPU if there is one)")
    default = "(default: one per core, at most 4, or 16 with a GPU)"
    group.add_argument("--workers", type=checked(int, not_negative), help=f"{workers} {default}")
    if bf16:
        add_fields(group, Settings, only=["bf16", "compile"])
    return group


def add_inference_options(parser: argparse.ArgumentParser, defaults: DetectionOptions) -> argparse._ArgumentGroup:
    """Adds the flags of detection: `--batch-size` and one for each field of `DetectionOptions`.

    Args:
        parser: the parser of a command.
        defaults: the values that the help states as defaults.

    Returns:
        The group that the flags are in.
    """
    group = parser.add_argument_group("detections")
    pictures = "pictures, or tiles, per forward pass (default: %(default)s)"
    group.add_argument("--batch-size", type=checked(int, positive), default=8, help=pictures)
    help = (
        "also look at tiles of the picture, SIDE pixels wide and high (default without SIDE: the input size of the "
        "network), and merge the detections; for pictures whose objects would be too small"
    )
    group.add_argument("--tiles", type=checked(int, not_negative), nargs="?", const=0, metavar="SIDE", help=help)
    help = f"least overlap of neighbouring tiles, as a fraction of SIDE, at most {LARGEST_OVERLAP} (default: {OVERLAP})"
    group.add_argument("--overlap", type=float, metavar="FRACTION", help=help)
    help = (
        "also look at each picture, and each tile, mirrored left to right, and join the detections by weighted box "
        "fusion; boxes fit better, and it takes more than twice the time"
    )
    group.add_argument("--flip", action="store_true", help=help)
    help = (
        "detections of different classes suppress each other too: at the end, NMS with --max-overlap runs among all "
        "detections of a picture"
    )
    group.add_argument("--class-agnostic", action="store_true", help=help)
    add_fields(group, defaults)
    return group


def open_detector(arguments: argparse.Namespace, defaults: DetectionOptions) -> Detector:
    """Loads the detector that `--weights` names, with the options on the command line.

    From then on, the process keeps the memory that it frees (`ssd.runtime.memory`).

    Args:
        arguments: parsed flags, with those of `add_machine_options` and `add_inference_options`; perhaps with the names
            `only` and the scores `thresholds`.
        defaults: options of detection that are used if neither a flag nor the file of the weights sets them.

    Raises:
        FileNotFoundError, ValueError, OSError: see `ssd.Detector.load`.
    """
    from ssd.inference.detector import Detector
    from ssd.runtime.memory import keep_freed_memory

    if arguments.overlap is not None and arguments.tiles is None:
        raise ValueError("--overlap is the overlap of tiles: add --tiles, or leave it out")
    keep_freed_memory()
    return Detector.load(
        arguments.weights,
        defaults=defaults,
        device=arguments.device,
        bf16=getattr(arguments, "bf16", None),
        compile=getattr(arguments, "compile", False),
        only=getattr(arguments, "only", None),
        thresholds=getattr(arguments, "thresholds", None),
        **merging_given(arguments),
        **fields_given(arguments, DetectionOptions),
    )


def made_with(arguments: argparse.Namespace, detector: Detector) -> Info:
    """Describes what `ssd detect` detects with, see `ssd.inference.results.made_by`."""
    from ssd.inference.results import made_by

    chosen = arguments.weights, detector.options, arguments.only, arguments.thresholds
    return made_by(
        *(*chosen, detector.tiles, detector.overlap), flip=detector.flip, class_agnostic=detector.class_agnostic
    )


def say(text: object) -> None:
    """Prints a line that may have names from files, whose control characters are escaped."""
    print(printable(text))
