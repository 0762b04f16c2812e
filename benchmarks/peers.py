"""torchvision's own functions and methods, called on the same predictions as everything else."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

MATCHER = SSDMatcher(0.5)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # the inverse of the variances
SIDE = 300.0


def match(images: list[Tensor], priors: Tensor) -> Tensor:
    """(B, P) int32, image by image as its SSD does it."""
    return torch.stack([MATCHER(torchvision.ops.box_iou(boxes, priors)) for boxes in images]).to(torch.int32)


def select_hard_negatives(loss: Tensor, positive: Tensor) -> Tensor:
    """(B, P) bool: the double sort of its SSD."""
    masked = loss.masked_fill(positive, -torch.inf)
    return masked.sort(1, descending=True).indices.sort(1).indices < 3 * positive.sum(1, keepdim=True)


def ssd(classes: int, **settings: float) -> SSD:
    """Its SSD around no network, for the methods that work on predictions."""
    backbone = nn.Identity()
    backbone.out_channels = [1]
    return SSD(backbone, DefaultBoxGenerator([[2]]), (300, 300), classes, **settings)


def loss(ssd: SSD, locs: Tensor, logits: Tensor, boxes: list[Tensor], labels: list[Tensor], priors: Tensor):
    """conf_loss and loc_loss (smooth L1, summed, per positive): matching as in its `forward`, then `compute_loss`."""
    matched = [ssd.proposal_matcher(torchvision.ops.box_iou(b, priors)) for b in boxes]
    targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    predictions = {"bbox_regression": locs, "cls_logits": logits}
    losses = ssd.compute_loss(targets, predictions, [priors] * len(boxes), matched)
    return losses["classification"], losses["bbox_regression"]


def detect(ssd: SSD, locs: Tensor, logits: Tensor, priors: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (k, 4), scores (k,) and labels (k,) of each image by `postprocess_detections`.

    It clips boxes to the image, which changes their IoUs. The priors are therefore put into the middle of an image of
    three times the size: clipping is done, and timed, and changes nothing.
    """
    anchors = priors * SIDE + SIDE
    sizes = [(int(3 * SIDE), int(3 * SIDE))] * len(locs)
    predictions = {"bbox_regression": locs, "cls_logits": logits}
    found = ssd.postprocess_detections(predictions, [anchors] * len(locs), sizes)
    return [((d["boxes"] - SIDE) / SIDE, d["scores"], d["labels"]) for d in found]
