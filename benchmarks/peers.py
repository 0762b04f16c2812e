"""torchvision's functions and methods, called on the same predictions as the other contenders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from inputs import Inputs
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from ssd_ext import DetectionOptions, LossOptions

LOSS, DETECTION = LossOptions(), DetectionOptions()
MATCHER = SSDMatcher(LOSS.threshold)
CODER = BoxCoder((1 / LOSS.center_variance,) * 2 + (1 / LOSS.size_variance,) * 2)
SIDE = 300.0


def match(images: list[Tensor], priors: Tensor) -> Tensor:
    """(B, P) int32: the object of each prior. One image at a time, like its SSD."""
    return torch.stack([MATCHER(torchvision.ops.box_iou(boxes, priors)) for boxes in images]).to(torch.int32)


def select_hard_negatives(loss: Tensor, positive: Tensor) -> Tensor:
    """(B, P) bool: whether a prior is a hard negative, by the double sort of its SSD."""
    order = loss.masked_fill(positive, -torch.inf).sort(1, descending=True).indices
    return order.sort(1).indices < LOSS.neg_pos_ratio * positive.sum(1, keepdim=True)


def ssd(classes: int, options: DetectionOptions = DETECTION, most_candidates: int = 400) -> SSD:
    """Its SSD without a network, for the methods that work on predictions; NMS gets `most_candidates` of each class."""
    backbone = nn.Identity()
    backbone.out_channels = [1]
    its = {"score_thresh": options.min_score, "nms_thresh": options.max_overlap, "detections_per_img": options.top_k}
    return SSD(backbone, DefaultBoxGenerator([[2]]), (300, 300), classes, **its, topk_candidates=most_candidates)


def loss(ssd: SSD, x: Inputs):
    """conf_loss and loc_loss (smooth L1, sum per positive): matching as in `forward`, then `compute_loss`."""
    matched = [ssd.proposal_matcher(torchvision.ops.box_iou(boxes, x.priors_xyxy)) for boxes in x.box_lists]
    targets = [{"boxes": b, "labels": n} for b, n in zip(x.box_lists, x.label_lists, strict=True)]
    predictions = {"bbox_regression": x.pred_offsets, "cls_logits": x.pred_logits}
    losses = ssd.compute_loss(targets, predictions, [x.priors_xyxy] * len(targets), matched)
    return losses["classification"], losses["bbox_regression"]


def detect(ssd: SSD, x: Inputs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (k, 4), labels (k,) and scores (k,) of each image by `postprocess_detections`.

    It clips boxes to the image, which changes their IoUs. The priors are therefore placed in the middle of an image of
    three times the size: clipping is still timed, but changes nothing.
    """
    images = len(x.pred_logits)
    predictions = {"bbox_regression": x.pred_offsets, "cls_logits": x.pred_logits}
    anchors = [x.priors_xyxy * SIDE + SIDE] * images
    found = ssd.postprocess_detections(predictions, anchors, [(int(3 * SIDE), int(3 * SIDE))] * images)
    return [((d["boxes"] - SIDE) / SIDE, d["labels"], d["scores"]) for d in found]


def _of_arrays(function: Callable[..., Any]) -> Callable[[Tensor, Tensor, float], Tensor]:
    """An NMS of NumPy arrays as one of tensors."""
    return lambda boxes, scores, threshold: torch.as_tensor(function(boxes.numpy(), scores.numpy(), threshold)).long()


def nms_peers() -> dict[str, Callable[[Tensor, Tensor, float], Tensor] | str]:
    """NMS of other packages for CPU tensors, or what to install; `pip install lsnms powerboxes opencv-python-headless`.

    All but torchvision's return the kept boxes in another order, or of another dtype.
    """
    peers: dict[str, Callable[[Tensor, Tensor, float], Tensor] | str] = {"torchvision": torchvision.ops.nms}
    try:
        import lsnms

        # An R-tree in Numba; double precision is what it compiles for.
        peers["lsnms"] = _of_arrays(lambda b, s, t: lsnms.nms(b.astype("f8"), s.astype("f8"), t, 0.0))
    except ImportError:
        peers["lsnms"] = "not installed"
    try:
        import powerboxes

        peers["powerboxes"] = _of_arrays(lambda b, s, t: powerboxes.rtree_nms(b.astype("f8"), s.astype("f8"), t, -1.0))
    except ImportError:
        peers["powerboxes"] = "not installed"
    try:
        import cv2

        def opencv(boxes, scores, threshold):
            sides = boxes - boxes[:, [0, 1, 0, 1]] * [0, 0, 1, 1]
            return cv2.dnn.NMSBoxes(sides.tolist(), scores.tolist(), 0.0, threshold)

        peers["opencv"] = _of_arrays(opencv)
    except ImportError:
        peers["opencv"] = "not installed"
    return peers
