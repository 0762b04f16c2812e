"""Checkpoints: what they keep, older ones, and damage."""

import copy
import os
import random
import re
import sys
from dataclasses import replace
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import safetensors.torch
import torch
from initial_weights import initial_model

from ssd import build_network, load_weights
from ssd.networks import NETWORKS
from ssd.networks.ssd300 import SSD300
from ssd.runtime.device import compile_network
from ssd.weights.checkpoint import levels_of, load_checkpoint, save_checkpoint


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


NOT_LOADABLE = {
    "text": ("ab", False, {}, "classes must be a list of names, got the text 'ab'"),
    "number": (["a"], False, {}, r"expected 2 class names, got ['a']"),
    "names": (["a", 2], False, {}, r"expected 2 class names, got ['a', 2]"),
    "fused": (["a", "b"], True, {}, "the network has other parameters than a new one with its config; save it before"),
    "format": (["a", "b"], False, {"format": 1}, "these names belong to the checkpoint itself: format"),
    "own": (["a", "b"], False, {"network": "x", "config": {}}, "these names belong to the checkpoint itself: config, "),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch, suffix):
    """Otherwise a machine that loses power could be left with an empty file."""
    done, replace_file = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replaced") or replace_file(*paths))
    path = tmp_path / f"a{suffix}"
    save_checkpoint(path, SSD300(3, width=0.01), ["a", "b"])
    assert done == [path.stat().st_size, "replaced"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("classes", "fused", "extra", "says"), NOT_LOADABLE.values(), ids=NOT_LOADABLE.keys())
def test_what_could_not_be_loaded_is_not_written(tmp_path, suffix, classes, fused, extra, says):
    model = SSD300(3, width=0.01, batch_norm=True)
    path = tmp_path / f"a{suffix}"
    save_checkpoint(path, model, ["a", "b"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"a\{suffix}: .*{re.escape(says)}"):
        save_checkpoint(path, model.fuse() if fused else model, classes, **extra)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_network_in_another_form_is_saved_as_it_was(tmp_path, suffix):
    """In training, networks are compiled, and their batch norms are synchronised between processes."""
    model = SSD300(3, width=0.01, batch_norm=True)
    compiled = copy.deepcopy(model)
    compile_network(compiled, dynamic=True)
    forms = {
        "wrapped": torch.compile(model),
        "averaged": torch.optim.swa_utils.AveragedModel(model),
        "both": torch.nn.DataParallel(torch.compile(model)),
        "compiled": compiled,
        "synchronised": torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
    }
    state = model.state_dict()
    for name, network in forms.items():
        save_checkpoint(tmp_path / f"{name}{suffix}", network, ["a", "b"])
        again, classes = load_weights(tmp_path / f"{name}{suffix}", device="cpu")
        assert classes == ("a", "b")
        assert type(again) is SSD300
        assert again.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


class Mirrored(SSD300):
    def predict(self, images):
        return super().predict(images.flip(-1))


def test_a_class_of_somebody_else_needs_a_name_of_its_own(tmp_path, monkeypatch):
    """Else the file would be loaded as another network, with other outputs."""
    with pytest.raises(
        ValueError, match=r"no network named 'ssd300' is of the class Mirrored.* ssd\.networks\.NETWORKS"
    ):
        save_checkpoint(tmp_path / "a.pt", Mirrored(3, width=0.01), ["a", "b"])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Mirrored, "name", "mirrored")
    monkeypatch.setitem(NETWORKS, "mirrored", Mirrored)
    model = Mirrored(3, width=0.01).eval()
    save_checkpoint(tmp_path / "a.pt", model, ["a", "b"])
    again, _ = load_weights(tmp_path / "a.pt", device="cpu")
    images = torch.rand(1, 3, 300, 300)
    torch.testing.assert_close(again(images), model(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ssd300", "ssdlite", "resnet34", "timm:mobilenetv3_small_050"])
def test_saving_draws_no_random_numbers(tmp_path, name):
    """Else it would matter for the result of a run how often it is saved."""
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="no timm: pip install 'ssd-ext[timm]'")
    model = build_network(name, 2, **({"width": 0.1} if name.startswith("ssd") else {}))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    save_checkpoint(tmp_path / "a.pt", model, ["a"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


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


def tricky_network():
    """With a layout of priors of its own, its own normalisation, and memory in another order than the dimensions."""
    torch.manual_seed(0)
    default = SSD300(3, width=0.01, batch_norm=True).prior_spec
    spec = replace(default, scales=tuple(scale * 1.1 / 3 for scale in default.scales))
    model = SSD300(3, width=0.01, batch_norm=True, priors=spec, input_mean=(0.1, 0.2, 1 / 3))
    return model.to(memory_format=torch.channels_last)


def test_safetensors_keep_every_bit(tmp_path):
    model = tricky_network()
    names = ["a \u00fc \u5f69", 'b "quoted"']
    for name in ("a.pt", "a.safetensors"):
        save_checkpoint(tmp_path / name, model, names, levels=(0, 4095.5))
    theirs = load_checkpoint(tmp_path / "a.safetensors")
    ours = load_checkpoint(tmp_path / "a.pt")
    assert theirs.keys() == ours.keys()
    assert theirs["model"].keys() == ours["model"].keys()
    for name, value in ours["model"].items():
        assert theirs["model"][name].dtype == value.dtype, name
        assert torch.equal(theirs["model"][name], value), name
    assert levels_of(theirs) == levels_of(ours) == (0, 4095.5)
    again, classes = load_weights(tmp_path / "a.safetensors", device="cpu")
    assert classes == tuple(names)
    assert again.config == model.config  # tuples, not the lists of JSON
    assert torch.equal(again.priors_cxcy, model.priors_cxcy)
    assert torch.equal(again.input_scale, model.input_scale)


def test_safetensors_are_readable_by_others(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", SSD300(3, width=0.01), ["a", "b"])
    assert safetensors.torch.load_file(tmp_path / "a.safetensors").keys() == SSD300(3, width=0.01).state_dict().keys()
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("[1]", "cannot be read as a checkpoint: "),
        ("{", "cannot be read as a checkpoint: Expecting"),
        ('{"format": 9}', "has format 9; this version of ssd reads formats 1 to 3"),
        (
            '{"format": 3, "network": "ssd300", "config": {}}',
            "is not a complete checkpoint: its 'classes' is a NoneType",
        ),
    ],
)
def test_damaged_metadata_is_named(tmp_path, metadata, says):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"ssd": metadata})
    with pytest.raises(ValueError, match=rf"a\.safetensors: {re.escape(says)}"):
        load_weights(tmp_path / "a.safetensors")


def test_damaged_safetensors_are_named(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", SSD300(3, width=0.01), ["a", "b"])
    data = (tmp_path / "a.safetensors").read_bytes()
    for content in (data[:-100], data[:1000], b"text"):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors: cannot be read as a checkpoint: "):
            load_weights(tmp_path / "a.safetensors")


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    model = SSD300(3, width=0.01)
    save_checkpoint(tmp_path / "a.safetensors", model, ["a", "b"])
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (load_weights, lambda path: save_checkpoint(path, model, ["a", "b"])):
        with pytest.raises(
            ImportError, match=r"a\.safetensors: needs safetensors .*: pip install 'ssd-ext\[safetensors\]'"
        ):
            use(tmp_path / "a.safetensors")


def test_a_full_disk_leaves_the_old_safetensors(tmp_path):
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path / "a.safetensors", SSD300(3, width=0.01), ["a", "b"])
    before, limits = (tmp_path / "a.safetensors").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*a\.safetensors'"):
            save_checkpoint(tmp_path / "a.safetensors", SSD300(3, width=0.02), ["a", "b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
