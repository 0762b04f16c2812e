"""Networks, one file each, and the prior boxes that their predictions are relative to."""

from __future__ import annotations

from typing import Any

from ssd.networks.network import Network
from ssd.networks.resnet import ResNet34, ResNet50
from ssd.networks.ssd300 import SSD300
from ssd.networks.ssd512 import SSD512
from ssd.networks.ssdlite import SSDLite, SSDLite320

__all__ = ["DEFAULT", "NETWORKS", "Network", "build_network", "network_class"]

# A new network needs one file and one entry here.
NETWORKS: dict[str, type[Network]] = {
    network.name: network for network in (SSD300, SSD512, SSDLite320, SSDLite, ResNet34, ResNet50)
}
DEFAULT = SSD300.name


def network_class(name: str) -> type[Network]:
    """Finds the class of a network.

    Args:
        name: a key of `NETWORKS`.

    Raises:
        ValueError: there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]


def build_network(name: str, n_classes: int, **config: Any) -> Network:  # plain values of several types
    """Builds a network with random parameters, on the CPU.

    Args:
        name: see `network_class`.
        n_classes: number of classes, background included, at least 2.
        config: the other arguments of the network, such as those in its attribute `config`.

    Raises:
        ValueError: there is no such network, or an argument is out of range.
        TypeError: the network does not take an argument.
    """
    return network_class(name)(n_classes, **config)
