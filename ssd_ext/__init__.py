"""Detection ops for SSD-type detectors: C++ and CUDA kernels, and plain PyTorch that gives the same answers."""

from ssd_ext import _registry  # noqa: F401  defines the ops; the libraries only implement them
from ssd_ext._info import Info, info
from ssd_ext._load import load_libraries
from ssd_ext.ops import (
    batched_nms,
    box_iou,
    decode_boxes,
    encode_boxes,
    match_priors,
    multibox_loss,
    nms,
    postprocess_detections,
    select_hard_negatives,
)

load_libraries()

__all__ = [
    "Info",
    "batched_nms",
    "box_iou",
    "decode_boxes",
    "encode_boxes",
    "info",
    "match_priors",
    "multibox_loss",
    "nms",
    "postprocess_detections",
    "select_hard_negatives",
]
