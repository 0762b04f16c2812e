"""The option --compile: the same numbers to rounding, of a network as narrow as it gets."""

import json

import pytest
import torch

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return str(write_shapes(tmp_path_factory.mktemp("data") / "shapes", 6, 0))


def test_compiled_training(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    options = [
        "--recipe",
        "tutorial",
        "--width",
        "0.01",
        "--batch-size",
        "2",
        "--epochs",
        "1",
        "--lr",
        "1e-5",
        "--no-bf16",
        "--workers",
        "0",
    ]
    for out, more in (("eager", []), ("compiled", ["--compile"])):
        command = ["train", shapes, "--split", "train", "--out", str(tmp_path / out), "--device", "cpu"]
        assert main([*command, *options, *more]) == 0
    eager, compiled = (load_checkpoint(tmp_path / out / "last.pt") for out in ("eager", "compiled"))
    assert compiled["settings"]["compile"]
    assert list(compiled["model"]) == list(eager["model"])
    assert compiled["history"]["loss"] == pytest.approx(eager["history"]["loss"], rel=1e-4)
    assert any((tmp_path / "cache").rglob("*.cpp"))


def test_compiled_detection(shapes, tmp_path, monkeypatch):
    """One graph for batches of 4 and of 2 pictures; what inductor makes of it, the format aoti shows.

    A first batch of 3 would share the symbol of the 3 channels.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pt", SSD300(4, width=0.01), ["circle", "square", "triangle"])
    compile, graphs = SSD300.compile, []
    monkeypatch.setattr(SSD300, "compile", lambda self, **how: compile(self, backend=backend, fullgraph=True, **how))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for out, more in (("a", []), ("b", ["--compile"])):
        command = ["detect", f"{shapes}/JPEGImages", "--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / out)]
        command += ["--device", "cpu", "--no-drawings", "--no-bf16", "--batch-size", "4", "--top-k", "20"]
        assert main([*command, *more]) == 0
    assert len(graphs) == 1
    a, b = (json.loads((tmp_path / out / "detections.json").read_text()) for out in "ab")
    assert len(a["annotations"]) > 0
    assert [row["score"] for row in b["annotations"]] == pytest.approx([row["score"] for row in a["annotations"]])
    torch._dynamo.reset()  # the graph of one network serves another
    assert (
        main(["eval", shapes, "--weights", str(tmp_path / "w.pt"), *["--device", "cpu", "--workers", "0", "--compile"]])
        == 0
    )
    assert len(graphs) > 1


@pytest.mark.parametrize("command", ["train", "detect"])
def test_without_a_compiler(shapes, tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    options = {
        "train": [shapes, "--network", "ssd300", "--width", "0.01"],
        "detect": [f"{shapes}/JPEGImages", "--weights", tmp_path / "w.pt"],
    }
    save_checkpoint(tmp_path / "w.pt", SSD300(4, width=0.01), ["circle", "square", "triangle"])
    arguments = [command, *options[command], "--out", tmp_path / "out", "--device", "cpu", "--compile"]
    with torch._inductor.config.patch("cpp.cxx", (None, "no-such-compiler")):
        assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"ssd {command}: error: compile: ")
    assert "no-such-compiler" in error
