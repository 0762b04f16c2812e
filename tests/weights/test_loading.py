"""Weights for a network to train, and files that hold none."""

from functools import partial

import pytest
import torch
from initial_weights import initial_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ssd import build_network, load_weights
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint


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
    with pytest.raises(ValueError, match=r"has width 0\.01, but 0\.05 was given"):
        initial_model(3, str(tmp_path / "old.pt"), width=0.05)


def test_a_network_to_train_is_that_of_the_weights_where_nothing_is_said(tmp_path):
    old = SSD300(3, width=0.01, batch_norm=True, head_batch_norm=True, priors="torchvision")
    save_checkpoint(tmp_path / "old.pt", old, classes=["a", "b"])
    unsaid = {"width": None, "batch_norm": None, "head_batch_norm": None, "priors": None}
    new = initial_model(4, str(tmp_path / "old.pt"), **unsaid)
    assert new.config == old.config | {"n_classes": 4}
    assert torch.equal(new.pred_convs.bn_loc_conv7.weight, old.pred_convs.bn_loc_conv7.weight)
    for name, value in (("batch_norm", False), ("head_batch_norm", False), ("priors", "tutorial")):
        with pytest.raises(ValueError, match=rf"has {name} .*, but {value} was given"):
            initial_model(4, str(tmp_path / "old.pt"), **unsaid | {name: value})


def test_a_network_takes_only_its_options():
    assert initial_model(3, None, "ssdlite", size=224, width=0.1).input_size == 224
    with pytest.raises(ValueError, match=r"the network ssdlite320 has no width, size, but head_batch_norm, priors"):
        initial_model(3, None, "ssdlite320", width=0.1, size=224)
    with pytest.raises(ValueError, match=r"network must be one of ssd300, .*, got 'ssd301'"):
        initial_model(3, None, "ssd301")


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt: cannot be read as a checkpoint: .*torch\.save did not write it"):
        load_weights(tmp_path / "text.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match=r"empty\.pt: cannot be read as a checkpoint: the file is empty$"):
        load_weights(tmp_path / "empty.pt")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run: is a folder; choose a file of weights, such as best\.pt$"):
        load_weights(tmp_path / "run")
    (tmp_path / "run" / "best.pt").touch()
    with pytest.raises(ValueError, match=r"run: is a folder; choose \S+/run/best\.pt$"):
        load_weights(tmp_path / "run")
    for contents, said in (
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(3)}}, "backbone.conv1.weight"),
        ({"net": {"a": torch.zeros(3)}, "epoch": 3}, "net, epoch"),
        ({"state_dict": {}}, "nothing"),
    ):
        torch.save(contents, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=rf"other\.pth: neither .*; it contains {said}$"):
            load_weights(tmp_path / "other.pth")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: neither a checkpoint .*torchvision's.*; it contains weights$"):
        load_weights(tmp_path / "other.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: contains no weights, but a list"):
        load_weights(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"n_classes": 9}}, r"its .* names do not fit together: expected 8 class names, got \['a', 'b'\]"),
        ({"config": {"n_classes": 3, "width": 0.02}}, "its .* names do not fit together: Error.* size mismatch"),
        (
            {"config": {"n_classes": 3, "width": 1e9}},
            "its .* names do not fit together",
        ),  # and no memory is asked for
        ({"config": {"n_classes": 3, "depth": 7}}, "its .* names do not fit together: .*'depth'"),
        ({"classes": ["a"]}, r"its .* names do not fit together: expected 2 class names, got \['a'\]"),
        ({"model": {}}, "its .* names do not fit together: Error.* Missing key"),
        ({"model": None}, "is not a complete checkpoint: its 'model' is a NoneType"),
        ({"classes": "ab"}, "is not a complete checkpoint: its 'classes' is a str"),
        ({"format": 9}, "has format 9; this version of ssd reads formats 1 to 3"),
    ],
)
def test_parts_that_are_not_of_one_network_are_named(tmp_path, change, message):
    model = SSD300(3, width=0.01)
    whole = {"format": 2, "config": model.config, "model": model.state_dict(), "classes": ["a", "b"]}
    torch.save(whole | change, tmp_path / "w.pt")
    for load in (partial(load_weights, device="cpu"), partial(initial_model, 3)):
        with pytest.raises(ValueError, match=rf"^\S*w\.pt: {message}"):
            load(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "saved",
    [
        lambda network: network,
        nn.DataParallel,
        lambda network: {"epoch": 3, "model": network},
        lambda network: network.state_dict(),
        lambda network: {"model": network.state_dict()},
        lambda network: {"model_state_dict": nn.DataParallel(network).state_dict()},
        lambda network: AveragedModel(network).state_dict(),
        lambda network: torch.compile(network).state_dict(),
        lambda network: {"state_dict": nn.ModuleDict({"net": network, "loss": nn.Linear(1, 1)}).state_dict()},
    ],
    ids=["pickled", "pickled-parallel", "pickled-in-a-dict", "state", "in-a-dict", "parallel", "average", "compiled",
         "part-of-a-module"],
)  # fmt: skip
def test_files_of_torch_save_keep_the_priors_the_size_and_the_normalisation(tmp_path, saved):
    torch.manual_seed(0)
    network = build_network("ssdlite", 3, size=256, width=0.1, input_mean=(0.4, 0.4, 0.4)).eval()
    torch.save(saved(network), tmp_path / "a.pt")
    loaded, classes = load_weights(tmp_path / "a.pt", device="cpu")
    assert (loaded.name, loaded.config, classes) == (network.name, network.config, ("class 1", "class 2"))
    images = torch.randn(1, 3, 256, 256)
    assert all(map(torch.equal, loaded(images), network(images)))


def test_a_pickled_network_of_the_tutorial_loop(tmp_path):
    """The tutorial's train.py saves the model itself."""
    model = SSD300(n_classes=21, width=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    torch.save({"epoch": 0, "model": model, "optimizer": optimizer}, tmp_path / "checkpoint_ssd300.pth.tar")
    loaded, classes = load_weights(tmp_path / "checkpoint_ssd300.pth.tar", device="cpu")
    assert loaded.config == model.config
    assert classes[:2] == ("aeroplane", "bicycle")


def test_state_dicts_that_do_not_tell_one_network(tmp_path):
    network = build_network("ssdlite", 3, size=224, width=0.1)
    torch.save(nn.ModuleDict({"net": network, "ema": AveragedModel(network)}).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: contains 2 networks, net, ema\.module: save one of them with save_"):
        load_weights(tmp_path / "a.pt")
    for damaged in ({}, {"network": "ssdlite", "config": []}, {"network": "ssdlite", "config": {"n_classes": "3"}}, 3):
        state = network.state_dict()
        state._metadata[""]["ssd"] = damaged
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"a\.pt: its metadata does not describe a network"):
            load_weights(tmp_path / "a.pt")
