"""Recipes of training: settings that belong together."""

import math
from typing import Any, NamedTuple

from ssd.networks.priors import FITTED
from ssd.networks.ssdlite import SSDLite, SSDLite320

# Upper limit of the default number of epochs: a network soon memorises a handful of pictures.
MOST_EPOCHS = 400
# What AdamW takes instead of SGD's rate and weight decay, in each recipe (docs/recipes.md, "Small networks").
ADAMW: dict[str, Any] = {"lr": 2e-3, "weight_decay": 0.01}
BY_NETWORK = ("optimizer", *ADAMW)  # settings whose defaults depend on the network
_SSDLITE = (SSDLite.name, SSDLite320.name)


class Recipe(NamedTuple):
    """Settings that were measured together. They are the defaults of the settings of a run."""

    what: str  # purpose of the recipe; completes the phrase "for ..."
    # Fields of `ssd.training.settings.Settings`; each value has the type of its field. "loss" has fields of
    # `LossOptions`.
    settings: dict[str, Any]
    source: str  # papers, files and measurements
    pictures: int  # least number of pictures seen in a run, counted with repetitions
    epochs: int  # least number of epochs of a run
    networks: dict[str, dict[str, Any]]  # name of a network -> its settings, where they differ
    pictures_of: dict[str, int]  # name of a network -> its least number of pictures, where it differs


RECIPES: dict[str, Recipe] = {
    "scratch": Recipe(
        "random weights",
        {
            "augment": "mild",
            "priors": "torchvision",
            "batch_norm": True,
            "head_batch_norm": True,
            "optimizer": "sgd",
            "lr": 3e-2,
            "weight_decay": 5e-4,
            "schedule": "onecycle",
            "warmup": 0,
            "clip_grad": 5.0,
            "loss": {"loc_loss": "smooth_l1"},
        },
        "ScratchDet, arXiv 1810.08425; Smith and Topin, Super-Convergence, arXiv 1708.07120; docs/recipes.md",
        pictures=7200,
        epochs=25,
        networks={name: {"priors": FITTED, "optimizer": "adamw"} for name in _SSDLITE},
        pictures_of=dict.fromkeys(_SSDLITE, 20_000),
    ),
    "finetune": Recipe(
        "weights of a detector or of a backbone",
        {  # the learning rate depends on the network: `lr_for`
            "augment": "mild",
            "optimizer": "sgd",
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "warmup": 500,
            "clip_grad": 5.0,
            "loss": {"loc_loss": "smooth_l1"},
        },
        "docs/recipes.md",
        pictures=7200,
        epochs=25,
        networks={},
        pictures_of={},
    ),
    "tutorial": Recipe(
        "comparisons with sgrvinod's tutorial",
        {
            "augment": "ssd",
            "optimizer": "sgd",
            "lr": 1e-3,
            "weight_decay": 5e-4,
            "schedule": "step",
            "warmup": 500,
            "clip_grad": 0.0,
            "loss": {},
        },
        "sgrvinod/a-PyTorch-Tutorial-to-Object-Detection, train.py",
        pictures=0,
        epochs=120,
        networks={},
        pictures_of={},
    ),
}


def epochs_for(recipe: str, network: str, pictures: int) -> int:
    """Returns the default number of epochs.

    Args:
        recipe: a key of `RECIPES`.
        network: name of the network.
        pictures: number of training pictures, at least 1.
    """
    chosen = RECIPES[recipe]
    enough = math.ceil(chosen.pictures_of.get(network, chosen.pictures) / pictures)
    return max(chosen.epochs, min(enough, MOST_EPOCHS))


def eval_every_for(epochs: int) -> int:
    """Returns the default number of epochs between validations: ten to nineteen validations in a run."""
    return max(1, epochs // 10)


def lr_for(recipe: str, network: str, head_batch_norm: bool) -> float:
    """Returns the default learning rate.

    Args:
        recipe: a key of `RECIPES`.
        network: name of the network.
        head_batch_norm: whether the network has batch normalisation in its heads. If the recipe has no rate of its own,
            such a network gets ten times the rate of others, and a small one thirty times.
    """
    rate: float
    if "lr" in RECIPES[recipe].settings:
        rate = RECIPES[recipe].settings["lr"]
    elif not head_batch_norm:
        rate = 1e-3
    else:
        rate = 3e-2 if network in _SSDLITE else 1e-2
    return rate
