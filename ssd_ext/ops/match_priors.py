"""`match_priors`: the object that each prior has to predict."""

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
    """Assigns every prior of every image to an object or to the background.

    `per_prior`: each prior takes the object with the highest IoU (ties: lowest index), and is positive if that IoU is
    >= threshold and > 0. Then each object whose highest IoU is > 0 forces its best prior (ties: lowest index) to match
    it. If two objects force one prior, the object with the highest index wins.
    `bipartite`: among all pairs of an object that has no prior yet and a prior that is still free, the pair with the
    highest IoU is fixed (ties: lowest object, then lowest prior). This is repeated until no such pair has IoU > 0. The
    other priors take their best object as in `per_prior`.

    The kernels store no IoU matrix.

    Args:
        boxes: (G, 4) xyxy, floating or integer, the objects of all images, one image after another; rows from
            row_splits[B] on are padding and ignored.
        row_splits: (B + 1,) int32; image i owns the rows row_splits[i]:row_splits[i + 1].
        priors_xyxy: (P, 4) xyxy, floating or integer, in the unit of the boxes.
        threshold: lowest IoU of a positive prior, in [0, 1].
        mode: "per_prior" or "bipartite".

    Returns:
        (B, P) int32: the index of the object inside its image, -1 for background. Without objects all are -1.

    Raises:
        ValueError: wrong shape, dtype, device or mode; row_splits that decrease or leave 0..G (checked on CPU tensors).

    Source:
        Liu et al., SSD (2016), section 2.2 "Matching strategy"; `bipartite` is the rule of its Caffe implementation.

    Examples:
        >>> import torch
        >>> from ssd_ext import match_priors
        >>> boxes = torch.tensor([[0, 0, 4, 4], [8, 8, 12, 12]])
        >>> row_splits = torch.tensor([0, 2, 2], dtype=torch.int32)  # both are in the first image of two
        >>> priors = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [2, 0, 6, 4], [8, 8, 9, 9]])
        >>> match_priors(boxes, row_splits, priors)  # the second box forces the last prior, with an IoU of 1/16
        tensor([[ 0,  0, -1,  1],
                [-1, -1, -1, -1]], dtype=torch.int32)
    """
    check_boxes("boxes", boxes)
    check_boxes("priors_xyxy", priors_xyxy)
    check_row_splits(row_splits, len(boxes))
    check_devices(boxes=boxes, row_splits=row_splits, priors_xyxy=priors_xyxy)
    check_choice("mode", mode, _MATCHINGS)
    boxes, priors_xyxy = promote(boxes, priors_xyxy)
    return torch.ops.ssd_ext.match_priors(boxes, row_splits, priors_xyxy, threshold, mode)


def _best_object(iou: Tensor, image: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """The highest IoU (B, P) of every prior in every image, and the lowest row that has it (B, P)."""
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
    image = torch.where(image < 0, n_images, image)  # padding belongs to an extra image at the end
    iou = box_iou_plain(boxes, priors_xyxy)
    best, first = _best_object(iou, image, n_images + 1)
    match = torch.where((best >= threshold) & (best > 0), first, -1)

    forced = match.new_full(((n_images + 1) * n_priors,), -1)
    free = iou
    while True:
        best, prior = free.max(dim=1)  # ties: the first index
        claims = best > 0
        if mode == "bipartite":
            # If a pair is the best of its object and also of its prior, no better pair can use either of them. So
            # all such pairs are fixed at once. The best of all pairs is always one of them.
            claims &= _best_object(free, image, n_images + 1)[1][image, prior] == row
        # amax, not an assignment: if two objects force one prior, the result of an assignment would be undefined.
        forced = forced.scatter_reduce(0, image * n_priors + prior, torch.where(claims, row, -1), "amax")
        if mode != "bipartite" or not claims.any():
            break
        taken = (forced >= 0).view(n_images + 1, n_priors)
        free = free.masked_fill(claims[:, None] | taken[image], 0)
    forced = forced.view(n_images + 1, n_priors)
    match = torch.where(forced >= 0, forced, match)[:n_images]
    return torch.where(match >= 0, match - row_splits[:-1, None], -1).to(torch.int32)
