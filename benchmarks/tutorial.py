"""SSD's loss and detection in the style of the tutorial: loops over images and classes.

Written for this comparison from a description; docs/semantics.md says what it computes. Boxes are in fractions of the
image, and xyxy unless a name says cxcywh.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from inputs import Inputs
from torch import Tensor

from ssd_ext import DetectionOptions


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) IoU of (N, 4) and (M, 4)."""
    low = torch.max(a[:, None, :2], b[None, :, :2])
    high = torch.min(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    return shared / (area_a[:, None] + area_b[None, :] - shared)


def to_cxcywh(boxes: Tensor) -> Tensor:
    return torch.cat([(boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


def to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def encode(boxes: Tensor, priors_cxcywh: Tensor) -> Tensor:
    """(P, 4) offsets of one image."""
    b = to_cxcywh(boxes)
    centre = (b[:, :2] - priors_cxcywh[:, :2]) / (priors_cxcywh[:, 2:] / 10)
    return torch.cat([centre, torch.log(b[:, 2:] / priors_cxcywh[:, 2:]) * 5], dim=1)


def decode(offsets: Tensor, priors_cxcywh: Tensor) -> Tensor:
    """(P, 4) boxes of one image."""
    centre = offsets[:, :2] * priors_cxcywh[:, 2:] / 10 + priors_cxcywh[:, :2]
    return to_xyxy(torch.cat([centre, torch.exp(offsets[:, 2:] / 5) * priors_cxcywh[:, 2:]], dim=1))


def match(boxes: Tensor, priors: Tensor, threshold: float = 0.5) -> Tensor:
    """(P,) int64: the object of each prior of one image, -1 for background."""
    overlap = iou(boxes, priors)
    best, which = overlap.max(dim=0)
    forced = overlap.max(dim=1).indices
    which[forced] = torch.arange(len(boxes), device=boxes.device)
    best[forced] = 1.0
    which[best < threshold] = -1
    return which


def hardest(losses: Tensor, positive: Tensor, ratio: int = 3) -> Tensor:
    """The losses of the hard negatives of a batch, by sorting all losses."""
    ordered = losses.masked_fill(positive, 0).sort(dim=1, descending=True).values
    rank = torch.arange(losses.shape[1], device=losses.device)
    return ordered[rank < ratio * positive.sum(dim=1, keepdim=True)]


def loss(x: Inputs) -> tuple[Tensor, Tensor]:
    """conf_loss and loc_loss (L1) of a batch."""
    classes, offsets = [], []
    for image_boxes, image_labels in zip(x.box_lists, x.label_lists, strict=True):
        which = match(image_boxes, x.priors_xyxy)
        image_classes = image_labels[which]
        image_classes[which < 0] = 0
        classes.append(image_classes)
        offsets.append(encode(image_boxes[which], x.priors_cxcywh))
    classes, offsets = torch.stack(classes), torch.stack(offsets)
    positive = classes > 0
    loc_loss = F.l1_loss(x.pred_offsets[positive], offsets[positive])
    losses = F.cross_entropy(x.pred_logits.flatten(0, 1), classes.flatten(), reduction="none").view(classes.shape)
    conf_loss = (losses[positive].sum() + hardest(losses, positive).sum()) / positive.sum()
    return conf_loss, loc_loss


def nms(boxes: Tensor, scores: Tensor, max_overlap: float) -> Tensor:
    """Kept indices, highest score first: the IoU of all pairs, then a loop over the boxes."""
    order = scores.sort(descending=True).indices
    overlap = iou(boxes[order], boxes[order])
    suppressed = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    kept = []
    for i in range(len(boxes)):
        if suppressed[i]:
            continue
        kept.append(i)
        suppressed |= overlap[i] > max_overlap
    return order[kept]


def detect(x: Inputs, options: DetectionOptions) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (k, 4), labels (k,) and scores (k,) of each image."""
    found = []
    for image_offsets, image_scores in zip(x.pred_offsets, x.pred_logits.softmax(dim=2), strict=True):
        decoded = decode(image_offsets, x.priors_cxcywh)
        boxes, labels, scores = [decoded[:0]], [decoded.new_zeros(0, dtype=torch.int64)], [decoded.new_zeros(0)]
        for label in range(1, image_scores.shape[1]):
            passing = image_scores[:, label] > options.min_score
            if not passing.any():
                continue
            class_boxes, class_scores = decoded[passing], image_scores[passing, label]
            kept = nms(class_boxes, class_scores, options.max_overlap)
            boxes.append(class_boxes[kept])
            labels.append(torch.full_like(kept, label))
            scores.append(class_scores[kept])
        boxes, labels, scores = torch.cat(boxes), torch.cat(labels), torch.cat(scores)
        best = scores.sort(descending=True).indices[: options.top_k]
        found.append((boxes[best], labels[best], scores[best]))
    return found
