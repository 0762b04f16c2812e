"""Detections of a batch as lists, image by image: a drop-in for the tutorial's `detect_objects`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd.runtime.packed import Packed, splits_of
from ssd_ext import DetectionOptions, postprocess_detections

DEFAULTS = DetectionOptions()


class Found(NamedTuple):
    """What was found in an image, or in many, whose rows then follow each other."""

    boxes: Tensor  # (k, 4) xyxy
    labels: Tensor  # (k,) int64
    scores: Tensor  # (k,)

    def in_pixels(self, width: Tensor | float, height: Tensor | float) -> Found:
        """Boxes in fractions of the image as boxes in pixels, cut at the edges of the image.

        Args:
            width, height: of the image in pixels; or (k,), of the image of each row.
        """
        size = torch.stack([torch.as_tensor(side).to(self.boxes) for side in (width, height) * 2], dim=-1)
        return self._replace(boxes=self.boxes.clamp(0, 1) * size)


def bounded(options: DetectionOptions, n_priors: int, n_classes: int) -> DetectionOptions:
    """Options that find the same in no more rows than there are candidates, however large top_k is.

    Args:
        options: as given.
        n_priors, n_classes: of the network, background included.
    """
    return options._replace(top_k=min(options.top_k, n_priors * (n_classes - 1)))


def detect(
    predicted_locs: Tensor,
    predicted_scores: Tensor,
    priors_cxcy: Tensor,
    min_score: float = DEFAULTS.min_score,
    max_overlap: float = DEFAULTS.max_overlap,
    top_k: int = DEFAULTS.top_k,
    **options: Any,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Decodes predictions, suppresses overlaps per class and keeps the best of each image.

    The lists need the number of detections on the host, one copy per batch; `ssd_ext.postprocess_detections` returns
    the same as padded tensors without it.

    Args:
        predicted_locs: (B, P, 4) predicted offsets.
        predicted_scores: (B, P, C) predicted class logits, class 0 = background.
        priors_cxcy: (P, 4) cxcywh.
        min_score, max_overlap, top_k, options: see `ssd_ext.DetectionOptions`.

    Returns:
        Three lists of length B: boxes (k, 4) float32 fractional xyxy, labels (k,) int64, scores (k,) float32, by
        descending score. An image with nothing found has the one box [0, 0, 1, 1] with label 0 and score 0.

    Raises:
        ValueError: wrong shape, dtype, device or number.
        TypeError: an unknown option.
    """
    chosen = bounded(DetectionOptions(min_score, max_overlap, top_k, **options), *predicted_scores.shape[-2:])
    boxes, labels, scores, counts = postprocess_detections(predicted_locs, predicted_scores, priors_cxcy, chosen)
    nothing = (boxes.new_tensor([[0, 0, 1, 1]]), labels.new_zeros(1), scores.new_zeros(1))
    images = [
        (boxes[i, :k], labels[i, :k], scores[i, :k]) if k else tuple(t.clone() for t in nothing)
        for i, k in enumerate(counts.tolist())
    ]
    all_boxes, all_labels, all_scores = ([image[j] for image in images] for j in range(3))
    return all_boxes, all_labels, all_scores


def unpad(padded: tuple[Tensor, Tensor, Tensor, Tensor]) -> Packed[Found]:
    """What was found in each image, on the host, without boxes that are NaN.

    Args:
        padded: boxes, labels, scores and counts, as `ssd_ext.postprocess_detections` gives them.
    """
    boxes, labels, scores, counts = (column.cpu() for column in padded)
    real = torch.arange(boxes.shape[1]) < counts[:, None]
    real &= ~boxes.isnan().any(dim=2)
    return Packed(Found(boxes[real], labels[real], scores[real]), splits_of(real.sum(1)))
