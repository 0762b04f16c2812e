"""Each page of docs/tutorial runs as it stands there, in a process of its own, and has figures and assertions."""

import ast
import json
import re
from pathlib import Path

import pytest
from own_process import printed_by

FOLDER = Path(__file__).parents[1] / "docs" / "tutorial"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?:---\n(.*?)^---\n)?(.*?)^```$", re.M | re.S)  # its options, its code
# Runs the cells of a page; the last line that it prints has the seconds and, for each cell, the number of its figures.
RUN = """
import json, sys, time
import matplotlib.pyplot as plt
folder, *cells = sys.argv[1:]
sys.path.insert(0, folder)
names, figures, start = {"__name__": "__main__"}, [], time.perf_counter()
for number, cell in enumerate(cells):
    exec(compile(cell, f"cell {number}", "exec"), names)
    figures.append(len(plt.get_fignums()))
    plt.close("all")
print(json.dumps({"seconds": time.perf_counter() - start, "figures": figures}))
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_and_has_figures_with_descriptions(page, record_property):
    options, code = zip(*CELL.findall(page.read_text()), strict=True)
    printed = printed_by(RUN, FOLDER, *code, timeout=600, MPLBACKEND="agg", OMP_NUM_THREADS="1")
    result = json.loads(printed.splitlines()[-1])
    record_property("seconds", result["seconds"])
    print(f"{page.stem}: {result['seconds']:.0f} s")
    assert sum(result["figures"]) >= 2
    assert result["figures"] == [int(" alt: " in its) for its in options]  # one figure in a cell, with a description


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_compares_results_measures_and_asks(page):
    text = page.read_text()
    trees = [ast.parse(code) for _, code in CELL.findall(text)]
    assert len(trees) == text.count("{code-cell}")  # all cells are found, and so run
    nodes = [node for tree in trees for node in ast.walk(tree)]
    asserted = [part for node in nodes if isinstance(node, ast.Assert) for part in ast.walk(node.test)]
    assert any(isinstance(part, ast.Attribute) and part.attr in ("equal", "allclose") for part in asserted)
    assert any(isinstance(node, ast.Name) and node.id == "compare" for node in nodes)
    assert text.count("<details>") == 3
    assert "../semantics.md#" in text


def test_the_pages_are_numbered_and_in_the_index():
    assert [int(page.stem.split("_")[0]) for page in PAGES] == [1, 2, 3, 4, 5]
    index = (FOLDER / "index.md").read_text()
    assert all(f"({page.name})" in index and f"\n{page.stem}\n" in index for page in PAGES)
