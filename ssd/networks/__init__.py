"""Networks, one file each, and the prior boxes that their predictions are relative to."""

from __future__ import annotations

from typing import Any

from ssd.networks.network import Network
from ssd.networks.resnet import ResNet34, ResNet50
from ssd.networks.ssd300 import SSD300
from ssd.networks.ssd512 import SSD512
from ssd.networks.ssdlite import SSDLite, SSDLite320
from ssd.networks.timm import Timm

__all__ = ["DEFAULT", "LIGHT", "LIGHT_COCO", "NAMES", "NETWORKS", "Network", "build_network", "network_class"]

#: The classes of all networks by name. A new network needs one file and one entry here.
NETWORKS: dict[str, type[Network]] = {
    network.name: network for network in (SSD300, SSD512, SSDLite320, SSDLite, ResNet34, ResNet50, Timm)
}
NAMES = tuple("timm:NAME" if name == Timm.name else name for name in NETWORKS)  # as users write them
# Where the user names none. Training on a CPU chooses a light one; torchvision's weights of COCO exist for the latter.
DEFAULT = SSD300.name
LIGHT, LIGHT_COCO = SSDLite.name, SSDLite320.name


def network_class(name: str) -> type[Network]:
    """Finds the class of a network.

    Args:
        name: a key of `NETWORKS`, or "timm:NAME" with the name of a model of timm.

    Raises:
        ValueError: there is no such network.
    """
    kind, _, backbone = str(name).partition(":")
    if kind not in NETWORKS or (kind == Timm.name) != bool(backbone):
        own = "; give the name of the class, after NETWORKS[name] = class" if isinstance(name, type) else ""
        raise ValueError(f"network must be one of {', '.join(NAMES)}, got {name!r}{own}")
    return NETWORKS[kind]


def build_network(name: str, n_classes: int, **config: Any) -> Network:  # plain values of several types
    """Builds a network with random parameters, on the CPU.

    Args:
        name: see `network_class`.
        n_classes: number of classes, background included, at least 2.
        config: the other arguments of the network, such as those in its attribute `config`.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: there is no such network, or an argument is out of range.
        TypeError: the network does not take an argument, or n_classes is no whole number.
        ImportError: a package that the network needs is not installed.

    Examples:
        >>> import torch
        >>> from ssd import build_network
        >>> network = build_network("ssdlite", n_classes=3, size=224, width=0.1).eval()
        >>> offsets, logits = network(torch.zeros(1, 3, 224, 224))
        >>> offsets.shape, logits.shape, network.priors_cxcy.shape
        (torch.Size([1, 1602, 4]), torch.Size([1, 1602, 3]), torch.Size([1602, 4]))
    """
    network = network_class(name)
    _, _, backbone = name.partition(":")
    return network(n_classes, **config | ({"backbone": backbone} if backbone else {}))
