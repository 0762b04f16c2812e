"""The settings of the documentation site, which `make docs` builds with Sphinx into build/docs."""

from __future__ import annotations

import inspect
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.inspect import object_description, stringify_signature

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))  # for the extension beside this file
# For the modules of the tutorial's pages, which run in an empty folder.
os.environ["PYTHONPATH"] = os.pathsep.join([str(DOCS / "tutorial"), *filter(None, [os.environ.get("PYTHONPATH")])])

PAGE_SECONDS = 120
# Pages whose text is a file in the folder above.
PAGES = {"contributing": "CONTRIBUTING.md", "changes": "CHANGELOG.md"}
# The packages whose public names must all be in the reference: those in their `__all__`.
PACKAGES = ("ssd", "ssd_ext", "ssd.data", "ssd.export", "ssd.boxes")

project = "ssd_ext"
author = "ssd-ext contributors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "command_reference"]
smartquotes = False  # they would turn -- of flags into dashes
highlight_language = "none"  # of blocks without a language, which are for a shell
nitpicky = True
default_role = "py:obj"

html_theme = "furo"
html_title = "ssd_ext"
html_copy_source = False
html_show_copyright = False
# The address of the repository, "owner/name" on GitHub: for the links to the source of each page.
if repository := os.environ.get("GITHUB_REPOSITORY"):
    html_theme_options = {
        "source_repository": f"https://github.com/{repository}/",
        "source_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "source_directory": "docs/",
    }

myst_heading_anchors = 4  # the same anchors as on GitHub
nb_execution_mode = "force"  # a page depends on the package, which a cache of results does not see
nb_execution_timeout = PAGE_SECONDS  # seconds for a cell
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # so that pages may write files
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# No inventory of another package is read, so that the site can be built without internet.
nitpick_ignore_regex = [
    ("py:class", r"(torch|torchvision|numpy|np|PIL|collections|io|os|pathlib)\..+"),  # of other packages
    ("py:class", r"ssd\..+|[A-Z]\w+"),  # types of arguments that are not public, and their short names
]

logger = logging.getLogger(__name__)


def link_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Gives a page of `PAGES` the text of its file, and makes links to Markdown files outside docs/ work on the site.

    A link to a file of `PAGES` leads to its page, and one to another file offers the file as a download.
    """
    file = DOCS / (app.env.doc2path(docname, base=False))
    text, folder = source[0], file.parent
    if docname in PAGES:
        text, folder = (ROOT / PAGES[docname]).read_text(), ROOT

    def link(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if not target.is_file() or (target.is_relative_to(DOCS) and folder == file.parent):
            return match[0]
        name = next((page + ".md" for page, other in PAGES.items() if target == ROOT / other), None)
        scheme = "path:" if name is None and target.suffix == ".md" and not target.is_relative_to(DOCS) else ""
        return f"]({scheme}{os.path.relpath(DOCS / name if name else target, file.parent)}"

    source[0] = re.sub(r"\]\(([\w./-]+)(?=[#)])", link, text)


def plain_returns(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keeps napoleon from taking the text before the first colon of a result or a property for its type."""
    for n, line in enumerate(["Returns:" if what == "property" else "", *lines[:-1]]):
        if line.strip() in ("Returns:", "Yields:"):
            lines[n] = re.sub(r"^( *)", r"\1: ", lines[n])


def describe_fields(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Links the pages that are named, and adds the fields that are described as in `Annotated[float, "a threshold"]`.

    Of several attributes with one description, Sphinx takes all but the last for a type if there is a space.
    """
    lines[:] = [re.sub(r"docs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", line) for line in lines]
    lines[:] = [re.sub(r"^:ivar [^:]+:", lambda names: names[0].replace(", ", ","), line) for line in lines]
    for field, (_, text) in annotated_fields(obj).items():
        lines += [f":ivar {field}: {text}"]


def short_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None, result: str | None
) -> tuple[str | None, str | None] | None:
    """Leaves the texts in annotations out of a signature, and writes options as a call with what is not default."""
    if fields := annotated_fields(obj):
        parameters = inspect.signature(obj).parameters.values()
        plain = (p.replace(annotation=fields[p.name][0]) if p.name in fields else p for p in parameters)
        signature, result = stringify_signature(inspect.Signature(list(plain)), unqualified_typehints=True), None
    for parameter in inspect.signature(obj).parameters.values() if signature and callable(obj) else ():
        value = parameter.default
        if isinstance(value, tuple) and hasattr(value, "_field_defaults"):
            changed = (f"{key}={v!r}" for key, v in value._asdict().items() if v != value._field_defaults.get(key))
            call = f"{type(value).__name__}({', '.join(changed)})"
            signature = (signature or "").replace(object_description(value), call)
    return signature, result


def annotated_fields(obj: object) -> dict[str, tuple[Any, str]]:
    """The type and the description of each field of a class that has a description in its annotation."""
    hints = (
        get_type_hints(obj, include_extras=True) if isinstance(obj, type) and hasattr(obj, "__annotations__") else {}
    )
    return {name: get_args(hint)[:2] for name, hint in hints.items() if get_origin(hint) is Annotated}


def code_without_target(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Shows as code what stands in single backticks, in a docstring, and names no object of the reference."""
    return content if node.get("reftype") == "obj" else None


def mend_fields(app: Sphinx, doctree: nodes.document) -> None:
    """Draws the dash that Sphinx writes as -- after the name of a parameter, and calls attributes so."""
    texts = {" -- ": " \N{EN DASH} ", "Variables": "Attributes"}
    for field in doctree.findall(nodes.field):
        for node in [node for node in field.findall(nodes.Text) if node in texts]:
            node.parent.replace(node, nodes.Text(texts[node]))


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public names that are not in the reference; `make docs` fails on a warning."""
    described = env.get_domain("py").objects  # type: ignore[attr-defined]
    for package in PACKAGES:
        for name in import_module(package).__all__:
            if f"{package}.{name}" not in described:
                logger.warning("%s.%s is public, but not in docs/reference", package, name)


def check_times(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of notebooks that run longer than `PAGE_SECONDS`; the log has the time of each."""
    for page, data in getattr(env, "nb_metadata", {}).items():
        seconds = (data.get("exec_data") or {}).get("runtime") or 0
        if seconds > PAGE_SECONDS:
            logger.warning("%s runs for %.0f seconds, and may for %d", page, seconds, PAGE_SECONDS)


def setup(app: Sphinx) -> None:
    """Connects the functions above to the build."""
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", plain_returns, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", describe_fields)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("doctree-read", mend_fields)
    app.connect("missing-reference", code_without_target)
    app.connect("env-check-consistency", check_public_names)
    app.connect("env-check-consistency", check_times)
