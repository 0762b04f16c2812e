"""Loading of weights: checkpoints of this project and of others, torchvision's downloads, and backbones."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

from torch import nn

from ssd.networks import DEFAULT, LIGHT, NETWORKS, Network, build_network, network_class
from ssd.networks.timm import Timm
from ssd.runtime.device import pick_device, place
from ssd.weights.backbone import fill_backbone, load_backbone
from ssd.weights.checkpoint import FORMAT, build_model, current, read
from ssd.weights.downloads import download
from ssd.weights.hub import local_file
from ssd.weights.peers import as_checkpoint, of_network

IN = ("model", "state_dict", "model_state_dict")  # keys under which programs save a state dict


def load_weights(
    source: str | PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    bgr: bool = False,
    device: str | None = None,
) -> tuple[Network, tuple[str, ...]]:
    """Loads a trained detector and its class names from a file of this project or of another (docs/weights.md).

    Runs no code from the file. The network has the priors and the input normalisation that its weights were trained
    with.

    Args:
        source: a file; or "coco" for torchvision's SSD300, trained on COCO, which the first call downloads (136 MB)
            into torch's hub folder; or "coco:ssdlite320" for torchvision's SSDlite (14 MB); or a file of the Hugging
            Face Hub, such as "hf://owner/name" (see `ssd.weights.hub.local_file`).
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
        ImportError: a package that the file needs is not installed.

    Examples:
        >>> from ssd import build_network, load_weights
        >>> from ssd.weights.checkpoint import save_checkpoint
        >>> save_checkpoint("small.pt", build_network("ssdlite", 3, size=224, width=0.1), ["cat", "dog"])
        >>> model, classes = load_weights("small.pt", device="cpu")
        >>> model.name, model.input_size, model.training, classes
        ('ssdlite', 224, False, ('cat', 'dog'))
    """
    checkpoint = open_weights(source)
    names = tuple(checkpoint["classes"])
    if classes is not None and len(classes) != len(names):
        raise ValueError(f"{source}: has {len(names)} classes, got {len(classes)} names")
    model = build_model(checkpoint, source)
    if bgr:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.weight.data = first.weight.data.flip(1)
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


class Initial(NamedTuple):
    """The initial weights of a network to train. `build` makes the network once the number of classes is known."""

    network: str  # name of the network
    source: str | None = None  # where the weights are from; None: random weights
    backbone: dict[str, Any] | None = None  # the state dict of a classifier, if the source is a file of it
    checkpoint: dict[str, Any] | None = None  # a detector, see `load_checkpoint`

    def input_size(self, size: int | None) -> int:
        """The side of the images in pixels, if this `size` is given."""
        kind = network_class(self.network)
        config = self.checkpoint["config"] if self.checkpoint else {}
        its = config.get("size", kind.input_size)
        if size is not None and size != its and self.checkpoint:
            raise ValueError(f"{self.source}: has size {its}, but {size} was given; leave out that option")
        kind.check_size(its if size is None else size)
        return its if size is None else size

    def build(self, n_classes: int, **config: Any) -> Network:  # plain values of several types
        """Builds the network on the CPU.

        Args:
            n_classes: number of classes, background included.
            config: arguments of the network. Those that are missing or None are taken from the detector, or else are
                the defaults of the network.

        Raises:
            ValueError: `config` contradicts the network of the weights, or the weights do not fit the network.
            OSError: the download failed.
        """
        kind = network_class(self.network)
        config = {name: value for name, value in config.items() if value is not None}
        if unknown := [name for name in config if name not in kind.options()]:
            there = ", ".join(kind.options()) or "no options"
            raise ValueError(f"the network {self.network} has no {', '.join(unknown)}, but {there}")
        if self.checkpoint is None:
            if self.source is not None:
                config = kind.backbone_options(self.backbone) | config
            model = build_network(self.network, n_classes, **config)
            if self.backbone is not None:
                fill_backbone(model, self.backbone, str(self.source))
            elif self.source is not None:
                load_backbone(model)
            return model
        source = str(self.source)
        network = build_model(self.checkpoint, source).config
        for name, value in config.items():
            if network.get(name, value) != value:
                raise ValueError(f"{source}: has {name} {network[name]}, but {value} was given; leave out that option")
        model = build_network(self.network, **network | {"n_classes": n_classes})
        state = model.state_dict()
        fitting = {k: v for k, v in self.checkpoint["model"].items() if k in state and v.shape == state[k].shape}
        model.load_state_dict(state | fitting)
        return model


def open_initial(source: str | None = None, network: str | None = None) -> Initial:
    """Reads the initial weights of a network to train.

    Args:
        source: None: random weights. "imagenet": a classifier's for the backbone, downloaded when the network is built.
            A file of such weights: the same from a file. Otherwise a detector as `load_weights` takes it: its priors,
            its input normalisation and all parameters of the same shape are used. If it has another number of classes,
            its class heads are replaced by random ones.
        network: name of the network; None: that of the detector, or one with the backbone in the file, or else
            `ssd.networks.DEFAULT`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no such network, the file holds neither a backbone of this network nor a detector, or the
            detector is another network.
        OSError: the download failed.
    """
    network_class(network or DEFAULT)
    if source is None or source == "imagenet":
        return Initial(network or DEFAULT, source)
    if source == "coco" and network:
        source = f"coco:{network}"
    found = _open(source)
    if "format" not in found:
        known = [name for name in NETWORKS if name != Timm.name]
        for state in (found, *map(found.get, IN)):
            for name in (network,) if network else (DEFAULT, LIGHT, *known):
                if isinstance(state, dict) and network_class(name).is_backbone(state):
                    return Initial(name, source, backbone=state)
        if others := [name for name in known if NETWORKS[name].is_backbone(found)]:
            raise ValueError(
                f"{source}: holds no weights for the network {network}, but the backbone of "
                f"{' and '.join(others)}: choose that network"
            )
    checkpoint = _as_checkpoint(found, source)
    its = checkpoint["network"]
    if network is not None and its != network:
        raise ValueError(f"{source}: has the network {its}, but {network} was given; leave out that option")
    return Initial(its, source, checkpoint=checkpoint)


def _open(source: str | PathLike[str]) -> dict[str, Any]:
    coco, _, name = str(source).partition(":")
    if coco == "coco":
        if (weights := network_class(name or DEFAULT).coco()) is None:
            there = " and ".join(name for name, kind in NETWORKS.items() if kind.coco() is not None)
            raise ValueError(f"{source}: there are no weights trained on COCO for the network {name}, only for {there}")
        return download(weights)
    found = read(local_file(source))
    if not isinstance(found, dict):
        raise ValueError(f"{source}: contains no weights, but a {type(found).__name__}")
    return found


def _as_checkpoint(found: dict[str, Any], source: str | PathLike[str]) -> dict[str, Any]:
    if "format" in found:
        return current(found, source)
    state = next((state for key in IN if isinstance(state := found.get(key), dict)), found)
    try:
        own = of_network(state)
        return as_checkpoint(state) if own is None else current({"format": FORMAT} | own, source)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
