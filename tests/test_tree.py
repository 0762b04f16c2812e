"""Tests stand in the rooms of the code: tests/<room>/test_<module>.py has those of ssd/<room>/<module>.py."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SSD = TESTS.parent / "ssd"
OPS = TESTS.parent / "ssd_ext" / "ops"
ROOMS = sorted(file.parent.relative_to(SSD).as_posix() for file in SSD.glob("**/__init__.py"))  # "." is the top
# Files of tests that are named after a behaviour, to which several modules belong.
BEHAVIOURS = {
    "cli/test_compile.py": "the option --compile of training and detection",
    "data/test_layouts.py": "folders as tools write them, in any format",
    "export/test_onnx_openvino.py": "both formats find the same: each test runs with both",
    "training/test_interruptions.py": "runs that are killed, stopped or disturbed",
    "test_before.py": "files of earlier versions",
    "test_code_blocks.py": "the code blocks of the documents",
    "test_build.py": "setup.py, and what is imported of a library that is missing or broken",
    "test_docstrings.py": "docstrings of public names, and their examples",
    "test_community.py": "forms of issues and pull requests, CITATION.cff and SECURITY.md",
    "test_documents.py": "what the documents and docstrings name",
    "test_drop_in.py": "the code of the tutorial with our imports",
    "test_every_network.py": "each network in training, evaluation, detection and export",
    "test_examples.py": "examples/",
    "test_fuzz_files.py": "damaged files of all kinds",
    "test_imports.py": "what an import loads, and that every script can be imported",
    "test_makefile.py": "the Makefile",
    "test_names.py": "public names",
    "test_own_loop.py": "docs/own_loop.md",
    "test_several_processes.py": "training, evaluation and detection under torchrun",
    "test_site.py": "the site that Sphinx makes of docs/",
    "test_switching.py": "docs/switching.md",
    "test_ten_minutes.py": "docs/ten_minutes.md",
    "test_tree.py": "this file",
    "test_tutorial.py": "docs/tutorial/",
}
# Modules without a file of tests that is named after them.
UNTESTED = {
    "__init__.py": "names of other modules; test_names.py and test_imports.py look at them",
    "__main__.py": "calls ssd.cli.main; cli/test_cli.py runs it",
    "cli/demo.py": "flags, and a call of ssd/demo.py; test_demo.py runs the command",
    "data/writers.py": "data/test_conversion.py, which reads back what they write",
    "data/csv_table.py": "data/test_csv_datasets.py, whose data sets it reads",
    "data/listing.py": "tests of the formats that it is the base of, such as data/test_csv_datasets.py",
    "data/annotations.py": "data/test_dataset.py, whose datasets hold them",
    "data/notes.py": "data/test_dataset.py, whose datasets have the notes",
    "data/picture_sizes.py": "data/test_dataset.py, whose datasets compare sizes and turn boxes",
    "data/usable.py": "data/test_dataset.py, whose datasets have the objects",
    "evaluation/matching.py": "evaluation/test_mistakes.py, whose figures are made of its result",
    "data/torchvision_recipe.py": "data/test_augmentation.py runs its tests with both recipes",
    "networks/network.py": "networks/test_networks.py, which runs over all networks",
    "networks/layers.py": "networks/test_ssd300.py, whose layers they are",
    "inference/prediction.py": "inference/test_detector.py and export/test_program.py, which compare with its results",
    "training/opening.py": "training/test_run.py and training/test_choice.py, which start runs",
    "training/resuming.py": "training/test_run.py and training/test_interruptions.py, which resume runs",
    "options.py": "only names, types and defaults; data/test_dataset.py has what they do",
    "export/onnx.py": "export/test_onnx_openvino.py",
    "export/openvino.py": "export/test_onnx_openvino.py",
    **{
        f"{room}/__init__.py": "only a docstring"
        for room in ("evaluation", "inference", "reports", "runtime", "training", "weights")
    },
}


def module_of(test: Path) -> Path:
    """The file that a file of tests is named after; tests/<room>/test_<room>.py has the tests of the package itself."""
    room, name = test.parent.relative_to(TESTS), test.stem.removeprefix("test_")
    return SSD / room / ("__init__.py" if name == room.name else f"{name}.py")


def file_of_tests(module: Path) -> Path:
    room = module.parent.relative_to(SSD)
    return TESTS / room / f"test_{room.name if module.stem == '__init__' else module.stem}.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_file_of_tests_is_named_after_a_module_or_a_behaviour(room):
    for test in (TESTS / room).glob("test_*.py"):
        name = test.relative_to(TESTS).as_posix()
        assert module_of(test).exists() != (name in BEHAVIOURS), name


def test_a_module_has_tests_or_a_reason():
    for module in SSD.rglob("*.py"):
        name = module.relative_to(SSD).as_posix()
        assert file_of_tests(module).exists() != (name in UNTESTED), name


def test_the_lists_name_files_that_are_there():
    assert all((TESTS / name).exists() for name in BEHAVIOURS)
    assert all((SSD / name).exists() for name in UNTESTED)
    documented = [SSD / name for name, reason in UNTESTED.items() if reason == "only a docstring"]
    assert all(len(ast.parse(path.read_text()).body) == 1 for path in documented)


@pytest.mark.parametrize("op", sorted(path.stem for path in OPS.glob("[a-z]*.py")))
def test_an_op_has_an_oracle_and_tests(op):
    assert (TESTS / "ops" / f"{op}.py").exists()
    assert (TESTS / "ops" / f"test_{op}.py").exists()


def test_no_test_imports_a_file_of_tests():
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(part.startswith("test_") for name in names for part in name.split(".")), path
