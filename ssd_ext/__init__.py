"""Detection ops for SSD-type detectors: C++ and CUDA kernels, and plain PyTorch that gives the same answers."""

from ssd_ext._load import load_libraries

load_libraries()  # before the imports below: a library defines the schemas of its ops

# ruff: noqa: E402
from ssd_ext._info import Info, info
from ssd_ext.ops.box_coding import decode_boxes, encode_boxes
from ssd_ext.ops.box_iou import box_iou
from ssd_ext.ops.match_priors import match_priors
from ssd_ext.ops.multibox_loss import LossOptions, multibox_loss
from ssd_ext.ops.nms import batched_nms, nms
from ssd_ext.ops.postprocess_detections import DetectionOptions, postprocess_detections
from ssd_ext.ops.select_hard_negatives import select_hard_negatives

__all__ = [
    "DetectionOptions",
    "Info",
    "LossOptions",
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
