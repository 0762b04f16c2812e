"""`ssd export`, and the commands that take its files."""

import json

import pytest
import torch

from ssd.cli import main
from ssd.export import FORMATS, export
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that never trained, with scores that spread from 0 to 1."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, SSD300(4, width=0.05), ("circle", "square", "triangle"))
    return path


def test_detect_and_eval_take_a_file(weights, shapes, tmp_path, capsys):
    file = tmp_path / "best.pt2"
    options = ["--min-score", "0.3", "--top-k", "20"]
    assert main(["export", str(weights), "--out", str(file), *options, "--check", str(shapes)]) == 0
    assert "3 classes: circle, square, triangle" in capsys.readouterr().out
    for out, name, more in (("a", weights, [*options, "--no-bf16"]), ("b", file, [])):
        common = ["--out", str(tmp_path / out), "--device", "cpu", "--no-drawings"]
        assert main(["detect", str(shapes), "--weights", str(name), *common, *more]) == 0
    a, b = (json.loads((tmp_path / out / "detections.json").read_text()) for out in "ab")
    weights = [content["info"].pop("weights").partition(" ")[0] for content in (a, b)]
    assert weights[1] == f"{weights[0]}2"  # best.pt and best.pt2
    assert a == b
    assert len(a["annotations"]) > 3
    assert main(["eval", str(shapes), "--weights", str(file), *options]) == 0
    assert "mAP@0.5" in capsys.readouterr().out

    def error(*arguments):
        assert main(["detect", str(shapes), "--weights", str(file), "--out", str(tmp_path / "c"), *arguments]) == 2
        return capsys.readouterr().err

    assert "has top_k 20, not 21; leave it out" in error("--top-k", "21")
    assert "has min_score 0.3, not 0.2; leave it out" in error("--min-score", "0.2")
    assert "has clip False, not True; leave it out" in error("--clip")
    assert "has compile False, not True; leave it out" in error("--compile")
    assert "has device cpu, not meta; leave it out" in error("--device", "meta")


def test_mistakes_are_named(weights, shapes, tmp_path, monkeypatch, capsys):
    def error(*arguments, source=weights):
        assert main(["export", str(source), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "there.pt2").write_text("not an archive")
    assert "nowhere: no such folder; x.pt2" in error("--out", tmp_path / "nowhere" / "x.pt2")
    assert "text.pt" in error("--out", tmp_path / "text.pt" / "x.pt2")
    assert "there.pt2: exists" in error("--out", tmp_path / "there.pt2")
    assert "ends in .pt2" in error("--out", tmp_path / "x.pth")
    assert "none.pt: no such checkpoint" in error("--out", tmp_path / "x.pt2", source=tmp_path / "none.pt")
    assert "cannot be read as a checkpoint" in error("--out", tmp_path / "x.pt2", source=tmp_path / "text.pt")
    assert "none.jpg" in error("--out", tmp_path / "x.pt2", "--check", tmp_path / "none.jpg")
    assert "no pictures" in error("--out", tmp_path / "x.pt2", "--check", tmp_path)
    with pytest.raises(SystemExit):
        main(["export", str(weights), "--format", "caffe"])
    assert "invalid choice: 'caffe'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="format must be one of pt2, aoti"):
        export(weights, tmp_path / "x.pt2", "caffe")
    with pytest.raises(ValueError, match="input_dtype must be one of"):
        export(weights, tmp_path / "x.pt2", input_dtype="int8")

    def no_compiler(*arguments, **settings):
        raise RuntimeError("InvalidCxxCompiler: none\n\nmore")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    message = error("--format", "aoti", "--out", tmp_path / "x.pt2")
    assert message.endswith("aoti needs a working C++ compiler: InvalidCxxCompiler: none\n")
    monkeypatch.setitem(FORMATS, "pt2", FORMATS["pt2"]._replace(modules=("torch", "no_such_package")))
    assert "pt2 needs no_such_package: pip install 'ssd-ext[pt2]'" in error("--out", tmp_path / "x.pt2")
    assert {path.name for path in tmp_path.iterdir()} == {"text.pt", "there.pt2"}
