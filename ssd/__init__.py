"""SSD300 in PyTorch: network, loss, detection, training and evaluation, on the ops of `ssd_ext`."""

from ssd.detection import detect
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.weights import load_weights

__all__ = ["SSD300", "MultiBoxLoss", "accelerate", "detect", "load_weights"]


def __getattr__(name: str):
    if name == "accelerate":  # takes torchvision's models, which take a second to import
        from ssd.acceleration import accelerate

        return accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
