"""SSD300 of other projects: the names of its parameters, and the priors and input normalisation it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd.networks.ssd300 import EXTRAS, IMAGENET_MEAN, IMAGENET_STD, SOURCES, SSD300, VGG_BLOCKS

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
BYTE = (1 / 255,) * 3  # standard deviation for networks whose input is 0..255


class Peer(NamedTuple):
    """The SSD300 of another project, at width 1 and without batch norm.

    Attributes:
        title: its name in error messages.
        factors: name of the parameter that rescales conv4_3.
        convs: names of the convolutions in the order of `SSD300`: base, extra layers, offset heads, class heads.
        priors: name of a preset of `ssd.networks.priors`.
        mean, std: mean and standard deviation of the input normalisation, RGB in 0..1.
    """

    title: str
    factors: str
    convs: tuple[str, ...]
    priors: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def names(self) -> list[str]:
        """Names of its state dict, in the order of the state dict of `SSD300`."""
        return [self.factors, *(f"{conv}.{kind}" for conv in self.convs for kind in ("weight", "bias"))]


PEERS = (
    Peer(
        "sgrvinod's tutorial",
        "rescale_factors",
        (
            *(f"base.conv{block}_{i + 1}" for block, (n, _) in enumerate(VGG_BLOCKS, 1) for i in range(n)),
            *("base.conv6", "base.conv7"),
            *(f"aux_convs.conv{block}_{i}" for block, *_ in EXTRAS for i in (1, 2)),
            *(f"pred_convs.{head}_{source}" for head in ("loc", "cl") for source in SOURCES),
        ),
        priors="tutorial",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    Peer(
        "torchvision's ssd300_vgg16",
        "backbone.scale_weight",
        (
            *(f"backbone.features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)),
            *(f"backbone.extra.0.{i}" for i in ("1", "3", "5", "7.1", "7.3")),
            *(f"backbone.extra.{block}.{i}" for block in range(1, 5) for i in (0, 2)),
            *(f"head.{head}_head.module_list.{i}" for head in ("regression", "classification") for i in range(6)),
        ),
        priors="torchvision",
        mean=(0.48235, 0.45882, 0.40784),
        std=BYTE,
    ),
    # In training and evaluation, ssd.pytorch subtracts (104, 117, 123) from OpenCV's BGR and then converts to RGB.
    Peer(
        "amdegroot's ssd.pytorch",
        "L2Norm.weight",
        (
            *(f"vgg.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)),
            *(f"extras.{i}" for i in range(8)),
            *(f"{head}.{i}" for head in ("loc", "conf") for i in range(6)),
        ),
        priors="caffe_voc",
        mean=(123 / 255, 117 / 255, 104 / 255),
        std=BYTE,
    ),
)


def as_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the state dict of one of `PEERS` to a checkpoint, see `ssd.weights.checkpoint.load_checkpoint`.

    Args:
        state: tensors by the names that the project gives them; a prefix "module." of `DataParallel` is removed.

    Returns:
        Dict with "config", "model" and "classes". The names are those of the classes that the project trains on; if
        their number differs from that of the weights, "class 1", "class 2" and so on.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    state = {str(name).removeprefix("module."): v for name, v in state.items() if isinstance(v, Tensor)}
    peer = max(PEERS, key=lambda peer: len(state.keys() & set(peer.names)))
    missing, unknown = [n for n in peer.names if n not in state], [n for n in state if n not in peer.names]
    if len(missing) == len(peer.names):
        titles = ", ".join(peer.title for peer in PEERS)
        raise ValueError(f"neither a checkpoint of this package nor weights of {titles}; it contains {_some(unknown)}")
    if missing or unknown:
        raise ValueError(f"differs from {peer.title}: missing {_some(missing)}; unexpected {_some(unknown)}")

    n_classes = state[f"{peer.convs[-6]}.bias"].numel() // 4  # the class head of conv4_3 has 4 boxes per cell
    with torch.device("meta"):
        expected = SSD300(n_classes, priors=peer.priors, input_mean=peer.mean, input_std=peer.std)
    model = {}
    for (ours, like), theirs in zip(expected.state_dict().items(), peer.names, strict=True):
        value = state[theirs]
        if ours == "rescale_factors":
            value = value.reshape(1, -1, 1, 1)
        if value.shape != like.shape:
            raise ValueError(f"{theirs} of {peer.title} must have shape {tuple(like.shape)}, got {tuple(value.shape)}")
        model[ours] = value
    return {"config": expected.config, "model": model, "classes": _class_names(peer, n_classes - 1)}


def _class_names(peer: Peer, n: int) -> Sequence[str]:
    if peer.priors == "torchvision":
        from torchvision.models.detection import SSD300_VGG16_Weights

        _, *known = SSD300_VGG16_Weights.COCO_V1.meta["categories"]  # without background
        # Labels are COCO's category ids. 10 of these ids have no category; their names must still differ.
        known = [f"N/A {label}" if name == "N/A" else name for label, name in enumerate(known, 1)]
    else:
        known = VOC_CLASSES
    return known if len(known) == n else [f"class {label}" for label in range(1, n + 1)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3) or "nothing"
