"""Checkpoints: state dicts and plain metadata only, so that they load with `weights_only` anywhere, for years."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssd.atomic import replacing
from ssd.model import SSD300
from ssd.precision import pick_device, place
from ssd.weights import load_vgg16_imagenet

FORMAT = 2


def save_checkpoint(path: str | os.PathLike[str], model: SSD300, classes: Sequence[str], **extra: Any) -> None:
    """Writes a checkpoint: whole, or not at all.

    Args:
        path: the file.
        model: the network.
        classes: names of the classes, without background.
        extra: state dicts, numbers, strings, and lists and dicts of these.
    """
    checkpoint = {
        "format": FORMAT,
        "config": model.config,
        "model": model.state_dict(),
        "classes": list(classes),
        **extra,
    }
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, now or in an older version, onto the CPU; runs no code from the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint of this package.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint of this package")
    if checkpoint["format"] not in range(1, FORMAT + 1):
        raise ValueError(f"{path}: has format {checkpoint['format']}, this version reads 1 to {FORMAT}")
    if checkpoint["format"] == 1:  # did not keep its priors
        known = {name: checkpoint.pop(name) for name in ("width", "batch_norm")}
        checkpoint["config"] = {"n_classes": len(checkpoint["classes"]) + 1, **known}
    return checkpoint


def build_model(checkpoint: dict[str, Any]) -> SSD300:
    """The network of a checkpoint that `load_checkpoint` read, on the CPU."""
    model = SSD300(**checkpoint["config"])
    model.load_state_dict(checkpoint["model"])
    return model


def load_model(path: str | os.PathLike[str], device: str | None = None) -> tuple[SSD300, tuple[str, ...]]:
    """The network of a checkpoint in evaluation mode, and the names of its classes.

    Args:
        path: the file.
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`, or the device cannot be used.
    """
    checkpoint = load_checkpoint(path)
    return place(build_model(checkpoint), pick_device(device)).eval(), tuple(checkpoint["classes"])


def init_weights(model: SSD300, source: str) -> None:
    """Starts a model from trained weights, in place.

    Args:
        model: the network.
        source: "imagenet" (VGG16, downloaded by torchvision), a file of VGG16's weights, or a checkpoint, of which all
            is taken that has the same shape: with other classes the class heads start anew.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is neither, or of another width or batch_norm.
    """
    if source == "imagenet":
        load_vgg16_imagenet(model)
        return
    state = _read(source)
    if "format" not in state:
        load_vgg16_imagenet(model, source)
        return
    checkpoint = load_checkpoint(source)
    for name in ("width", "batch_norm"):
        its, ours = checkpoint["config"][name], model.config[name]
        if its != ours:
            raise ValueError(f"{source}: has {name} {its}, the model has {ours}")
    state = model.state_dict()
    fitting = {k: v for k, v in checkpoint["model"].items() if k in state and v.shape == state[k].shape}
    model.load_state_dict({**state, **fitting})


def _read(path: str | os.PathLike[str]) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint fails in many ways, KeyError among them
        reason = repr(error).splitlines()[0][:200]
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from error
