"""Checkpoints: what they keep, older ones, and what is none."""

import pytest
import torch

from ssd.checkpoint import init_weights, load_model, save_checkpoint
from ssd.model import SSD300


def test_weights_of_a_checkpoint_with_other_classes(tmp_path):
    torch.manual_seed(0)
    old, new = SSD300(3, width=0.01), SSD300(5, width=0.01)
    save_checkpoint(tmp_path / "old.pt", old, classes=["a", "b"])
    heads = new.pred_convs.cl_conv7.weight.clone()
    init_weights(new, str(tmp_path / "old.pt"))
    assert torch.equal(new.base.conv3_1.weight, old.base.conv3_1.weight)
    assert torch.equal(new.pred_convs.loc_conv7.weight, old.pred_convs.loc_conv7.weight)
    assert torch.equal(new.pred_convs.cl_conv7.weight, heads)
    with pytest.raises(ValueError, match=r"has width 0\.01, the model has 0\.05"):
        init_weights(SSD300(3, width=0.05), str(tmp_path / "old.pt"))


def test_a_checkpoint_keeps_the_priors(tmp_path):
    model = SSD300(3, width=0.01, priors="caffe_voc")
    save_checkpoint(tmp_path / "voc.pt", model, classes=["a", "b"])
    again, classes = load_model(tmp_path / "voc.pt", "cpu")
    assert classes == ("a", "b")
    assert torch.equal(again.priors_cxcy, model.priors_cxcy)
    assert not torch.equal(again.priors_cxcy, SSD300(3, width=0.01).priors_cxcy)


def test_checkpoints_of_the_first_format_load(tmp_path):
    model = SSD300(3, width=0.01, batch_norm=True)
    old = {"format": 1, "model": model.state_dict(), "classes": ["a", "b"], "width": 0.01, "batch_norm": True}
    torch.save(old, tmp_path / "old.pt")
    again, _ = load_model(tmp_path / "old.pt", "cpu")
    assert again.config == model.config
    init_weights(SSD300(5, width=0.01, batch_norm=True), str(tmp_path / "old.pt"))
    torch.save(old | {"format": 9}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="has format 9, this version reads 1 to 2"):
        load_model(tmp_path / "new.pt")


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_model(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt: cannot be read"):
        load_model(tmp_path / "text.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: not a checkpoint"):
        load_model(tmp_path / "other.pt")
