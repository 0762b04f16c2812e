"""The docstrings of public names: each has an example, examples give what they say, and parameters are described."""

import ast
import doctest
import inspect
import io
import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import matplotlib
import pytest

import ssd

ROOT = Path(ssd.__file__).parents[1]
PACKAGES = ("ssd", "ssd_ext", "ssd.data", "ssd.export", "ssd.boxes")
# What the documents tell users to call, and what users get from the functions of the packages.
OTHERS = {
    "ssd.data.augmentation": ("EvalTransform", "TrainTransform"),
    "ssd.data.colour": ("to_input",),
    "ssd.data.reading": ("Picture",),
    "ssd.data.shapes": ("write_shapes",),
    "ssd.detection": ("Found",),
    "ssd.drawing": ("draw_detections",),
    "ssd.evaluation.coco": ("CocoOptions", "CocoResult", "coco_average_precision"),
    "ssd.evaluation.evaluate": ("evaluate", "score"),
    "ssd.evaluation.matching": ("Matches", "match"),
    "ssd.evaluation.voc": ("EvalResult", "average_precision"),
    "ssd.inference.detections": ("Detection", "Detections"),
    "ssd.inference.prediction": ("predictor",),
    "ssd.networks": ("Network",),
    "ssd.networks.priors": ("linear_layout", "make_priors"),
    "ssd.training.records": ("Step", "Validation"),
    "ssd.training.run": ("train",),
    "ssd.training.settings": ("Settings",),
    "ssd.weights.backbone": ("load_backbone",),
    "ssd.weights.checkpoint": ("load_checkpoint", "save_checkpoint"),
}
WITH_METHODS = ("ssd.Detector", "ssd.inference.detections.Detections")
NEEDED = {  # packages that may be missing, by the name of the example
    "ssd.data.video.Video": "av",
    "ssd.data.video.VideoReadError": "av",
    "ssd.evaluation.coco.CocoResult": "faster_coco_eval",
    "ssd.evaluation.coco.coco_average_precision": "faster_coco_eval",
    "ssd.inference.detections.Detections.to_supervision": "supervision",
}


def public():
    """The public functions, classes and methods by name. Tables such as `ssd.export.FORMATS` are not among them."""
    listed = {package: import_module(package).__all__ for package in PACKAGES} | OTHERS
    named = {f"{module}.{name}": getattr(import_module(module), name) for module in listed for name in listed[module]}
    for owner in WITH_METHODS:
        methods = [name for name in vars(named[owner]) if not name.startswith("_") or name == "__call__"]
        named |= {f"{owner}.{name}": getattr(named[owner], name) for name in methods}
    return {name: it for name, it in named.items() if inspect.isroutine(it) or isinstance(it, type)}


def documented(node, name, before=()):
    """The name and the docstrings of each module, class and function; those of what it is in come before its own."""
    if ast.get_docstring(node) is not None:
        before = (*before, node.body[0].value)
        yield name, before
    if not isinstance(node, ast.FunctionDef):
        for child in (child for child in node.body if isinstance(child, (ast.ClassDef, ast.FunctionDef))):
            yield from documented(child, f"{name}.{child.name}", before)


def examples():
    """All examples of the two packages, by the name of what they belong to; those of a method follow its class's."""
    for path in (path for package in ("ssd", "ssd_ext") for path in sorted((ROOT / package).rglob("*.py"))):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name, strings in documented(ast.parse(path.read_text()), module):
            tests = [
                doctest.DocTestParser().get_doctest(text.value, {}, name, str(path), text.lineno - 1)
                for text in strings
            ]
            if tests[-1].examples:
                yield name, tests


PUBLIC = public()
EXAMPLES = dict(examples())


def section(documented, title):
    """The names that a section of a docstring describes, such as the parameters in "Args"."""
    text = re.search(rf"^{title}:\n((?:    .*\n|\n)*)", inspect.cleandoc(documented.__doc__) + "\n", re.M)
    rows = re.findall(r"^    (\w[\w, ]*):", text[1], re.M) if text else []
    return {name for row in rows for name in row.split(", ")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name, tmp_path, monkeypatch):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason=f"the package {NEEDED[name]} is not installed")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    variables = {"__name__": "example"}
    for test in EXAMPLES[name]:
        test.globs, report = variables, io.StringIO()
        result = doctest.DocTestRunner().run(test, out=report.write, clear_globs=False)
        assert not result.failed, report.getvalue()
    assert result.attempted


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name):
    own = PUBLIC[name]
    assert f"{own.__module__}.{own.__qualname__}" in EXAMPLES, f"{name}: add a section Examples to its docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_and_fields_are_described(name):
    own = PUBLIC[name]
    if not isinstance(own, type):
        parameters = set(inspect.signature(own).parameters) - {"self"}
        assert parameters == section(own, "Args")
    elif is_dataclass(own) or hasattr(own, "_fields"):
        plain = {field for field, kind in inspect.get_annotations(own).items() if "Annotated[" not in str(kind)}
        assert plain <= section(own, "Attributes")
    elif "__init__" in vars(own):
        parameters = inspect.signature(own).parameters.values()
        required = {each.name for each in parameters if each.kind is not each.VAR_POSITIONAL}
        assert required == section(own, "Args") or "arguments and attributes are those of" in own.__doc__


def test_the_lists_name_what_is_there():
    assert {name for name in NEEDED if name not in EXAMPLES} == set()
    assert set(WITH_METHODS) <= PUBLIC.keys()
