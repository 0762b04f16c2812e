"""Detections of a batch as a list for each image: a drop-in replacement for the tutorial's `detect_objects`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd.runtime.packed import Packed, splits_of
from ssd_ext import DetectionOptions, postprocess_detections
from ssd_ext._checks import check_fields, check_names

DEFAULTS = DetectionOptions()
Padded = tuple[Tensor, Tensor, Tensor, Tensor]  # boxes, labels, scores, counts, see `ssd_ext.postprocess_detections`


class Found(NamedTuple):
    """The k detections of one image, or of several images one after the other.

    Attributes:
        boxes: (k, 4) xyxy, in fractions of the image or in pixels.
        labels: (k,) int64, 0 for the background.
        scores: (k,) in 0..1.

    Examples:
        >>> import torch
        >>> from ssd.detection import Found
        >>> found = Found(torch.tensor([[0.5, 0.25, 1.125, 0.75]]), torch.tensor([1]), torch.tensor([0.9]))
        >>> found.in_pixels(width=80, height=40).boxes
        tensor([[40., 10., 80., 30.]])
        >>> found.mirrored().boxes
        tensor([[-0.1250,  0.2500,  0.5000,  0.7500]])
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    def in_pixels(self, width: Tensor | float, height: Tensor | float) -> Found:
        """Converts boxes from fractions of the image to pixels, and cuts them at the edges of the image.

        Args:
            width, height: size of the image in pixels; or (k,), for each row the size of its image.

        Returns:
            The same detections with boxes in pixels.
        """
        size = torch.stack([torch.as_tensor(side).to(self.boxes) for side in (width, height) * 2], dim=-1)
        return self._replace(boxes=self.boxes.clamp(0, 1) * size)

    def mirrored(self) -> Found:
        """Converts boxes in fractions of an image to boxes in its mirror image, left and right exchanged."""
        x0, y0, x1, y1 = self.boxes.unbind(1)
        return self._replace(boxes=torch.stack([1 - x1, y0, 1 - x0, y1], dim=1))


def bounded(options: DetectionOptions, n_priors: int, n_classes: int) -> DetectionOptions:
    """Limits top_k to the number of candidates, so that a large top_k allocates no rows that stay empty.

    Args:
        options: the options to limit.
        n_priors: number of the network's priors.
        n_classes: number of the network's classes, background included.

    Returns:
        Options with which the same detections are found.
    """
    return options._replace(top_k=min(options.top_k, n_priors * (n_classes - 1)))


def detect(
    predicted_locs: Tensor,
    predicted_scores: Tensor,
    priors_cxcy: Tensor,
    min_score: float = DEFAULTS.min_score,
    max_overlap: float = DEFAULTS.max_overlap,
    top_k: int = DEFAULTS.top_k,
    **options: Any,  # each value has the type of its field in DetectionOptions
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Decodes predictions, removes overlapping boxes of each class, and keeps the best detections of each image.

    To build the lists, the numbers of detections are copied to the host once per batch.
    `ssd_ext.postprocess_detections` returns the same detections as padded tensors, without this copy.

    Args:
        predicted_locs: (B, P, 4) predicted offsets.
        predicted_scores: (B, P, C) predicted class logits, class 0 = background.
        priors_cxcy: (P, 4) cxcywh.
        min_score, max_overlap, top_k, options: see `ssd_ext.DetectionOptions`.

    Returns:
        Three lists of length B: boxes (k, 4) float32 xyxy in fractions of the image, labels (k,) int64, scores (k,)
        float32, by descending score. An image without detections has one box, [0, 0, 1, 1], with label 0 and score 0.

    Raises:
        ValueError: a shape, dtype, device or option is not allowed.
        TypeError: an option is unknown.

    Examples:
        >>> import torch
        >>> from ssd import detect
        >>> priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
        >>> logits = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]])  # background and one class; the first score is 0.95
        >>> boxes, labels, scores = detect(torch.zeros(1, 2, 4), logits, priors, min_score=0.5)
        >>> boxes[0].tolist(), labels[0].tolist(), round(scores[0].item(), 2)
        ([[0.25, 0.25, 0.75, 0.75]], [1], 0.95)
    """
    check_names(options, DetectionOptions._fields)
    chosen = DetectionOptions(min_score, max_overlap, top_k, **options)
    check_fields(chosen)
    chosen = bounded(chosen, *predicted_scores.shape[-2:])
    boxes, labels, scores, counts = postprocess_detections(predicted_locs, predicted_scores, priors_cxcy, chosen)
    nothing = (boxes.new_tensor([[0, 0, 1, 1]]), labels.new_zeros(1), scores.new_zeros(1))
    images = [
        (boxes[i, :k], labels[i, :k], scores[i, :k]) if k else tuple(t.clone() for t in nothing)
        for i, k in enumerate(counts.tolist())
    ]
    all_boxes, all_labels, all_scores = ([image[j] for image in images] for j in range(3))
    return all_boxes, all_labels, all_scores


def unpad(padded: Padded) -> Packed[Found]:
    """Copies padded detections to the host, and removes the padding and boxes with NaN.

    Args:
        padded: boxes (B, K, 4), labels (B, K), scores (B, K) and counts (B,), as `ssd_ext.postprocess_detections`
            returns them.

    Returns:
        The detections of each image.
    """
    boxes, labels, scores, counts = (column.cpu() for column in padded)
    real = torch.arange(boxes.shape[1]) < counts[:, None]
    real &= ~boxes.isnan().any(dim=2)
    return Packed(Found(boxes[real], labels[real], scores[real]), splits_of(real.sum(1)))
