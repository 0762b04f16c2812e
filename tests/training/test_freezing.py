"""Frozen stages: their weights and statistics stay, and no gradient is computed for them."""

import os
import signal
from functools import partial

import pytest
import torch
from short_training import NARROW, error_of, run, states_equal

from ssd.networks import build_network
from ssd.networks.ssd300 import SSD300
from ssd.training.freezing import freeze, training_mode
from ssd.training.optimizer import make_optimizer
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def frozen_names(state):
    return [name for name in state if name.startswith(("base.conv1_", "base.bn1_", "base.conv2_", "base.bn2_"))]


def test_frozen_stages_stay_to_the_bit(shapes, tmp_path, at_step):
    """Also their statistics of batch norm, and after an interruption."""
    start = SSD300(4, width=0.01, batch_norm=True)
    save_checkpoint(tmp_path / "w.pt", start, ["circle", "square", "triangle"])
    options = {name: value for name, value in NARROW.items() if name not in ("width", "batch_norm")}
    settings = Settings((shapes,), "train", "test", weights=str(tmp_path / "w.pt"), epochs=2, freeze=2, **options)
    run(settings, tmp_path / "whole")
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")
    before, after = start.state_dict(), whole["model"]
    kept = frozen_names(after)
    assert len(kept) == 4 * 6  # convolutions with 1, batch norms with 5 entries each
    assert all(torch.equal(before[name], after[name]) for name in kept)
    changed = [name for name in after if name.startswith(("base.conv3_1", "base.bn3_1", "pred_convs.loc_conv4_3"))]
    assert len(changed) == 1 + 5 + 2
    assert not any(torch.equal(before[name], after[name]) for name in changed)
    at_step(2, partial(os.kill, os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "resumed")
    run(None, tmp_path / "resumed", resume=True)
    resumed = load_checkpoint(tmp_path / "resumed" / "last.pt")
    assert states_equal([whole["model"], whole["optimizer"]], [resumed["model"], resumed["optimizer"]])


@pytest.mark.parametrize("name", ["ssd300", "resnet34"])
def test_nothing_is_computed_below_frozen_stages(name):
    model = build_network(name, 4, **({"width": 0.02, "batch_norm": True} if name == "ssd300" else {"size": 128}))
    freeze(model, 2)
    frozen = {id(p) for stage in model.stages()[:2] for p in stage}
    training_mode(model)
    offsets, logits = model(torch.randn(2, 3, model.input_size, model.input_size))
    (offsets.sum() + logits.square().sum()).backward()
    for parameter in model.parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen)
    trained = [
        p
        for group in make_optimizer(model, Settings(("x",), network="ssd300", lr=1)).param_groups
        for p in group["params"]
    ]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters()} - frozen


def test_more_stages_than_there_are(shapes, tmp_path, capsys):
    error = error_of(capsys, "train", shapes, "--out", tmp_path / "run", "--network", "ssd300", "--freeze", 7)
    assert "freeze: the backbone of the network ssd300 has 6 stages, got 7; choose a number from 0 to 6" in error
