"""What the documents, docstrings and help texts name is there: files, links, commands, flags, targets and names."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from ssd.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # which tells of names that are gone
SOURCES = sorted(path for package in ("ssd", "ssd_ext") for path in (ROOT / package).rglob("*.py"))
COMMANDS = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
for command in COMMANDS.values():
    command.flags(command)
FLAGS = {name for command in COMMANDS.values() for name in command._option_string_actions}
SCRIPTS = "".join(path.read_text() for folder in ("tools", "benchmarks") for path in (ROOT / folder).glob("*.py"))
FENCE = re.compile(r"^ *```([^`\n]*)\n(.*?)^ *```", re.M | re.S)
FOLDERS = ("ssd", "ssd_ext", "csrc", "tests", "tools", "benchmarks", "docs", "examples")


def fenced(text):
    """The lines of the code blocks that are for a shell, with continued ones joined."""
    blocks = [code for language, code in FENCE.findall(text) if language in ("", "bash", "sh", "console")]
    return [line.strip() for code in blocks for line in re.sub(r"\\\n\s*", " ", code).splitlines()]


def inline(text):
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def docstrings(path):
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in ast.walk(tree) if isinstance(node, kinds) and (doc := ast.get_docstring(node))]


def ids(path):
    return str(path.relative_to(ROOT))


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.M)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("path", CURRENT, ids=ids)
def test_lines_are_short(path):
    """Of prose: a row of a table, a link and generated text are as long as they are."""
    if path.name == "performance.md":
        path = ROOT / "benchmarks" / path.name  # which is what people write
    text = re.sub(r"<!-- written by .*?<!-- end -->", "", FENCE.sub("", path.read_text()), flags=re.S)
    long = [line for line in text.splitlines() if len(line) >= 120 and not re.match(r"\||!?\[|\s*\S+$", line)]
    assert not long


@pytest.mark.parametrize("path", CURRENT, ids=ids)
def test_files_are_there(path):
    named = [word for code in inline(path.read_text()) for word in code.split()]
    for word in named + [word for line in fenced(path.read_text()) for word in line.split()]:
        if path.name == "switching.md" and word.startswith("ssd/"):
            continue  # a file of another project
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./<>*{{}},]+", word) and not word.endswith((".so", ".xml")):
            pattern = re.sub(r"<[^>]+>|\{[^}]+\}", "*", word.split("::")[0]).rstrip("/.,")
            assert list(ROOT.glob(pattern)), word


def check_ssd(line):
    """A whole command of `ssd`."""
    words = shlex.split(line, comments=True)
    arguments = words[words.index("ssd") + 1 :] if "ssd" in words else words[1:]
    arguments = [word for word in arguments if word not in ("...", "&")]
    if "--help" not in arguments:
        _parser().parse_args(arguments)


@pytest.mark.parametrize("path", CURRENT, ids=ids)
def test_commands_are_understood(path):
    makefile = (ROOT / "Makefile").read_text()
    text = path.read_text()
    for line in fenced(text):
        line = line.removeprefix(".venv/bin/")
        if re.match(r"ssd |torchrun .*-m ssd |python3? -m ssd ", line):
            check_ssd(line)
    for code in [*fenced(text), *inline(text)]:
        for target in re.findall(r"^make ([a-z][a-z-]*)", code):
            assert re.search(rf"^{target}:", makefile, re.M), code
        if script := re.search(r"((?:tools|benchmarks|examples)/\w+\.py)", code):
            source = (ROOT / script[1]).read_text()
            for flag in re.findall(r" (--[a-z][a-z-]+)", code):
                assert f'"{flag}"' in source, code
        if mention := re.match(r"ssd ([a-z-]+)(.*)", code):
            assert mention[1] in COMMANDS, code
            for flag in re.findall(r"(--[a-z][\w-]+)", mention[2]):
                assert flag in COMMANDS[mention[1]]._option_string_actions, code
        if flag := re.match(r"(--[a-z][a-z-]+)( |$)", code):
            known = {name for command in COMMANDS.values() for name in command._option_string_actions}
            scripts = "".join(p.read_text() for folder in ("tools", "benchmarks") for p in (ROOT / folder).glob("*.py"))
            assert flag[1] in known or f'"{flag[1]}"' in scripts or flag[1] in makefile, code


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_understood(command):
    examples = re.findall(rf"^  (ssd {command} .*)$", COMMANDS[command].epilog or "", re.M)
    examples += re.findall(rf"^  (ssd {command} .*)$", COMMANDS[command].description or "", re.M)
    assert examples or command in ("demo", "export", "convert"), "no examples"
    for example in examples:
        check_ssd(re.split(r" {2,}", example)[0])


def resolve(name):
    """Imports as much of a dotted name as is a module, and gets the rest."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            fields = {*getattr(found, "__annotations__", ()), *vars(found)} if isinstance(found, type) else ()
            found = getattr(found, part) if part not in fields or hasattr(found, part) else None
        return
    raise AssertionError(name)


@pytest.mark.parametrize("path", [*CURRENT, *SOURCES], ids=ids)
def test_names_are_there(path):
    texts = docstrings(path) if path.suffix == ".py" else [path.read_text()]
    for code in (code for text in texts for code in inline(text)):
        if match := re.match(r"(?!ssd\.py)(?:ssd|ssd_ext)(?:\.[A-Za-z_]\w*)+", code):  # ssd.py, ssd.pytorch: of others
            resolve(match[0])
