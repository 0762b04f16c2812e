"""Checkpoints: what they keep, older ones, and what is none."""

from functools import partial
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from ssd import load_weights
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint
from ssd.weights.loading import initial_model


def test_weights_of_a_checkpoint_with_other_classes(tmp_path):
    torch.manual_seed(0)
    old = SSD300(3, width=0.01, priors="caffe_voc", input_std=(1, 1, 1))
    save_checkpoint(tmp_path / "old.pt", old, classes=["a", "b"])
    new = initial_model(5, str(tmp_path / "old.pt"), width=0.01)
    assert torch.equal(new.base.conv3_1.weight, old.base.conv3_1.weight)
    assert torch.equal(new.pred_convs.loc_conv7.weight, old.pred_convs.loc_conv7.weight)
    assert new.pred_convs.cl_conv7.weight.shape[0] == 5 * 6
    assert new.config == old.config | {"n_classes": 5}
    assert torch.equal(new.priors_cxcy, old.priors_cxcy)  # which the heads of the offsets belong to
    same = initial_model(3, str(tmp_path / "old.pt"), width=0.01)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in old.state_dict().items())
    with pytest.raises(ValueError, match=r"has width 0\.01, and 0\.05 is asked for"):
        initial_model(3, str(tmp_path / "old.pt"), width=0.05)


def test_a_network_to_train_is_that_of_the_weights_where_nothing_is_said(tmp_path):
    old = SSD300(3, width=0.01, batch_norm=True, head_batch_norm=True, priors="torchvision")
    save_checkpoint(tmp_path / "old.pt", old, classes=["a", "b"])
    unsaid = {"width": None, "batch_norm": None, "head_batch_norm": None, "priors": None}
    new = initial_model(4, str(tmp_path / "old.pt"), **unsaid)
    assert new.config == old.config | {"n_classes": 4}
    assert torch.equal(new.pred_convs.bn_loc_conv7.weight, old.pred_convs.bn_loc_conv7.weight)
    for name, value in (("batch_norm", False), ("head_batch_norm", False), ("priors", "tutorial")):
        with pytest.raises(ValueError, match=rf"has {name} .*, and {value} is asked for"):
            initial_model(4, str(tmp_path / "old.pt"), **unsaid | {name: value})


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
    with pytest.raises(ValueError, match="has format 9, this version reads 1 to 2"):
        load_weights(tmp_path / "new.pt")


def test_checkpoints_from_before_the_input_was_kept_load(tmp_path):
    model = SSD300(3, width=0.01, priors="torchvision")
    config = {name: value for name, value in model.config.items() if not name.startswith("input")}
    torch.save({"format": 2, "config": config, "model": model.state_dict(), "classes": ["a", "b"]}, tmp_path / "old.pt")
    again, _ = load_weights(tmp_path / "old.pt", device="cpu")
    assert again.config == model.config
    assert again.input_scale is None


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt: cannot be read as a checkpoint: .*not a file of torch\.save"):
        load_weights(tmp_path / "text.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match=r"empty\.pt: cannot be read"):
        load_weights(tmp_path / "empty.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: neither a checkpoint .*torchvision's.*; it holds weights$"):
        load_weights(tmp_path / "other.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: holds no weights, but a list"):
        load_weights(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"n_classes": 9}}, r"is not of one network: 8 names are wanted, it has \['a', 'b'\]"),
        ({"config": {"n_classes": 3, "width": 0.02}}, "is not of one network: Error.* size mismatch"),
        ({"config": {"n_classes": 3, "width": 1e9}}, "is not of one network"),  # and no memory is asked for
        ({"config": {"n_classes": 3, "depth": 7}}, "is not of one network: .*'depth'"),
        ({"classes": ["a"]}, r"is not of one network: 2 names are wanted, it has \['a'\]"),
        ({"model": {}}, "is not of one network: Error.* Missing key"),
        ({"model": None}, "is no whole checkpoint, its 'model' is a NoneType"),
        ({"classes": "ab"}, "is no whole checkpoint, its 'classes' is a str"),
        ({"format": 9}, "has format 9, this version reads 1 to 2"),
    ],
)
def test_parts_that_are_not_of_one_network_are_named(tmp_path, change, message):
    model = SSD300(3, width=0.01)
    whole = {"format": 2, "config": model.config, "model": model.state_dict(), "classes": ["a", "b"]}
    torch.save(whole | change, tmp_path / "w.pt")
    for load in (partial(load_weights, device="cpu"), partial(initial_model, 3)):
        with pytest.raises(ValueError, match=rf"^\S*w\.pt: {message}"):
            load(tmp_path / "w.pt")


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
    with pytest.raises(ValueError, match=r"bomb\.pt: cannot be read as a checkpoint: is compressed"):
        load_weights(tmp_path / "bomb.pt")
