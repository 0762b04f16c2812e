"""Chooses the network of a run, its size, its priors and its mosaics, where neither the user nor the weights decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd.data.prior_fit import fit_priors, share_with_prior
from ssd.networks import DEFAULT, LIGHT, LIGHT_COCO, build_network, network_class
from ssd.networks.priors import FITTED, PriorSpec
from ssd.runtime.packed import Packed
from ssd.training.settings import Settings, resolved
from ssd.training.splits import Sets, objects_of, open_sets, prepared
from ssd.weights.loading import Initial, open_initial

SIZES = (320, 512, 640)  # sides of the input of `LIGHT` that are tried: the time of a step grows with the area
ENOUGH = 0.85  # least share of the objects of each class that the priors must fit; with less, the next size is tried
FEW = 10  # a class with fewer objects does not count, unless there is no other class: one odd object is no reason
# Mosaics show objects at half their size. They help if the priors still fit this share of them (docs/recipes.md).
ENOUGH_HALVES = 0.5
MOSAIC = 0.5  # share of the samples that are then mosaics


class Choice(NamedTuple):
    """The settings of a run, and why it has chosen the network.

    Attributes:
        settings: the settings, with the network and its size.
        why: the reason for the network; empty: the user or a detector has decided.
        by_data: whether the size is still to be chosen, see `choose_size`.
        fit: the reason for the size; empty if the data has not decided it.
        priors: the layout of priors; None if it is not known yet, or the data has no part in it.
        halves: the reason for mosaics, or against them; empty if the data has not decided.
    """

    settings: Settings
    why: str = ""
    by_data: bool = False
    fit: str = ""
    priors: PriorSpec | None = None
    halves: str = ""

    @property
    def notes(self) -> list[str]:
        """The lines that say what was chosen, why, and which flags override it; nothing if nothing was chosen."""
        lines = []
        if reasons := [reason for reason in (self.why, self.fit) if reason]:
            name, size = str(self.settings.network), self.settings.input_size
            by_flag = {"--network": self.why, "--size": network_class(name).sizes}
            flags = " or ".join(flag for flag, has in by_flag.items() if has)
            lines.append(f"network {name} at {size} pixels: {'; '.join(reasons)} ({flags} overrides this)")
        if self.halves:
            lines.append(f"mosaic {self.settings.mosaic:g}: {self.halves} (--mosaic overrides this)")
        return lines

    @property
    def waits(self) -> bool:
        """Whether the data still decides something, see `fit_to_data`."""
        fits = self.settings.priors == FITTED and self.priors is None
        return self.by_data or fits or self.settings.mosaic is None


def choose_network(settings: Settings, device: torch.device) -> tuple[Choice, Initial]:
    """Chooses the network, unless the settings name one or the weights are of one, and whether the data decides more.

    Without a trained head, a light network gets priors that are fitted to the data, with any recipe, and `LIGHT` a
    size that suits the data, unless the settings have them. With the recipe scratch, the data decides whether a light
    network has mosaics.

    Args:
        settings: the settings of a run.
        device: where it will run.

    Returns:
        The choice, and the initial weights of the network.

    Raises:
        FileNotFoundError, OSError: see `ssd.weights.loading.open_initial`.
        ValueError: see there; or a setting is not one of the network's, or the weights are those of a detector and the
            priors are to be fitted.
    """
    network, why = settings.network, ""
    if network is None and settings.weights in (None, "imagenet", "coco"):
        network, why = _by_device(settings, device)
    initial = open_initial(settings.weights, network)
    if network is None and initial.backbone is not None:
        why = "the weights are those of its backbone"
    chosen: dict[str, Any] = {"network": initial.network, "size": initial.input_size(settings.size)}
    new_heads, light = initial.checkpoint is None, initial.network in (LIGHT, LIGHT_COCO)
    if settings.priors == FITTED and not new_heads:
        raise ValueError(f"{initial.source}: a detector keeps its priors; leave out --priors {FITTED}")
    if settings.priors is None and new_heads and light:
        chosen["priors"] = FITTED
    if settings.mosaic is None and not (light and settings.recipe == "scratch"):
        chosen["mosaic"] = 0.0
    by_data = new_heads and settings.size is None and initial.network == LIGHT
    return Choice(replace(settings, **chosen), why, by_data), initial


def _by_device(settings: Settings, device: torch.device) -> tuple[str, str]:
    """The network for a device, and why."""
    if settings.recipe == "tutorial":
        return DEFAULT, f"the recipe tutorial is for comparisons with {DEFAULT}"
    if device.type != "cpu":
        return DEFAULT, f"on a GPU, this network is trained, which needs fewer pictures than {LIGHT}"
    light = LIGHT_COCO if settings.weights == "coco" else LIGHT
    if missing := settings.options_not_of(light):
        flags = {name: f"--{name.replace('_', '-')}" for name in missing} | {"priors": f"--priors {settings.priors}"}
        given = " and ".join(flags[name] for name in missing)
        return DEFAULT, f"{light}, which is trained on a CPU by default, does not have {given}"
    return light, f"on a CPU, this light network is trained instead of {DEFAULT}"


def choose_size(choice: Choice, objects: Packed[dict[str, Tensor]], classes: Sequence[str]) -> Choice:
    """Chooses the smallest of `SIZES` at which the priors fit enough of the objects of each class.

    Classes with less than `FEW` objects are ignored, unless every class has less.

    Args:
        choice: the network, and the settings that decide its priors.
        objects: the objects to train on, see `BoxDataset.objects`.
        classes: names of the classes.
    """
    boxes, labels = objects.columns["boxes"], objects.columns["labels"]
    by_class = [(name, labels == label) for label, name in enumerate(classes, 1)]
    by_class = [(name, its) for name, its in by_class if its.sum() >= FEW] or by_class
    tried: dict[int, tuple[float, str]] = {}  # the worst fitted class for each size
    threshold = choice.settings.loss_options.threshold
    for size in SIZES:
        settings = replace(choice.settings, size=size)
        priors = priors_for(settings, boxes)
        shares = [(share_with_prior(boxes[its], priors, threshold), name) for name, its in by_class]
        tried[size] = min(shares, default=(1.0, ""))
        if tried[size][0] >= ENOUGH:
            break
    *smaller, size = tried
    least, worst = tried[size]
    fit = f"its priors fit at least {least:.0%} of the objects of each class"
    if len(by_class) < len(classes):
        fit += f" with {FEW} objects or more"
    if smaller:
        share, name = tried[smaller[-1]]
        fit = f"at {smaller[-1]} pixels, its priors would fit only {share:.0%} of the objects of the class {name}"
    if least < ENOUGH:
        fit += f", and at {size}, the largest size that is tried, they fit {least:.0%} of the class {worst}"
    return choice._replace(settings=settings, by_data=False, fit=fit, priors=priors)


def fit_to_data(choice: Choice, objects: Packed[dict[str, Tensor]], classes: Sequence[str]) -> Choice:
    """Chooses what `choose_network` has left to the data: the size, the priors, and whether there are mosaics.

    Args:
        choice, objects, classes: see `choose_size`.
    """
    if choice.by_data:
        choice = choose_size(choice, objects, classes)
    settings, boxes = choice.settings, objects.columns["boxes"]
    if choice.waits and choice.priors is None:
        choice = choice._replace(priors=priors_for(settings, boxes))
    if settings.mosaic is not None:
        return choice
    number = torch.arange(len(boxes))  # so each quarter of a mosaic has as many objects
    halved = (boxes + torch.stack([number % 2, number // 2 % 2], 1).repeat(1, 2)) / 2
    share = share_with_prior(halved, resolved(choice.priors), settings.loss_options.threshold)
    mosaic, only = (MOSAIC, "") if share >= ENOUGH_HALVES else (0.0, "only ")
    halves = f"the priors fit {only}{int(100 * share)}% of the objects at half their size"
    return choice._replace(settings=replace(settings, mosaic=mosaic), halves=halves)


def priors_for(settings: Settings, boxes: Tensor) -> PriorSpec:
    """The layout of priors that the settings name, or the one that fits the objects best.

    Args:
        settings: settings with a network.
        boxes: (n, 4) float xyxy in fractions of the image.
    """
    with torch.device("meta"):
        network = build_network(str(settings.network), 2, **settings.network_options())
    if settings.priors != FITTED:
        return network.prior_spec
    return fit_priors(boxes, list(network.all_layouts().values()), settings.loss_options.threshold)


def open_chosen(choice: Choice) -> tuple[Sets, Choice]:
    """Opens the pictures of a new run, and chooses what is left to the data.

    Args:
        choice: what was chosen so far.

    Raises:
        FileNotFoundError, ValueError: see `ssd.training.splits.open_sets`.
    """
    sets = open_sets(choice.settings)
    if not choice.waits:
        return sets, choice
    choice = fit_to_data(choice, objects_of(sets.train), sets.classes)
    return prepared(sets, choice.settings), choice
