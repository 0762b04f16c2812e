"""Detectors of other projects: the names of their parameters, and the priors and input they were trained with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd.networks import build_network, network_class
from ssd.networks.network import DESCRIPTION
from ssd.networks.ssd300 import SSD300
from ssd.networks.ssd512 import SSD512
from ssd.networks.ssdlite import SSDLite320
from ssd.networks.vgg16 import VGGNetwork

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
COCO_CLASSES = 80
BYTE = (1 / 255,) * 3  # standard deviation for networks whose input is 0..255
CAFFE = {"input_mean": (123 / 255, 117 / 255, 104 / 255), "input_std": BYTE}  # of Caffe's VGG16, for RGB
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")  # at the start of names, of modules that contain a network
VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)  # numbers of the convolutions in ssd.pytorch


class Peer(NamedTuple):
    """A network of another project.

    Attributes:
        title: its name in error messages.
        network: the name of our network with the same layers.
        names: names of its state dict in the order of ours, at width 1 and without batch norm in VGG16. Empty: ours.
        classes: a class head, with its number of boxes per cell; the number of classes is computed from its bias.
        config: arguments of our network: priors and input normalisation.
        coco: layout of the priors if there are 81 classes, which are COCO's; None: that in `config`.
    """

    title: str
    network: str
    names: tuple[str, ...]
    classes: tuple[str, int]
    config: dict[str, Any]
    coco: str | None = None

    def all_names(self) -> Sequence[str]:
        """Names of its state dict in the order of ours."""
        if self.names:
            return self.names
        with torch.device("meta"):
            return list(build_network(self.network, 2).state_dict())


def _of_convs(factors: str, *convs: str) -> tuple[str, ...]:
    """Names of a state dict: the factors of conv4_3, then weight and bias of each convolution in our order."""
    return (factors, *(f"{conv}.{kind}" for conv in convs for kind in ("weight", "bias")))


def _ssd_pytorch(network: type[VGGNetwork]) -> Peer:
    """ssd.pytorch numbers its layers. It has only SSD300; its forks for 512 pixels continue the numbers."""
    names = _of_convs(
        "L2Norm.weight",
        *(f"vgg.{i}" for i in VGG_LAYERS),
        *(f"extras.{i}" for i in range(2 * len(network.extras))),
        *(f"{head}.{i}" for head in ("loc", "conf") for i in range(len(network.maps))),
    )
    title = "amdegroot's ssd.pytorch" if network is SSD300 else "a fork of amdegroot's ssd.pytorch for 512 pixels"
    return Peer(title, network.name, names, ("conf.0", 4), {"priors": "caffe_voc", **CAFFE})


def _lufficc(network: type[VGGNetwork]) -> Peer:
    """lufficc's project has the layers and numbers of ssd.pytorch under other names."""
    names = _of_convs(
        "backbone.l2_norm.weight",
        *(f"backbone.vgg.{i}" for i in VGG_LAYERS),
        *(f"backbone.extras.{i}" for i in range(2 * len(network.extras))),
        *(f"box_head.predictor.{head}_headers.{i}" for head in ("reg", "cls") for i in range(len(network.maps))),
    )
    classes = "box_head.predictor.cls_headers.0", 4
    config = {"priors": "caffe_voc", **CAFFE}
    return Peer(f"lufficc's vgg_{network.name}", network.name, names, classes, config, coco="caffe_coco")


PEERS = (
    Peer(
        "sgrvinod's tutorial",
        SSD300.name,
        names=(),
        classes=("pred_convs.cl_conv4_3", 4),
        config={"priors": "tutorial"},
    ),
    Peer(
        "torchvision's ssd300_vgg16",
        SSD300.name,
        names=_of_convs(
            "backbone.scale_weight",
            *(f"backbone.features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)),
            *(f"backbone.extra.0.{i}" for i in ("1", "3", "5", "7.1", "7.3")),
            *(f"backbone.extra.{block}.{i}" for block in range(1, 5) for i in (0, 2)),
            *(f"head.{head}_head.module_list.{i}" for head in ("regression", "classification") for i in range(6)),
        ),
        classes=("head.classification_head.module_list.0", 4),
        config={"priors": "torchvision", "input_mean": (0.48235, 0.45882, 0.40784), "input_std": BYTE},
    ),
    # In training and evaluation, ssd.pytorch subtracts (104, 117, 123) from OpenCV's BGR and then converts to RGB.
    # lufficc's project subtracts (123, 117, 104) from RGB.
    *(project(network) for project in (_ssd_pytorch, _lufficc) for network in (SSD300, SSD512)),
    Peer(
        "torchvision's ssdlite320_mobilenet_v3_large",
        SSDLite320.name,
        names=(),
        classes=("head.classification_head.module_list.0.1", 6),
        config={},
    ),
)


def as_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the state dict of one of `PEERS` to a checkpoint, see `ssd.weights.checkpoint.load_checkpoint`.

    Args:
        state: tensors by the names that the project gives them. What `DataParallel`, `AveragedModel` and
            `torch.compile` add to the names is removed.

    Returns:
        Dict with "network", "config", "model" and "classes". The names are those of the classes that the project trains
        on; if their number differs from that of the weights, "class 1", "class 2" and so on.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    contents = list(map(str, state))
    state = {WRAPPED.sub("", str(name)): v for name, v in state.items() if isinstance(v, Tensor)}
    state.pop("n_averaged", None)  # of AveragedModel
    # The names of torchvision's SSDlite are only made if there is one of them: they need torchvision.
    known = [(peer, peer.all_names()) for peer in PEERS if peer.names or f"{peer.classes[0]}.weight" in state]
    peer, names = max(known, key=lambda pair: len(state.keys() & set(pair[1])))
    missing, unknown = [n for n in names if n not in state], [n for n in state if n not in names]
    if len(missing) == len(names):
        titles = ", ".join(peer.title for peer in PEERS)
        there = _some(unknown or contents)
        raise ValueError(f"neither a checkpoint of this package nor weights of {titles}; it contains {there}")
    if missing or unknown:
        raise ValueError(f"differs from {peer.title}: missing {_some(missing)}; unexpected {_some(unknown)}")

    head, boxes = peer.classes
    n_classes = state[f"{head}.bias"].numel() // boxes
    priors = {"priors": peer.coco} if peer.coco and n_classes == COCO_CLASSES + 1 else {}
    with torch.device("meta"):
        config = peer.config | priors | network_class(peer.network).options_of(state)
        expected = build_network(peer.network, n_classes, **config)
    model = {}
    for (ours, like), theirs in zip(expected.state_dict().items(), names, strict=True):
        value = state[theirs]
        if ours == "rescale_factors":
            value = value.reshape(1, -1, 1, 1)
        if value.shape != like.shape:
            raise ValueError(f"{theirs} of {peer.title} must have shape {tuple(like.shape)}, got {tuple(value.shape)}")
        model[ours] = value
    classes = _class_names(n_classes - 1, peer)
    return {"network": peer.network, "config": expected.config, "model": model, "classes": classes}


def of_network(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Converts the state dict of a `Network` of this project, or of a module that contains one, to a checkpoint.

    Args:
        state: a state dict with torch's metadata, to which a `Network` adds its name and its config.

    Returns:
        See `as_checkpoint`; None if the metadata names no network.

    Raises:
        ValueError: there are several networks.
    """
    metadata = getattr(state, "_metadata", {})
    found = {
        place: each[DESCRIPTION] for place, each in metadata.items() if isinstance(each, dict) and DESCRIPTION in each
    }
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"contains {len(found)} networks, {_some(list(found))}: save one of them with save_checkpoint")
    ((place, described),) = found.items()
    prefix = f"{place}." if place else ""
    model = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        network, config, n_classes = described["network"], described["config"], described["config"]["n_classes"]
        return {"network": network, "config": config, "model": model, "classes": list(_class_names(n_classes - 1))}
    except (KeyError, TypeError) as error:
        raise ValueError(f"its metadata does not describe a network ({error!r})") from None


def _class_names(n: int, peer: Peer | None = None) -> Sequence[str]:
    known: Sequence[str] = VOC_CLASSES
    if peer and ("torchvision" in peer.title or (peer.coco and n == COCO_CLASSES)):
        from torchvision.models.detection import SSD300_VGG16_Weights

        _, *ids = SSD300_VGG16_Weights.COCO_V1.meta["categories"]  # without background
        if peer.coco:  # labels count the categories in the order of their ids
            known = [name for name in ids if name != "N/A"]
        else:  # labels are the ids. 10 of them have no category; their names must still differ
            known = [f"N/A {label}" if name == "N/A" else name for label, name in enumerate(ids, 1)]
    return known if len(known) == n else [f"class {label}" for label in range(1, n + 1)]


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names) or "nothing"
