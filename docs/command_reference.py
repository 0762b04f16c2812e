"""A Sphinx extension: the directive `commands` describes each command of `ssd` and its flags, from its parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from itertools import groupby

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ssd.cli import _parser


def reference() -> Iterator[str]:
    """The lines of the reference of all commands, in reST."""
    choice = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {action.dest: action.help for action in choice._get_subactions()}
    yield from (f"* `ssd {name} <#ssd-{name}>`__: {_prose(text)}" for name, text in summaries.items())
    for name, parser in choice.choices.items():
        parser.flags(parser)  # which the parser does itself when it is first used
        title = f"ssd {name}"
        needed = [action for action in parser._actions if action.required or not action.option_strings]
        usage = parser._get_formatter()._format_usage(None, needed, [], "").strip()
        yield from ("", title, "-" * len(title), "", ".. code-block:: none", "")
        yield from (f"   {usage.replace(title, title + ' [OPTIONS]', 1)}", "")
        yield from _described(parser.description or "")
        yield from (f".. program:: {title}", "")
        for group in parser._action_groups:
            if actions := [action for action in group._group_actions if "--help" not in action.option_strings]:
                yield from (f".. rubric:: {group.title.capitalize()}", "")
            for action in actions:
                yield from _flag(parser, action)


def _flag(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    """A flag or an argument with its help, default and choices."""
    text = (form := parser._get_formatter())._expand_help(action)
    if "default" not in text and action.default not in (None, False, argparse.SUPPRESS):
        text += f" (default: {action.default})"
    if action.required and action.option_strings:
        text += " (required)"
    if action.choices is not None and action.metavar is not None:
        text += f" (choices: {', '.join(map(str, action.choices))})"
    yield from (f".. option:: {form._format_action_invocation(action)}", "", f"   {_prose(text)}", "")


def _described(text: str) -> Iterator[str]:
    """A description in reST: indented lines as they stand, the others as paragraphs."""
    for indented, lines in groupby(text.split("\n"), key=lambda line: line[:2].isspace() if line.strip() else None):
        if indented:
            yield from (".. code-block:: none", "", *(f"   {line[2:]}" for line in lines))
        elif indented is False:
            paragraph = " ".join(lines)
            yield _prose("Examples:" if paragraph == "examples:" else paragraph)
        yield ""


def _prose(text: str) -> str:
    """Escapes what reST takes for markup. Code in backticks stays code, and the name of a page becomes a link to it."""
    parts = [*re.split(r"`([^`]+)`", text), ""]
    escaped = (re.sub(r"([\\*_|<>]|:(?=//))", r"\\\1", part) for part in parts[::2])
    linked = [re.sub(r"docs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", part.replace(r"\_", "_")) for part in escaped]
    return "".join(part + f"``{code}``" * bool(code) for part, code in zip(linked, parts[1::2], strict=True))


class Commands(SphinxDirective):
    """The directive `commands`, without arguments."""

    def run(self) -> list[nodes.Node]:
        """Returns the reference in the place of the directive."""
        return self.parse_text_to_nodes("\n".join(reference()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
