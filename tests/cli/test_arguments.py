"""Options of the commands: each stands in one place, and a value out of range is named."""

import argparse
import re
from typing import get_args, get_type_hints

import pytest

from ssd.cli import main
from ssd.cli.arguments import add_fields, class_names
from ssd.options import ReadOptions
from ssd.training.recipes import RECIPES
from ssd.training.settings import VARIANCES, Settings
from ssd_ext import DetectionOptions, LossOptions


def test_many_names_are_no_file():
    assert len(class_names(",".join(f"some class {i}" for i in range(80)))) == 80


@pytest.mark.parametrize(
    "wrong",
    [
        *[["train", "d", "--out", "o", *flag.split()] for flag in ("--epochs 0", "--lr 0", "--width 0", "--epochs -1")],
        *[["train", "d", "--out", "o", *flag.split()] for flag in ("--batch-size 0", "--lr nan", "--warmup -1")],
        *[["train", "d", "--out", "o", *flag.split()] for flag in ("--schedule x", "--loc-loss x", "--workers -1")],
        *[["detect", "d", "--weights", "w", "--out", "o", "--batch-size", n] for n in ("-1", "0", "1.5")],
        *[["eval", "d", "--weights", "w", "--batch-size", "-1"], ["demo", "--epochs", "0"], ["demo", "--width", "-1"]],
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_named(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(wrong)
    assert stop.value.code == 2
    assert f"argument {wrong[-2]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("train d --out o --epochss 1", "there is no option --epochss; did you mean --epochs?"),
        ("train d --out o --epoch 1", "there is no option --epoch; did you mean --epochs?"),
        ("train d --ouut o", "there is no option --ouut; did you mean --out?"),
        ("train d --out o --val=x", "there is no option --val; did you mean --val-split or --val-data?"),
        ("detect d --out o --network x", "there is no option --network"),
        ("train d --out o --lr 1e-3x", "argument --lr: invalid float value: '1e-3x'"),
        *(
            (f"{command} --classes ,", "argument --classes: must be a list of at least one class, got ()")
            for command in ("train d --out o", "convert a b", "convert-data a b --format yolo")
        ),
        ("train d", "the following arguments are required: --out"),
        ("convert a b c", "unknown argument: c"),
    ],
)
def test_a_mistake_is_one_line_of_the_command(arguments, error, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    command = arguments.split()[0]
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"ssd {command}: error: {error}\nsee ssd {command} --help\n"


def test_a_mistake_in_the_command_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["trian"])
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("ssd: error: argument COMMAND: invalid choice: 'trian'")
    assert last == "see ssd --help"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--versio"], "ssd: error: there is no option --versio; did you mean --version?"),
        (["--foo", "info"], "ssd: error: there is no option --foo"),
        (["info", "a", "--=3"], "ssd info: error: unknown argument: --=3"),
    ],
)
def test_flags_before_and_behind_the_command(arguments, error, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.splitlines()[0] == error


def test_help_and_version_are_shown_in_any_place(capsys):
    for arguments, shown in ((["--version"], "ssd-ext "), (["info", "--speeed", "-h"], "usage: ssd info")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(shown)


def test_values_may_look_like_flags(shapes, capsys):
    """After "--" everything is a value, and so is a text with blanks."""
    assert main(["info", "--", "--no-such-folder"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["info", str(shapes), "--only", "--a b"]) == 2
    assert "there is no class '--a b'" in capsys.readouterr().err


def test_every_option_is_a_flag(capsys):
    """With its meaning and its default, from the one place where they stand."""
    for command, options in (
        ("train", (Settings, LossOptions, ReadOptions)),
        ("eval", (DetectionOptions, ReadOptions)),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for name, hint in (pair for kind in options for pair in get_type_hints(kind, include_extras=True).items()):
            flag = re.search(rf"--{name.replace('_', '-')}[ ,]", shown)
            assert bool(flag) == (name not in (*VARIANCES, "data", "loss", "reading")), name
            assert not flag or get_args(hint)[1].replace("-", "") in shown.replace("-", ""), name
        told = (
            "(default: 0.45)"
            if command == "eval"
            else "(default: 0.03 with the recipe scratch; 0.001 with the recipe tutorial)"
        )
        assert told in shown


def test_the_defaults_of_all_flags_are_found_with_the_settings_of_each_recipe(monkeypatch):
    made, check = [], Settings.__post_init__
    monkeypatch.setattr(Settings, "__post_init__", lambda self: made.append(self.recipe) or check(self))
    add_fields(argparse.ArgumentParser(), Settings)
    assert len(made) <= len(RECIPES)  # not once for each flag, which took most of the start of `ssd train`
