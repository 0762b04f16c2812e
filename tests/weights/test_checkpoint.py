"""Checkpoints: what they keep, older ones, and damage."""

from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from initial_weights import initial_model

from ssd import load_weights
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint


def test_a_checkpoint_keeps_priors_and_input(tmp_path):
    model = SSD300(3, width=0.01, priors="caffe_voc", input_mean=(0.1, 0.2, 0.3))
    save_checkpoint(tmp_path / "voc.pt", model, classes=["a", "b"])
    again, classes = load_weights(tmp_path / "voc.pt", device="cpu")
    assert classes == ("a", "b")
    assert again.config == model.config
    assert torch.equal(again.priors_cxcy, model.priors_cxcy)
    assert not torch.equal(again.priors_cxcy, SSD300(3, width=0.01).priors_cxcy)
    assert load_weights(tmp_path / "voc.pt", classes=["c", "d"], device="cpu")[1] == ("c", "d")
    with pytest.raises(ValueError, match=r"voc\.pt: has 2 classes, got 1 names"):
        load_weights(tmp_path / "voc.pt", classes=["c"])


def test_checkpoints_of_the_first_format_load(tmp_path):
    model = SSD300(3, width=0.01, batch_norm=True)
    old = {"format": 1, "model": model.state_dict(), "classes": ["a", "b"], "width": 0.01, "batch_norm": True}
    torch.save(old, tmp_path / "old.pt")
    again, _ = load_weights(tmp_path / "old.pt", device="cpu")
    assert again.config == model.config
    initial_model(5, str(tmp_path / "old.pt"), width=0.01, batch_norm=True)
    torch.save(old | {"format": 9}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="has format 9; this version of ssd reads formats 1 to 3"):
        load_weights(tmp_path / "new.pt")


def test_checkpoints_from_before_the_input_was_kept_load(tmp_path):
    model = SSD300(3, width=0.01, priors="torchvision")
    config = {name: value for name, value in model.config.items() if not name.startswith("input")}
    torch.save({"format": 2, "config": config, "model": model.state_dict(), "classes": ["a", "b"]}, tmp_path / "old.pt")
    again, _ = load_weights(tmp_path / "old.pt", device="cpu")
    assert again.config == model.config
    assert again.input_scale is None


def test_a_damaged_checkpoint_is_noticed(tmp_path):
    """torch looks at no checksum: a flipped bit would be another weight."""
    save_checkpoint(tmp_path / "a.pt", SSD300(3, width=0.01), classes=["a", "b"])
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"flipped\.pt: cannot be read as a checkpoint: .* is damaged"):
        load_weights(tmp_path / "flipped.pt")


def test_a_bomb_is_not_unpacked(tmp_path):
    with ZipFile(tmp_path / "bomb.pt", "w", ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"bomb\.pt: cannot be read as a checkpoint: it is compressed"):
        load_weights(tmp_path / "bomb.pt")


@pytest.mark.parametrize("levels", [3, [1], [1, "2"], {1: 2}, [1, 2, 3]])
def test_levels_are_two_numbers(tmp_path, levels):
    save_checkpoint(tmp_path / "a.pt", SSD300(2, width=0.01), ["a"], levels=levels)
    with pytest.raises(ValueError, match=r"a\.pt: its levels must be two numbers, got"):
        load_weights(tmp_path / "a.pt")
