"""Recipes of training: what belongs together, and what it reached."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

MOST_EPOCHS = 400  # of a run: fewer than twenty pictures are soon known by heart


class Recipe(NamedTuple):
    """Settings that were measured together, for those that a run does not set by itself."""

    what: str  # it is for
    settings: dict[str, Any]  # fields of `ssd.training.settings.Settings`; those of "loss" are fields of `LossOptions`
    source: str
    pictures: int  # seen in a run, at least
    epochs: int  # of a run, at least


RECIPES = {
    "scratch": Recipe(
        "random weights",
        {
            "augment": "mild",
            "priors": "torchvision",
            "batch_norm": True,
            "head_batch_norm": True,
            "lr": 3e-2,
            "schedule": "onecycle",
            "warmup": 0,
            "clip_grad": 5.0,
            "loss": {"loc_loss": "smooth_l1"},
        },
        "ScratchDet, arXiv 1810.08425; Smith and Topin, Super-Convergence, arXiv 1708.07120; docs/recipes.md",
        pictures=7200,
        epochs=25,
    ),
    "finetune": Recipe(
        "weights of a detector or of VGG16",
        {  # and a rate by the network: `lr_for`
            "augment": "mild",
            "schedule": "cosine",
            "warmup": 500,
            "clip_grad": 5.0,
            "loss": {"loc_loss": "smooth_l1"},
        },
        "docs/recipes.md",
        pictures=7200,
        epochs=25,
    ),
    "tutorial": Recipe(
        "comparisons with sgrvinod's tutorial",
        {
            "augment": "ssd",
            "lr": 1e-3,
            "schedule": "step",
            "warmup": 500,
            "clip_grad": 0.0,
            "loss": {},
        },
        "sgrvinod/a-PyTorch-Tutorial-to-Object-Detection, train.py",
        pictures=0,
        epochs=120,
    ),
}


def epochs_for(recipe: str, pictures: int) -> int:
    """How many passes a run makes over so many training pictures, if it is not said."""
    least, enough = RECIPES[recipe].epochs, math.ceil(RECIPES[recipe].pictures / pictures)
    return max(least, min(enough, MOST_EPOCHS))


def lr_for(recipe: str, head_batch_norm: bool) -> float:
    """The learning rate, if it is not said; with batch norm in its heads a network bears ten times as much."""
    return RECIPES[recipe].settings.get("lr", 1e-2 if head_batch_norm else 1e-3)
