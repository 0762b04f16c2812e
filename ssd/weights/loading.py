"""Loading of weights: checkpoints of this project and of others, torchvision's downloads, and VGG16 for the base."""

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
    """Loads a trained detector and its class names from a file of this project or of another (docs/weights.md).

    Runs no code from the file. The network has the priors and the input normalisation that its weights were trained
    with.

    Args:
        source: a file; or "coco" for torchvision's SSD300, which the first call downloads (136 MB) into torch's hub
            folder.
        classes: names to use instead of those of the file, one for each of the C-1 classes, without background.
        bgr: the network was trained on BGR input, like ssd.pytorch's conversion of the Caffe weights. The channels of
            its first layer are reversed, so that it takes RGB like every network here.
        device: such as "cpu" or "cuda:0"; None: a GPU if there is one.

    Returns:
        The network in evaluation mode, and the C-1 names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no detector that can be loaded, the number of names differs from the number of
            classes, or the device cannot be used.
        OSError: the download failed.
    """
    checkpoint = open_weights(source)
    names = tuple(checkpoint["classes"])
    if classes is not None and len(classes) != len(names):
        raise ValueError(f"{source}: has {len(names)} classes, got {len(classes)} names")
    model = build_model(checkpoint, source)
    if bgr:
        first = model.base.get_parameter("conv1_1.weight")
        first.data = first.data.flip(1)
    model = place(model, pick_device(device)).eval()
    return model, names if classes is None else tuple(classes)


def open_weights(source: str | PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint from a file of this project or of another; `build_model` makes a network from it.

    Args:
        source: see `load_weights`.

    Returns:
        The dict that `load_checkpoint` describes; tensors are on the CPU. Only files of this project have extra
        entries, such as the "settings" of the run.

    Raises:
        FileNotFoundError, ValueError, OSError: see `load_weights`.
    """
    return _as_checkpoint(_open(source), source)


def initial_model(n_classes: int, source: str | None = None, **config: Any) -> SSD300:
    """Builds a network to train, from random or from trained weights, on the CPU.

    Args:
        n_classes: number of classes, background included.
        source: the initial weights. None: random. "imagenet": VGG16 for the base, downloaded. A file of VGG16's
            weights: the same from a file. Otherwise a detector as `load_weights` takes it: its priors, its input
            normalisation and all parameters of the same shape are used. If it has another number of classes, its class
            heads are replaced by random ones.
        config: arguments of `SSD300`. Those that are missing or None are taken from the detector, or else are the
            defaults of `SSD300`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds neither VGG16's weights nor a detector, or `config` contradicts the network in the
            file.
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
            raise ValueError(f"{source}: has {name} {network[name]}, but {value} was given; leave out that option")
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
        raise ValueError(f"{source}: contains no weights, but a {type(found).__name__}")
    return found


def _as_checkpoint(found: dict[str, Any], source: str | PathLike[str]) -> dict[str, Any]:
    if "format" in found:
        return current(found, source)
    state = found.get("model")
    try:
        return as_checkpoint(state if isinstance(state, dict) else found)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
