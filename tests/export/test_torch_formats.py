"""torch's own formats."""

import shutil

import pytest
import torch

from ssd import load_weights
from ssd.export import export, load
from ssd.inference.prediction import predict_padded
from ssd_ext import DetectionOptions

OPTIONS = DetectionOptions(min_score=0.3, top_k=50)


def test_a_file_that_takes_floats(weights, pictures, tmp_path):
    metadata = export(weights, tmp_path / "f.pt2", options=OPTIONS, input_dtype="float32")
    assert metadata.input_dtype == "float32"
    exported = load(tmp_path / "f.pt2")
    model, _ = load_weights(weights, device="cpu")
    for ours, its in zip(exported(pictures), predict_padded(model, pictures, OPTIONS, bf16=False), strict=True):
        assert torch.equal(ours, its)
    with torch.no_grad():
        assert torch.equal(exported.program(pictures.float() / 255)[0], exported(pictures)[0])


def test_files_that_are_none_are_named(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt2: no such file"):
        load(tmp_path / "none.pt2")
    (tmp_path / "empty.pt2").touch()
    with pytest.raises(ValueError, match=r"empty\.pt2: the file is empty"):
        load(tmp_path / "empty.pt2")
    with pytest.raises(ValueError, match=r"best\.pt: not an exported file"):
        load(weights)
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ValueError, match=r"text\.pt2: not an archive"):
        load(tmp_path / "text.pt2")
    shutil.copy(weights, tmp_path / "checkpoint.pt2")
    with pytest.raises(ValueError, match=r"checkpoint\.pt2: cannot be loaded"):
        load(tmp_path / "checkpoint.pt2")
    graph = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
    torch.export.save(graph, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"other\.pt2: cannot be loaded: not the metadata"):
        load(tmp_path / "other.pt2")
