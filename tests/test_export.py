"""Exported files: one program from bytes to detections, that says what the network says, or is not there."""

import pytest
import torch

from ssd import load_weights
from ssd.checkpoint import save_checkpoint
from ssd.detector import predict_padded
from ssd.export import FORMATS, DetectionProgram, Metadata, export, load
from ssd.model import SSD300
from ssd_ext import DetectionOptions

CLASSES = ("circle", "square", "triangle")
OPTIONS = DetectionOptions(min_score=0.3, top_k=50)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that never trained, with scores that spread from 0 to 1."""
    torch.manual_seed(0)
    model = SSD300(4, width=0.05)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, model, CLASSES)
    return path


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (3, 3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(weights):
    """Exported files by format, with their checks done."""
    for name, format in FORMATS.items():
        export(weights, weights.with_suffix(format.suffix), name, OPTIONS)
    return {name: weights.with_suffix(format.suffix) for name, format in FORMATS.items()}


def test_the_program_has_the_bits_of_the_detector(weights, pictures):
    model, _ = load_weights(weights, device="cpu")
    expected = predict_padded(model, pictures, OPTIONS, bf16=False)
    assert expected[3].min() > 0
    with torch.no_grad():
        for images in (pictures, pictures.float() / 255):
            for ours, its in zip(DetectionProgram(model, OPTIONS)(images), expected, strict=True):
                assert torch.equal(ours, its)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_finds_what_the_network_finds(files, weights, pictures, format):
    exported = load(files[format])
    assert exported.metadata == Metadata(format, CLASSES, OPTIONS)
    model, _ = load_weights(weights, device="cpu")
    for batch in (pictures, pictures[:1]):  # a number of pictures that it was not traced with
        found, expected = exported(batch), predict_padded(model, batch, OPTIONS, bf16=False)
        assert [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in expected]
        for ours, its in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, its, rtol=0, atol=1e-5)
