"""Converts VGG16, trained on ImageNet, to the base of an SSD."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike

import torch
from torch import Tensor

from ssd.boxes import decimate
from ssd.networks.ssd300 import CONV7_CHANNELS, SSD300, VGG_BLOCKS
from ssd.weights.checkpoint import read
from ssd.weights.downloads import download

FC_CHANNELS = 4096
FC_STEP = FC_CHANNELS // CONV7_CHANNELS  # 4


def vgg16_to_ssd(vgg_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the state dict of an ImageNet classifier to that of the base of `SSD300`.

    The fully connected layers fc6 and fc7 become convolutions that keep every fourth channel; fc6 also keeps only every
    third row and column. `vgg16_bn` is converted to a base with batch norm. The convolutions of that base have no
    bias, so the biases are subtracted from the running means. In `vgg16_bn`, fc6 and fc7 have no batch norm; their
    batch norms in the base, bn6 and bn7, start as x + bias.

    Args:
        vgg_state: state dict of torchvision's `vgg16` or `vgg16_bn`, float tensors.

    Returns:
        State dict for `SSD300(...).base` at width 1, with or without batch norm as in `vgg_state`.

    Raises:
        ValueError: an entry is missing, has another shape or is not finite.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 3.
    """
    base: dict[str, Tensor] = {}
    batch_norm = "features.1.running_mean" in vgg_state

    take = partial(_take, vgg_state)

    def put(name: str, weight: Tensor, bias: Tensor, norm: dict[str, Tensor]) -> None:
        base[f"conv{name}.weight"] = weight
        if batch_norm:
            base.update({f"bn{name}.{key}": value for key, value in norm.items()})
            base[f"bn{name}.num_batches_tracked"] = torch.tensor(0)
        else:
            base[f"conv{name}.bias"] = bias

    inputs, index = 3, 0
    for block, (convs, channels) in enumerate(VGG_BLOCKS, 1):
        for i in range(1, convs + 1):
            weight = take(f"features.{index}.weight", channels, inputs, 3, 3)
            bias = take(f"features.{index}.bias", channels)
            norm = {}
            if batch_norm:
                keys = ("weight", "bias", "running_mean", "running_var")
                norm = {key: take(f"features.{index + 1}.{key}", channels) for key in keys}
                norm["running_mean"] = norm["running_mean"] - bias
            put(f"{block}_{i}", weight, bias, norm)
            inputs = channels
            index += 3 if batch_norm else 2  # convolution, batch norm, ReLU
        index += 1  # pool

    for name, fc, side, steps in (
        ("6", "classifier.0", 7, (FC_STEP, None, 3, 3)),
        ("7", "classifier.3", 1, (FC_STEP, FC_STEP, None, None)),  # its inputs are the channels that fc6 keeps
    ):
        weight = take(f"{fc}.weight", FC_CHANNELS, inputs * side * side)
        weight = decimate(weight.reshape(-1, inputs, side, side), steps)  # (1024, 512, 3, 3), (1024, 1024, 1, 1)
        bias = decimate(take(f"{fc}.bias", FC_CHANNELS), (FC_STEP,))  # (1024,)
        zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
        put(name, weight, bias, {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones})
        inputs = FC_CHANNELS
    return base


def _take(vgg_state: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    if name not in vgg_state:
        raise ValueError(f"not a state dict of torchvision's VGG16: {name} is missing")
    if vgg_state[name].shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(vgg_state[name].shape)}")
    if not vgg_state[name].isfinite().all():  # the classifier of torchvision's IMAGENET1K_FEATURES is NaN
        raise ValueError(f"{name} has values that are not finite")
    return vgg_state[name]


def load_vgg16_imagenet(model: SSD300, weights: str | PathLike[str] | None = None) -> None:
    """Fills the base of a model with ImageNet weights, in place.

    Args:
        model: a network of width 1. With batch norm it needs the weights of `vgg16_bn`, otherwise of `vgg16`.
        weights: file with the state dict of torchvision's model. None: the first call downloads it (about 530 MB)
            into torch's hub folder.

    Raises:
        ValueError: the model's width is not 1, or the file does not hold the VGG16 that the model needs.
        FileNotFoundError: no such file.
        OSError: the download failed.
    """
    width, batch_norm = model.config["width"], model.config["batch_norm"]
    if width != 1:
        raise ValueError(f"ImageNet weights fit a model of width 1, got width {width}")
    if weights is not None:
        state = read(weights)
    else:
        from torchvision.models import VGG16_BN_Weights, VGG16_Weights

        state = download((VGG16_BN_Weights if batch_norm else VGG16_Weights).IMAGENET1K_V1)
    base = vgg16_to_ssd(state)
    if ("bn1_1.weight" in base) != batch_norm:
        expected = "vgg16_bn" if batch_norm else "vgg16"
        raise ValueError(f"{batch_norm=} needs the weights of {expected}, got {weights}")
    model.base.load_state_dict(base)
