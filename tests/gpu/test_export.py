"""Exported files made for a GPU, run there."""

import pytest
import torch
from compare import needs_gpu

pytest.importorskip("torchvision")
from ssd import load_weights
from ssd.export import export, load
from ssd.inference.prediction import predict_padded
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint
from ssd_ext import DetectionOptions

pytestmark = needs_gpu
OPTIONS = DetectionOptions(min_score=0.3, top_k=50)


@pytest.mark.parametrize("format", ["pt2", "aoti"])
def test_a_file_for_a_gpu_finds_there_what_the_network_finds(tmp_path, format, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    weights = tmp_path / "best.pt"
    save_checkpoint(weights, SSD300(4, width=0.05, batch_norm=True, head_batch_norm=True), ("a", "b", "c"))
    metadata = export(weights, tmp_path / "d.pt2", format, OPTIONS, device="cuda")  # compares with the network
    assert metadata.device == "cuda"
    exported = load(tmp_path / "d.pt2")
    model, _ = load_weights(weights, device="cuda")
    images = torch.randint(0, 256, (5, 3, 300, 300), dtype=torch.uint8)
    for batch in (images, images[:1]):
        found, expected = exported(batch), predict_padded(model, batch, OPTIONS, bf16=False)
        assert torch.equal(found[3].cpu(), expected[3].cpu())
        assert found[3].min() > 0
        for ours, its in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), its.cpu(), rtol=0, atol=1e-4)
