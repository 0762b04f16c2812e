"""SSD300 in PyTorch: network, loss, detection, training and evaluation, on the ops of `ssd_ext`."""

from ssd.detection import detect
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.weights import load_weights

__all__ = ["SSD300", "MultiBoxLoss", "detect", "load_weights"]
