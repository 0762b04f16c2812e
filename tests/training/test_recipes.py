"""Which recipe a run takes, and what of it the run overrides."""

import pytest

from ssd.training.recipes import RECIPES, epochs_for
from ssd.training.settings import Settings


@pytest.mark.parametrize(
    ("given", "recipe"),
    [({}, "scratch"), ({"weights": "imagenet"}, "finetune"), ({"weights": "coco", "recipe": "tutorial"}, "tutorial")],
)
def test_a_recipe_is_chosen_by_the_weights_unless_it_is_named(given, recipe):
    settings = Settings(("data",), network="ssd300", **given)
    assert settings.recipe == recipe
    expected = RECIPES[recipe].settings
    assert {name: getattr(settings, name) for name in expected if name != "loss"} == {
        name: value for name, value in expected.items() if name != "loss"
    }
    assert expected["loss"].items() <= settings.loss._asdict().items()


def test_a_recipe_may_differ_for_a_network():
    assert [Settings(("data",), network=name).priors for name in ("ssd300", "ssdlite320", "ssdlite", "resnet34")] == [
        "torchvision",
        "auto",
        "auto",
        None,
    ]
    assert Settings(("data",), network="ssdlite", priors="caffe_coco").priors == "caffe_coco"
    assert Settings(("data",), network="ssdlite", weights="imagenet").priors is None
    assert "priors auto" in Settings(("data",), network="ssdlite").summary()


@pytest.mark.parametrize(
    ("given", "optimizer", "lr", "weight_decay"),
    [
        ({"network": "ssdlite"}, "adamw", 2e-3, 0.01),
        ({"network": "ssdlite", "optimizer": "sgd"}, "sgd", 3e-2, 5e-4),
        ({"network": "ssd300"}, "sgd", 3e-2, 5e-4),
        ({"network": "ssd300", "optimizer": "adamw"}, "adamw", 2e-3, 0.01),
        ({"network": "ssd300", "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.0}, "adamw", 1e-4, 0),
        ({"network": "ssd300", "recipe": "tutorial"}, "sgd", 1e-3, 5e-4),
    ],
)
def test_each_optimiser_has_its_rate_and_weight_decay(given, optimizer, lr, weight_decay):
    settings = Settings(("data",), **given)
    assert (settings.optimizer, settings.lr, settings.weight_decay) == (optimizer, lr, weight_decay)


def test_what_is_given_overrides_the_recipe():
    settings = Settings(("data",), network="ssd300", lr=0.5, batch_norm=False, loss={"min_negatives": 3})
    assert (settings.lr, settings.batch_norm, settings.head_batch_norm) == (0.5, False, True)
    assert (settings.loss.min_negatives, settings.loss.loc_loss) == (3, "smooth_l1")
    assert "recipe scratch: " in settings.summary()
    assert "lr 0.5" in settings.summary()


@pytest.mark.parametrize(
    ("recipe", "network", "pictures", "epochs"),
    [
        ("scratch", "ssd300", 1, 400),
        ("scratch", "ssd300", 18, 400),
        ("scratch", "ssd300", 100, 72),
        ("scratch", "ssd300", 263, 28),
        ("scratch", "ssd300", 10_000, 25),
        ("scratch", "ssdlite", 50, 400),
        ("scratch", "ssdlite320", 100, 200),
        ("scratch", "ssdlite", 10_000, 25),
        ("finetune", "ssdlite", 100, 72),
        ("tutorial", "ssd300", 1, 120),
    ],
)
def test_epochs_by_the_number_of_pictures(recipe, network, pictures, epochs):
    assert epochs_for(recipe, network, pictures) == epochs
