"""SSD networks in PyTorch: networks, loss, detection, training and evaluation, built on the ops of `ssd_ext`."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssd.acceleration import accelerate
    from ssd.detection import detect
    from ssd.fusion import soft_nms, weighted_box_fusion
    from ssd.inference.detector import Detector
    from ssd.loss import MultiBoxLoss
    from ssd.networks import build_network
    from ssd.networks.ssd300 import SSD300
    from ssd.weights.loading import load_weights

__all__ = [
    "SSD300",
    "Detector",
    "MultiBoxLoss",
    "accelerate",
    "build_network",
    "detect",
    "load_weights",
    "soft_nms",
    "weighted_box_fusion",
]

_MODULES = {
    "SSD300": "ssd.networks.ssd300",
    "Detector": "ssd.inference.detector",
    "MultiBoxLoss": "ssd.loss",
    "accelerate": "ssd.acceleration",
    "build_network": "ssd.networks",
    "detect": "ssd.detection",
    "load_weights": "ssd.weights.loading",
    "soft_nms": "ssd.fusion",
    "weighted_box_fusion": "ssd.fusion",
}


# Imported on first use, as the modules of the package are. Some of them import torchvision, which takes seconds, and
# most import torch, before which ssd.cli has to set an environment variable.
def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name.isidentifier() and not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
