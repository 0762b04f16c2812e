"""The settings of the documentation site, which `make docs` builds with Sphinx into build/docs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))  # for the extension beside this file

ROOT = Path(__file__).parents[1]
# The packages whose public names must all be in the reference: those in their `__all__`.
PACKAGES = ("ssd", "ssd_ext", "ssd.data", "ssd.export", "ssd.boxes")

project = "ssd_ext"
author = "ssd-ext contributors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "command_reference"]
exclude_patterns = ["_static"]
smartquotes = False  # they would turn -- of flags into dashes
nitpicky = True
default_role = "py:obj"

html_theme = "furo"
html_title = "ssd_ext"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
# The address of the repository, "owner/name" on GitHub: for the links to the source of each page.
if repository := os.environ.get("GITHUB_REPOSITORY"):
    html_theme_options = {
        "source_repository": f"https://github.com/{repository}/",
        "source_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "source_directory": "docs/",
    }

myst_heading_anchors = 4  # the same anchors as on GitHub
nb_execution_mode = "force"  # a page depends on the package, which a cache of results does not see
nb_execution_timeout = 120  # seconds for a cell
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # so that pages may write files
nb_execution_show_tb = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

logger = logging.getLogger(__name__)


def code_without_target(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Shows as code what stands in single backticks, in a docstring, and names no object of the reference."""
    return content if node.get("reftype") == "obj" else None


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public names that are not in the reference; `make docs` fails on a warning."""
    described = env.get_domain("py").objects  # type: ignore[attr-defined]
    for package in PACKAGES:
        for name in import_module(package).__all__:
            if f"{package}.{name}" not in described:
                logger.warning("%s.%s is public, but not in docs/reference", package, name)


def setup(app: Sphinx) -> None:
    """Connects the functions above to the build."""
    app.connect("missing-reference", code_without_target)
    app.connect("env-check-consistency", check_public_names)
