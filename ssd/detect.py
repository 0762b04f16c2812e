"""Detections of a batch as lists, image by image: a drop-in for the tutorial's `detect_objects`."""

from __future__ import annotations

import torch
from torch import Tensor

import ssd_ext
from ssd.model import SSD300
from ssd.precision import autocast, place


def detect(
    predicted_locs: Tensor,
    predicted_scores: Tensor,
    priors_cxcy: Tensor,
    min_score: float = 0.01,
    max_overlap: float = 0.45,
    top_k: int = 200,
    *,
    pre_nms_top_k: int | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Decodes predictions, suppresses overlaps per class and keeps the best of each image.

    The lists need the number of detections on the host, one copy per batch; `ssd_ext.postprocess_detections` returns
    the same as padded tensors without it.

    Args:
        predicted_locs: (B, P, 4) predicted offsets.
        predicted_scores: (B, P, C) predicted class logits, class 0 = background.
        priors_cxcy: (P, 4) cxcywh.
        min_score: candidates need a greater score.
        max_overlap: greatest IoU of two detections of one class.
        top_k: most detections per image.
        pre_nms_top_k: where given, only that many best candidates per image and class enter NMS.

    Returns:
        Three lists of length B: boxes (k, 4) float32 fractional xyxy, labels (k,) int64, scores (k,) float32, by
        descending score. An image with nothing found has the one box [0, 0, 1, 1] with label 0 and score 0.

    Raises:
        ValueError: wrong shape, dtype, device or number.
    """
    options = ssd_ext.DetectionOptions(min_score, max_overlap, top_k, pre_nms_top_k)
    boxes, labels, scores, counts = ssd_ext.postprocess_detections(
        predicted_locs, predicted_scores, priors_cxcy, options
    )
    nothing = (boxes.new_tensor([[0, 0, 1, 1]]), labels.new_zeros(1), scores.new_zeros(1))
    images = [
        (boxes[i, :k], labels[i, :k], scores[i, :k]) if k else tuple(t.clone() for t in nothing)
        for i, k in enumerate(counts.tolist())
    ]
    all_boxes, all_labels, all_scores = ([image[j] for image in images] for j in range(3))
    return all_boxes, all_labels, all_scores


@torch.inference_mode()
def predict_padded(
    model: SSD300,
    images: Tensor,
    min_score: float = 0.01,
    max_overlap: float = 0.45,
    top_k: int = 200,
    *,
    bf16: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`predict` without waiting for the device: the tensors of `ssd_ext.postprocess_detections`, on the device."""
    model.eval()
    device = model.priors_cxcy.device
    with autocast(device, bf16):
        locs, scores = model(place(images, device))
    return ssd_ext.postprocess_detections(
        locs, scores, model.priors_cxcy, ssd_ext.DetectionOptions(min_score, max_overlap, top_k)
    )


def unpad(boxes: Tensor, labels: Tensor, scores: Tensor, counts: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `predict_padded` gave, as what `predict` gives: a copy to the host of each tensor."""
    boxes, scores, labels = boxes.cpu(), scores.cpu(), labels.cpu()
    return [(boxes[i, :k], labels[i, :k], scores[i, :k]) for i, k in enumerate(counts.tolist())]


def predict(
    model: SSD300,
    images: Tensor,
    min_score: float = 0.01,
    max_overlap: float = 0.45,
    top_k: int = 200,
    *,
    bf16: bool | None = None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Runs a network over prepared pictures, on the device of its parameters.

    Args:
        model: the network; it is put into evaluation mode.
        images: (B, 3, 300, 300) as `ssd.transforms.eval_transform` gives them.
        min_score, max_overlap, top_k: see `detect`.
        bf16: bfloat16 autocast; None uses it where the hardware has it.

    Returns:
        For each picture boxes (k, 4) float32 fractional xyxy, labels (k,) int64, scores (k,) float32, on the CPU, by
        descending score; k is 0 where nothing was found.
    """
    return unpad(*predict_padded(model, images, min_score, max_overlap, top_k, bf16=bf16))
