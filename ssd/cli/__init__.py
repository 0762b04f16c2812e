"""The command line: ssd train | eval | detect | export | convert | convert-data | demo | info."""

from __future__ import annotations

import os

# How often a thread of torch looks whether the other threads have finished before it sleeps. By default GNU's OpenMP
# looks 300,000 times, which takes milliseconds: beside other busy processes, the threads then take the processor from
# each other (docs/recipes.md, "Busy machines"). The variable is read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import argparse
import io
import select
import shlex
import sys
from collections.abc import Sequence

from ssd.cli.arguments import Command, Parser
from ssd.cli.convert import add_convert
from ssd.cli.convert_data import add_convert_data
from ssd.cli.demo import add_demo
from ssd.cli.detect import add_detect
from ssd.cli.eval import add_eval
from ssd.cli.export import add_export
from ssd.cli.info import add_info
from ssd.cli.train import add_train
from ssd.runtime.text import printable
from ssd_ext._info import version_of


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command of `ssd`.

    Args:
        argv: the arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0 for success, 1 if some pictures failed, 2 for wrong input, 130 for Ctrl-C, 141 if the program
        that reads the output has ended, such as `head`.
    """
    # Characters that the output cannot encode are escaped, as on stderr. By default they raise an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    arguments.command_line = shlex.join(["ssd", *argv])
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"ssd {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, ImportError, MemoryError) as error:
        if os.environ.get("SSD_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            if arguments.command != "info":
                print(f"ssd {arguments.command}: stopped, because nobody reads its output any more", file=sys.stderr)
            return 141  # as a program that SIGPIPE ends
        lines = map(printable, (str(error) or "out of memory").split("\n"))  # several errors have a line each
        print(f"ssd {arguments.command}: error: " + "\n".join(lines), file=sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether the program that reads the output has ended; then drops what is left of the output."""
    if not hasattr(select, "poll"):  # on Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    ended = any(event & select.POLLERR for _, event in poll.poll(0))
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ssd",
        description="Train, evaluate and run SSD object detectors.",
        epilog="Start with `ssd demo`. `ssd train --help` describes how to train on your own pictures.",
    )
    parser.add_argument("--version", action="version", version=f"ssd-ext {version_of('ssd-ext')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Command)
    add_train(commands)
    add_eval(commands)
    add_detect(commands)
    add_export(commands)
    add_convert(commands)
    add_convert_data(commands)
    add_demo(commands)
    add_info(commands)
    return parser
