"""Merges the detections in tiles of a picture; docs/semantics.md, "Tiles", has the rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssd.data.tiles import View
from ssd.detection import Found
from ssd_ext import batched_nms

EDGE = 0.02  # a side of a box is cut if it is nearer to the edge of its tile than this fraction of the tile's side
INSIDE = 0.5  # fraction of a cut box that lies in a whole one if both show one object
COMPARABLE = 0.5  # least ratio of the scores of two detections of one object
FACING = 0.5  # least IoU of the sides that two parts of one object have in common
CHUNK = 1 << 20  # pairs of boxes that are compared at once


class InView(NamedTuple):
    """The k detections in some parts of one picture."""

    boxes: Tensor  # (k, 4) float32 xyxy in pixels of the picture
    labels: Tensor  # (k,) int64
    scores: Tensor  # (k,) float32
    cut: Tensor  # (k, 4) bool: whether the left, upper, right and lower side is at the edge of the part


def in_view(found: Found, view: View, width: int, height: int) -> InView:
    """Converts the detections in a part of a picture to the pixels of the picture.

    Args:
        found: detections, in fractions of the part.
        view: the part.
        width, height: size of the picture in pixels.
    """
    x0, y0, x1, y1 = view
    boxes, labels, scores = found.in_pixels(x1 - x0, y1 - y0)
    corner, sides = boxes.new_tensor([x0, y0, x0, y0]), boxes.new_tensor([x1 - x0, y1 - y0] * 2)
    far = boxes.new_tensor([False, False, True, True]).bool()
    to_edge = torch.where(far, sides - boxes, boxes)
    inner = torch.tensor(view) != torch.tensor([0, 0, width, height])
    return InView(boxes + corner, labels, scores, (to_edge < EDGE * sides) & inner)


def merge(parts: Sequence[InView], max_overlap: float) -> Found:
    """Merges the detections in the parts of one picture.

    Args:
        parts: at least one, on the CPU.
        max_overlap: highest IoU of two detections of one class.

    Returns:
        The detections in the picture, in pixels, by descending score.
    """
    whole, cut = _split(_concatenated(parts))
    sides = cut.cut.long() @ torch.tensor([1, 2, 4, 8])
    cut = _take(cut, batched_nms(cut.boxes, cut.scores, cut.labels * 16 + sides, max_overlap))
    whole, cut = _split(_concatenated([_without_duplicates(whole, max_overlap), _join(cut)]))
    whole = _without_duplicates(whole, max_overlap)
    merged = _concatenated([whole, _take(cut, ~_inside(cut, whole))])
    return Found(*_without_duplicates(merged, max_overlap)[:3])


def _concatenated(parts: Sequence[InView]) -> InView:
    return InView(*map(torch.cat, zip(*parts, strict=True)))


def _split(found: InView) -> tuple[InView, InView]:
    """Returns those that are not cut, and those that are cut."""
    is_cut = found.cut.any(1)
    return _take(found, ~is_cut), _take(found, is_cut)


def _take(found: InView, rows: Tensor) -> InView:
    return InView(*(column[rows] for column in found))


def _without_duplicates(found: InView, max_overlap: float) -> InView:
    return _take(found, batched_nms(found.boxes, found.scores, found.labels, max_overlap))


def _inside(cut: InView, whole: InView) -> Tensor:
    """Tells which of k cut boxes lie mostly in a whole box of their class and of a comparable score, (k,) bool."""
    inside = torch.zeros(len(cut.boxes), dtype=torch.bool)
    for label in cut.labels.unique():
        same = whole.labels == label
        boxes, scores = whole.boxes[same], whole.scores[same]
        for rows in (cut.labels == label).nonzero()[:, 0].split(_chunk(len(boxes))):
            low, high = cut.boxes[rows, None, :2], cut.boxes[rows, None, 2:]
            common = torch.minimum(high, boxes[:, 2:]) - torch.maximum(low, boxes[:, :2])
            covered = common.clamp(min=0).prod(2) > INSIDE * (high - low).prod(2)
            inside[rows] = (covered & (scores >= COMPARABLE * cut.scores[rows, None])).any(1)
    return inside


def _chunk(n_others: int) -> int:
    """The number of boxes that can be compared with all others at once."""
    return max(1, CHUNK // max(1, n_others))


def _join(cut: InView) -> InView:
    """Joins the boxes that are parts of one object; those that are joined count as not cut.

    Args:
        cut: k boxes by descending score.
    """
    group = torch.arange(len(cut.boxes))  # the best part of the same object
    joined: set[tuple[int, int]] = set()  # boxes, and the index of their side that is joined
    pairs = ((*sorted(pair), axis, *pair) for axis in (0, 1) for pair in _facing(cut, axis))
    for *_, axis, first, second in sorted(pairs):  # the best ones first
        sides = {(first, axis + 2), (second, axis)}
        if not joined & sides:
            joined |= sides
            low, high = sorted((int(group[first]), int(group[second])))
            group[group == high] = low
    rows = group[:, None].expand(-1, 2)
    low_corners = cut.boxes[:, :2].scatter_reduce(0, rows, cut.boxes[:, :2], "amin")
    high_corners = cut.boxes[:, 2:].scatter_reduce(0, rows, cut.boxes[:, 2:], "amax")
    best, counts = group.unique(return_counts=True)
    found = _take(cut._replace(boxes=torch.cat([low_corners, high_corners], 1)), best)
    return found._replace(cut=found.cut & (counts == 1)[:, None])


def _facing(cut: InView, axis: int) -> Iterator[tuple[int, int]]:
    """Yields pairs of boxes that look like two parts of one object, cut at the edges of neighbouring tiles.

    Args:
        cut: k boxes.
        axis: 0 for parts that are left and right, 1 for parts above and below each other.
    """
    near, far, other_near, other_far = axis, axis + 2, 1 - axis, 3 - axis
    firsts, seconds = cut.cut[:, far].nonzero()[:, 0], cut.cut[:, near].nonzero()[:, 0]
    b, scores = cut.boxes[seconds], cut.scores[seconds]
    for some in firsts.split(_chunk(len(seconds))):
        a, its = cut.boxes[some, None], cut.scores[some, None]
        in_order = (a[..., near] < b[:, near]) & (b[:, near] < a[..., far]) & (a[..., far] < b[:, far])
        common = torch.minimum(a[..., other_far], b[:, other_far]) - torch.maximum(a[..., other_near], b[:, other_near])
        union = torch.maximum(a[..., other_far], b[:, other_far]) - torch.minimum(a[..., other_near], b[:, other_near])
        same = (cut.labels[some, None] == cut.labels[seconds]) & (common > FACING * union)
        comparable = torch.minimum(its, scores) >= COMPARABLE * torch.maximum(its, scores)
        facing = in_order & same & comparable
        for i, j in facing.nonzero().tolist():
            yield int(some[i]), int(seconds[j])
