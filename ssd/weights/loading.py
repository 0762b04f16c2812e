"""Where weights come from: checkpoints of this package and of others, torchvision's downloads, VGG16 for the base."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from ssd.networks.ssd300 import SSD300
from ssd.runtime.device import pick_device, place
from ssd.weights.checkpoint import build_model, current, read
from ssd.weights.downloads import download
from ssd.weights.peers import as_checkpoint
from ssd.weights.vgg16 import load_vgg16_imagenet


def load_weights(
    source: str | PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    bgr: bool = False,
    device: str | None = None,
) -> tuple[SSD300, tuple[str, ...]]:
    """A trained detector and the names of its classes, from a file of this project or of another, see docs/weights.md.

    Runs no code from the file. Priors and input are those that the weights were trained with.

    Args:
        source: a file, or "coco": torchvision's SSD300, from torch's hub folder, where the first call downloads it
            (136 MB).
        classes: other names for the classes, without background.
        bgr: the network takes blue first, as ssd.pytorch's conversion of the Caffe weights does; its first layer is
            turned round, so that it takes RGB as every network here.
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.

    Returns:
        The network in evaluation mode, and the C-1 names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of those, the names are not as many as the classes, or the device cannot be used.
        OSError: the download failed.
    """
    checkpoint = open_weights(source)
    names = tuple(checkpoint["classes"])
    if classes is not None and len(classes) != len(names):
        raise ValueError(f"{source}: has {len(names)} classes, got {len(classes)} names")
    model = build_model(checkpoint, source)
    if bgr:
        first = model.base.conv1_1.weight
        first.data = first.data.flip(1)
    model = place(model, pick_device(device)).eval()
    return model, names if classes is None else tuple(classes)


def open_weights(source: str | PathLike[str]) -> dict[str, Any]:
    """The checkpoint in a file of this project or of another, from which `build_model` makes the network.

    Args:
        source: see `load_weights`.

    Returns:
        what `load_checkpoint` gives: "config", "model" and "classes", and what else a file of this project holds, such
        as "settings" of the run. Tensors are on the CPU.

    Raises:
        FileNotFoundError, ValueError, OSError: see `load_weights`.
    """
    return _as_checkpoint(_open(source), source)


def initial_model(n_classes: int, source: str | None = None, **config: Any) -> SSD300:
    """A network to train, from random or from trained weights.

    Args:
        n_classes: see `SSD300`.
        source: "imagenet" (VGG16 for the base, downloaded), a file of VGG16's weights, or what `load_weights` takes: a
            detector, of which all is taken that has the same shape, and its priors and input; with another number of
            classes the class heads start anew. None: random.
        config: arguments of `SSD300`; what is missing or None is as in the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of those, or its network another than that of `config`.
        OSError: the download failed.
    """
    config = {name: value for name, value in config.items() if value is not None}
    if source is None:
        return SSD300(n_classes, **config)
    found = None if source == "imagenet" else _open(source)
    if found is None or "features.0.weight" in found:
        has_norms = found is not None and "features.1.running_mean" in found
        model = SSD300(n_classes, **{"batch_norm": has_norms} | config)
        load_vgg16_imagenet(model, None if found is None else source)
        return model
    checkpoint = _as_checkpoint(found, source)
    network = build_model(checkpoint, source).config
    for name, value in config.items():
        if network[name] != value:
            raise ValueError(f"{source}: has {name} {network[name]}, and {value} is asked for: leave it out")
    model = SSD300(**network | {"n_classes": n_classes})
    state = model.state_dict()
    fitting = {k: v for k, v in checkpoint["model"].items() if k in state and v.shape == state[k].shape}
    model.load_state_dict(state | fitting)
    return model


def _open(source: str | PathLike[str]) -> dict[str, Any]:
    if source == "coco":
        from torchvision.models.detection import SSD300_VGG16_Weights

        return download(SSD300_VGG16_Weights.COCO_V1)
    found = read(source)
    if not isinstance(found, dict):
        raise ValueError(f"{source}: holds no weights, but a {type(found).__name__}")
    return found


def _as_checkpoint(found: dict[str, Any], source: str | PathLike[str]) -> dict[str, Any]:
    if "format" in found:
        return current(found, source)
    state = found.get("model")
    try:
        return as_checkpoint(state if isinstance(state, dict) else found)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
