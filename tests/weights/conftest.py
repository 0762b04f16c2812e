"""Fixtures of several files of tests."""

import pytest
import torch
from peer_networks import Tutorial, light_state
from torchvision.models.detection import ssd300_vgg16


@pytest.fixture(scope="module")
def light():
    """Of a tutorial network."""
    with torch.device("meta"):
        return light_state(Tutorial(21))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / "ssd300_vgg16_coco-b556d3b4.pth"


@pytest.fixture(scope="module")
def coco():
    """Of torchvision's network."""
    with torch.device("meta"):
        return light_state(ssd300_vgg16(weights=None, weights_backbone=None))
