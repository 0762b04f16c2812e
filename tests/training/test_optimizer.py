"""Learning rates: over the run, and of biases."""

import pytest
import torch

from ssd.networks.ssd300 import SSD300
from ssd.training.optimizer import lr_factor, make_optimizer
from ssd.training.settings import Settings


def test_learning_rate_schedules():
    assert lr_factor(0, 1000, "step", 99) == pytest.approx(0.01)
    assert lr_factor(99, 1000, "step", 99) == 1
    assert lr_factor(0, 1000, "step", 500) == pytest.approx(1 / 101)  # at most a tenth of the run
    assert [lr_factor(s, 1200, "step", 0) for s in (799, 800, 999, 1000)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert lr_factor(500, 1000, "cosine", 0) == pytest.approx(0.5)
    assert lr_factor(0, 1000, "onecycle", 0) == pytest.approx(0.04)
    assert lr_factor(300, 1000, "onecycle", 0) == 1
    assert 0 < lr_factor(999, 1000, "onecycle", 0) < 1e-4


def test_biases_learn_at_twice_the_rate():
    model = SSD300(3, width=0.01)
    settings = Settings(("x",), network="ssd300")
    groups = make_optimizer(model, settings).param_groups
    assert [g["lr_scale"] for g in groups] == [2, 1]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert all(p.dim() == 1 for p in groups[0]["params"])
    assert (groups[1]["momentum"], groups[1]["weight_decay"]) == (0.9, 5e-4)


def test_the_backbone_learns_at_a_rate_of_its_own():
    """Its biases too, at twice this rate."""
    model = SSD300(3, width=0.01)
    groups = make_optimizer(model, Settings(("x",), network="ssd300", lr_backbone=0.1)).param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    expected = {
        id(p): (0.1 if name.startswith("base.") else 1) * (2 if name.endswith(".bias") else 1)
        for name, p in model.named_parameters()
    }
    assert scales == pytest.approx(expected)
    assert sorted(group["lr_scale"] for group in groups) == [0.1, 0.2, 1, 2]
    equal = make_optimizer(
        model, Settings(("x",), network="ssd300", lr_backbone=0.5)
    ).param_groups  # biases of the backbone: 2 x 0.5
    assert sorted((group["lr_scale"], len(group["params"])) for group in equal)[0] == (0.5, 15)
    assert sum(len(group["params"]) for group in equal) == len(list(model.parameters()))


def test_adamw_has_one_rate():
    model = SSD300(3, width=0.01)
    optimizer = make_optimizer(model, Settings(("x",), network="ssd300", optimizer="adamw", momentum=0.8))
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert (group["lr_scale"], group["lr"], group["weight_decay"], group["betas"]) == (1, 2e-3, 0.01, (0.8, 0.999))
