"""Fixtures of several files of tests."""

import pytest
import torch

from ssd.data.augmentation import EvalTransform
from ssd.data.reading import PictureFile
from ssd.data.shapes import write_shapes
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that never trained, with scores that spread from 0 to 1."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, SSD300(4, width=0.05), CLASSES)
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 3, 0)


@pytest.fixture(scope="module")
def pictures(shapes):
    return torch.stack([EvalTransform(300)(PictureFile(path)) for path in sorted((shapes / "JPEGImages").iterdir())])
