"""Settings of a run: those of older checkpoints, and what does not fit."""

import math
import re
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from ssd.data import AUGMENTATIONS, ReadOptions
from ssd.training.settings import Settings
from ssd_ext import LossOptions


def test_settings_of_older_checkpoints(shapes):
    """They had the options of the loss beside the others."""
    settings = Settings((shapes,), epochs=7, loss=LossOptions(loc_loss="smooth_l1", min_negatives=3))
    saved = settings.as_dict()
    assert Settings.from_dict(saved) == settings
    del saved["loss"]
    assert (
        Settings.from_dict(saved | {"loc_loss": "smooth_l1", "matching": "per_prior", "min_negatives": 3}) == settings
    )


def test_what_older_checkpoints_lack_is_off(shapes):
    saved = Settings((shapes,), epochs=7).as_dict()
    new = {"freeze": 0, "lr_backbone": 1.0, "patience": 0, "minutes": None}
    new |= {"ema": 0.0, "repeat_factor": 0.0}
    assert {name: saved.pop(name) for name in new} == new
    assert saved.pop("mosaic") is None  # a new run chooses
    new |= {"mosaic": 0.0}
    assert {name: getattr(Settings.from_dict(saved), name) for name in new} == new


def test_runs_of_older_versions_keep_torchvisions_augmentation(shapes):
    saved = Settings((shapes,), augment="ssd").as_dict()
    assert Settings.from_dict(saved).augment == "ssd"
    del saved["augment"]
    assert Settings.from_dict(saved).augment == "v2"
    choices, _ = get_args(get_type_hints(Settings)["augment"])  # or None
    assert set(AUGMENTATIONS) == set(get_args(choices))


def test_the_order_of_some_classes_means_nothing(shapes):
    """So a run can be resumed with another one."""
    both = [
        Settings((shapes,), reading=ReadOptions(only=only)) for only in (("square", "circle"), ["circle", "square"])
    ]
    assert both[0] == both[1] == Settings.from_dict(both[0].as_dict())
    with pytest.raises(ValueError, match=r"reading\.only must be a list of at least one class, got 'circle'"):
        Settings((shapes,), reading=ReadOptions(only="circle"))


def test_one_of_bf16_and_fp16():
    with pytest.raises(ValueError, match="one of bf16 and fp16"):
        Settings(("x",), bf16=True, fp16=True)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"schedule": "linear"}, {"epochs": 0}, {"lr": -1.0}, {"batch_size": 0}, {"warmup": -1}, {"width": math.nan}),
        *({"minutes": 0.0}, {"freeze": -1}, {"lr_backbone": 0.0}, {"patience": -1}, {"ema": 1.0}),
        *({"repeat_factor": -0.1}, {"mosaic": -0.1}, {"mosaic": 1.1}, {"epochs": 1.5}),
    ],
)
def test_bad_settings_name_themselves(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be .*{next(iter(wrong.values()))}"):
        Settings(("x",), **wrong)


@pytest.mark.parametrize("network", ["ssd301", torch.nn.Linear])
def test_a_network_that_there_is_not_is_named(network):
    with pytest.raises(ValueError, match=rf"^network must be one of ssd300, .*, got {re.escape(repr(network))}"):
        Settings(("x",), network=network)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"flips": "no"}, {"deterministic": "false"}, {"bf16": 1}, {"epochs": "20"}, {"lr": "0.1"}),
        *({"seed": math.inf}, {"batch_size": math.nan}),
    ],
)
def test_settings_of_another_type_name_themselves(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be .*, got {next(iter(wrong.values()))!r}"):
        Settings(("x",), **wrong)


def test_a_whole_number_is_stored_as_one():
    settings = Settings(("x",), epochs=20.0, batch_size=np.int64(4), accumulate=np.float32(2))
    assert [settings.epochs, settings.batch_size, settings.accumulate] == [20, 4, 2]
    assert {type(number) for number in (settings.epochs, settings.batch_size, settings.accumulate)} == {int}


@pytest.mark.parametrize("wrong", [{"loc_loss": "l2"}, {"threshold": 7}])
def test_bad_options_of_the_loss_name_themselves(wrong):
    with pytest.raises(ValueError, match=rf"loss\.{next(iter(wrong))} must be .*{next(iter(wrong.values()))}"):
        Settings(("x",), loss=wrong)


@pytest.mark.parametrize("wrong", [{"data": 5}, {"data": [torch.utils.data.TensorDataset()]}, {"val_data": {"a": 1}}])
def test_data_that_is_no_path_is_named(wrong):
    with pytest.raises(TypeError, match=rf"{next(iter(wrong))} must be paths of folders or archives, got "):
        Settings(**{"data": ("x",)} | wrong)


def test_one_folder_may_be_given_as_it_is(tmp_path):
    settings = Settings("pictures", val_data=tmp_path)
    assert (settings.data, settings.val_data) == (("pictures",), (str(tmp_path),))
