"""The site that Sphinx makes of docs/, built once without its notebooks: a warning fails the build."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote, urlsplit

import pytest
from own_process import PATHS

from ssd.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
OF_OTHERS = {"ssd.py", "ssd.pytorch", "ssd.structures.container.Container"}  # names of other projects on our pages
INTERNAL = ("ssd.runtime", "ssd.__main__")  # what a page may name without a place in the reference
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "furo", "myst_nb"))), reason="needs pip install 'ssd-ext[docs]'"
)


@dataclass
class Page(HTMLParser):
    """A built page: its anchors, links and what it loads."""

    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    text: str = ""

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id", ""))
        (self.links if tag == "a" else self.loaded).update(
            value for name, value in attrs if name in ("href", "src", "srcset", "data", "poster") and value
        )

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-D", "nb_execution_mode=off"]
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    environment.pop("GITHUB_REPOSITORY", None)
    done = subprocess.run(
        [*command, "-d", str(tmp_path_factory.mktemp("doctrees")), str(ROOT / "docs"), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    pages = defaultdict(Page)
    for path in site.rglob("*.html"):
        pages[path.relative_to(site)].feed(path.read_text())
    return pages


def test_the_navigation_has_every_page(pages):
    built = {path.with_suffix(".html") for path in SOURCES}
    assert built <= set(pages)
    linked = {Path(urlsplit(link).path) for link in pages[Path("index.html")].links}
    assert built - {Path("index.html")} <= linked


def test_internal_links_and_anchors_lead_somewhere(site, pages):
    for path, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (site / path.parent / unquote(parts.path)).resolve() if parts.path else site / path
            assert target.is_file(), (path, link)
            if parts.fragment and path.parts[0] != "_modules":  # whose links back may name another module
                assert unquote(parts.fragment) in pages[target.relative_to(site)].ids, (path, link)


@pytest.fixture(scope="module")
def described(pages):
    """The names in the reference."""
    return {anchor for path, page in pages.items() if path.parts[0] == "reference" for anchor in page.ids}


@pytest.mark.parametrize("package", ["ssd", "ssd_ext", "ssd.data", "ssd.export", "ssd.boxes"])
def test_every_public_name_is_in_the_reference(described, package):
    assert {f"{package}.{name}" for name in import_module(package).__all__} <= described


@pytest.mark.parametrize("page", [*SOURCES, Path("../README")], ids=str)
def test_every_name_that_a_page_uses_is_in_the_reference(described, page):
    """Functions and classes that a page imports or names, under this name or that of their module."""
    text = (ROOT / "docs" / page).with_suffix(".md").read_text()
    used = set(
        re.findall(r"`((?:ssd|ssd_ext)(?:\.[A-Za-z_]\w*)+)\(?[^`\n]*`", re.sub(r"```.*?```", "", text, flags=re.S))
    )
    for module, names in re.findall(r"^ *from ((?:ssd|ssd_ext)\b[\w.]*) import ([\w, ]+)", text, re.M):
        used |= {f"{module}.{name.split()[0]}" for name in names.split(",")}
    for name in used - OF_OTHERS:
        found = resolve_name(name)
        if (isinstance(found, type) or inspect.isfunction(found)) and not found.__module__.startswith(INTERNAL):
            assert {name, f"{found.__module__}.{found.__qualname__}"} & described, name


def test_every_flag_is_in_the_reference(pages):
    page = pages[Path("reference/commands.html")]
    text = " ".join(page.text.split())
    commands = next(action for action in _parser()._actions if action.dest == "command").choices
    assert len(commands) == 8
    for name, command in commands.items():
        command.flags(command)
        for action in command._actions:
            for flag in set(action.option_strings) - {"-h", "--help"}:
                assert f"cmdoption-ssd-{name}-{flag.lstrip('-')}" in page.ids, (name, flag)
                if action.choices:
                    choices = ",".join(map(str, action.choices)), ", ".join(map(str, action.choices))
                    assert any(form in text for form in choices), (name, flag)
            if default := re.search(r"\(default: [^`%()]+\)", action.help or ""):
                assert " ".join(default[0].split()) in text, (name, action.dest)


def test_the_search_knows_every_page_and_the_names(site):
    index = (site / "searchindex.js").read_text()
    known = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", index, re.S)[1])
    assert {path.as_posix() for path in SOURCES} <= set(known["docnames"])
    assert {"match_priors", "Detector"} <= {name for names in known["objects"].values() for *_, name in names}


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert not [link for link in page.loaded if re.match(r"(https?:)?//", link)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path
