"""Files that an earlier version wrote still load, and find the same: tests/before/, compressed.

The network has random weights, one class and width 0.01; `ssd export` wrote the program from the checkpoint.
"""

import lzma
from pathlib import Path

import pytest
import torch

from ssd import Detector, load_weights
from ssd.export import load
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")  # sums of several threads may round otherwise

BEFORE = Path(__file__).parent / "before"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    for path in BEFORE.glob("*.xz"):
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return folder


def test_a_checkpoint(files):
    model, classes = load_weights(files / "checkpoint.pt", device="cpu")
    assert (classes, model.config["width"], model.config["priors"]) == (("a",), 0.01, "torchvision")
    checkpoint = load_checkpoint(files / "checkpoint.pt")
    assert (checkpoint["network"], model.name) == ("ssd300", "ssd300")
    assert checkpoint["settings"] == {"data": ["gone"]}
    assert Settings.from_dict(checkpoint["settings"]).network == "ssd300"


def test_an_exported_file_finds_what_its_checkpoint_finds(files):
    exported = load(files / "exported.pt2")
    options = exported.metadata.options
    model, classes = load_weights(files / "checkpoint.pt", device="cpu")
    assert (exported.metadata.classes, exported.input_size, options.top_k) == (classes, 300, 20)
    images = torch.randint(256, (3, 3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = Detector(model, classes, options, bf16=False).predict(images)
    found = exported(images)
    assert found[3].tolist() == expected[3].tolist() == [20, 20, 20]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)  # the program has the operations that the network had then
