"""`match_priors`: which object each prior is responsible for."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ssd_ext._boxes import promote
from ssd_ext._checks import check_boxes, check_choice, check_devices, check_row_splits
from ssd_ext._op import op
from ssd_ext.ops.box_iou import box_iou_plain

__all__ = ["match_priors"]

Matching = Literal["per_prior", "bipartite"]
_MATCHINGS = get_args(Matching)


def match_priors(
    boxes: Tensor, row_splits: Tensor, priors_xyxy: Tensor, threshold: float = 0.5, mode: Matching = "per_prior"
) -> Tensor:
    """Assigns to every prior of every image an object or background; no IoU matrix is stored by the kernels.

    `per_prior`: each prior takes its best object (on equal IoU the lowest index) and is positive if that IoU is
    >= threshold; then each object whose best IoU is > 0 forces its best prior (on equal IoU the lowest index); of two
    objects that force one prior, the highest index wins.
    `bipartite`: the best remaining (object, free prior) pair of all is fixed, again and again (ties: lowest object,
    then lowest prior), until every object that overlaps a free prior has one of its own; the other priors as above.

    Args:
        boxes: (G, 4) xyxy, the objects of all images in a row; rows from row_splits[B] on are padding and ignored.
        row_splits: (B + 1,) int32; image i owns the rows row_splits[i]:row_splits[i + 1].
        priors_xyxy: (P, 4) xyxy.
        threshold: least IoU of a positive prior, in [0, 1].
        mode: "per_prior" or "bipartite".

    Returns:
        (B, P) int32: the index of the object inside its image, -1 for background. No objects: all -1.

    Raises:
        ValueError: wrong shape, dtype, device or mode; row_splits (checked on CPU tensors) that fall or leave 0..G.

    Source:
        Liu et al., SSD (2016), section 2.2 "Matching strategy"; `bipartite` is the rule of its Caffe implementation.
    """
    check_boxes("boxes", boxes)
    check_boxes("priors_xyxy", priors_xyxy)
    check_row_splits(row_splits, len(boxes))
    check_devices(boxes=boxes, row_splits=row_splits, priors_xyxy=priors_xyxy)
    check_choice("mode", mode, _MATCHINGS)
    boxes, priors_xyxy = promote(boxes, priors_xyxy)
    return torch.ops.ssd_ext.match_priors(boxes, row_splits, priors_xyxy, threshold, mode)


def _best_object(iou: Tensor, image: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """Of every image and prior the highest IoU (B, P), and the lowest row that has it."""
    n_objects, n_priors = iou.shape
    index = image[:, None].expand_as(iou)
    row = torch.arange(n_objects, device=iou.device)[:, None]
    best = iou.new_zeros(n_images, n_priors).scatter_reduce(0, index, iou, "amax")
    tied = torch.where(iou == best[image], row, n_objects)
    first = tied.new_full((n_images, n_priors), n_objects).scatter_reduce(0, index, tied, "amin")
    return best, first


def _fake(boxes: Tensor, row_splits: Tensor, priors_xyxy: Tensor, threshold: float, mode: str) -> Tensor:
    return boxes.new_empty((row_splits.shape[0] - 1, priors_xyxy.shape[0]), dtype=torch.int32)


@op(fake=_fake)
def match_priors_plain(boxes: Tensor, row_splits: Tensor, priors_xyxy: Tensor, threshold: float, mode: str) -> Tensor:
    n_images, n_objects, n_priors = len(row_splits) - 1, len(boxes), len(priors_xyxy)
    if 0 in (n_images, n_objects, n_priors):
        return torch.full((n_images, n_priors), -1, dtype=torch.int32, device=boxes.device)
    row = torch.arange(n_objects, device=boxes.device)
    image = torch.bucketize(row, row_splits.long(), right=True) - 1
    image = torch.where(image < 0, n_images, image)  # padding belongs to one image more, the last
    iou = box_iou_plain(boxes, priors_xyxy)
    best, first = _best_object(iou, image, n_images + 1)
    match = torch.where((best >= threshold) & (best > 0), first, -1)

    forced = match.new_full(((n_images + 1) * n_priors,), -1)
    free = iou
    while True:
        best, prior = free.max(dim=1)  # the first index of several
        claims = best > 0
        if mode == "bipartite":
            # A pair that is the best of its object and of its prior comes before all that could take either
            # from it, so all such pairs are fixed at once. The best pair of all is always one of them.
            claims &= _best_object(free, image, n_images + 1)[1][image, prior] == row
        # amax and not an assignment: which of two writes to one place survives would be undefined.
        forced = forced.scatter_reduce(0, image * n_priors + prior, torch.where(claims, row, -1), "amax")
        if mode != "bipartite" or not claims.any():
            break
        taken = (forced >= 0).view(n_images + 1, n_priors)
        free = free.masked_fill(claims[:, None] | taken[image], 0)
    forced = forced.view(n_images + 1, n_priors)
    match = torch.where(forced >= 0, forced, match)[:n_images]
    return torch.where(match >= 0, match - row_splits[:-1, None], -1).to(torch.int32)
