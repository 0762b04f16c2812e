"""SSD networks in PyTorch: networks, loss, detection, training and evaluation, built on the ops of `ssd_ext`."""

from ssd.detection import detect
from ssd.fusion import soft_nms, weighted_box_fusion
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


def __getattr__(name: str) -> object:  # imported on first use: both import torchvision, which takes seconds
    if name == "accelerate":
        from ssd.acceleration import accelerate

        return accelerate
    if name == "Detector":
        from ssd.inference.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
