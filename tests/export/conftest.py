"""Fixtures of several files of tests."""

import pytest
import torch
from detect_command import write_spread

from ssd.data.augmentation import EvalTransform
from ssd.data.reading import PictureFile
from ssd.data.shapes import write_shapes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_spread(tmp_path_factory.mktemp("weights") / "best.pt", width=0.05)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 3, 0)


@pytest.fixture(scope="module")
def pictures(shapes):
    return torch.stack([EvalTransform(300)(PictureFile(path)) for path in sorted((shapes / "JPEGImages").iterdir())])
