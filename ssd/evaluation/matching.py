"""Compares detections with objects once, and sorts detections into hits and kinds of errors.

The functions of `ssd.evaluation.mistakes` take the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.evaluation.checks import read_images
from ssd.evaluation.voc import first_of, nearest_object
from ssd_ext import box_iou

# The kinds of errors of TIDE (Bolya et al., section 2.2), with their numbers in `Matches.outcomes`. Missed objects are
# no detections; `missed_objects` finds them.
KINDS = ("wrong class", "wrong place", "wrong class and place", "duplicate", "background", "missed")
WRONG_CLASS, WRONG_PLACE, WRONG_BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
HIT, IGNORED = -1, -2  # outcomes that are no error
# TIDE's t_b. A detection whose IoU with an object is smaller does not refer to this object.
BACKGROUND_IOU = 0.1


class Matches(NamedTuple):
    """The D detections of all N pictures, the G objects, and which of them belong together.

    Detections and objects are in the order of their pictures. The background (label 0) is left out.

    Attributes:
        pictures: (D,) int64 in 0..N-1: the picture of each detection.
        labels: (D,) int64 in 1..C-1.
        scores: (D,) float64.
        boxes: (D, 4) float64 xyxy in fractions of the picture.
        outcomes: (D,) int64: HIT, IGNORED or the number of a kind of errors.
        own: (D,) int64: the object of the same class with the highest IoU; -1 if none overlaps.
        other: (D,) int64: the object of another class with the highest IoU; -1 if none overlaps.
        truth_pictures: (G,) int64 in 0..N-1.
        truth_labels: (G,) int64 in 1..C-1.
        truth_boxes: (G, 4) float64 xyxy in fractions of the picture.
        difficult: (G,) bool.
        pairs: (P, 2) int64: a detection and an object of any class whose IoU is at least the threshold.
        pair_ious: (P,) float64.
        n_pictures: N.
        n_classes: C, background included.
        iou_threshold: smallest IoU of a hit.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.matching import match
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> matches = match(detections, targets, n_classes=2)
        >>> matches.own.tolist(), matches.pair_ious.tolist()  # the first detection and object belong together
        ([0, -1], [1.0])
    """

    pictures: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    outcomes: np.ndarray
    own: np.ndarray
    other: np.ndarray
    truth_pictures: np.ndarray
    truth_labels: np.ndarray
    truth_boxes: np.ndarray
    difficult: np.ndarray
    pairs: np.ndarray
    pair_ious: np.ndarray
    n_pictures: int
    n_classes: int
    iou_threshold: float

    @property
    def n_truths(self) -> np.ndarray:
        """Number of objects of each label, without difficult ones, (C,) int64."""
        return np.bincount(self.truth_labels[~self.difficult], minlength=self.n_classes)


def match(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    n_classes: int,
    iou_threshold: float = 0.5,
    sizes: Tensor | None = None,
) -> Matches:
    """Compares detections with objects, by the rules of `ssd.evaluation.voc.average_precision`.

    A false positive is of the first kind that applies:

    * wrong place: the highest IoU with an object of its class is at least 0.1 and below `iou_threshold`;
    * wrong class: the highest IoU with an object of another class is at least `iou_threshold`;
    * duplicate: a detection with a higher score has matched the object;
    * wrong class and place: the highest IoU with an object of another class is at least 0.1;
    * background: the rest.

    Args:
        detections, targets: see `ssd.evaluation.voc.average_precision`.
        n_classes: number of classes C, background included.
        iou_threshold: smallest IoU of a hit, in (0, 1]; TIDE's t_f.
        sizes: (N, 2) width and height of each picture in the unit of the boxes; None for fractions of the picture.

    Returns:
        The `Matches`.

    Raises:
        ValueError: the numbers of images or rows differ, or an object or a label is not allowed.

    Ties: as in `average_precision`.

    Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, section 2.2. The
    paper does not say which kind counts if several apply; this is the order in the authors' program.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.matching import match
        >>> from ssd.evaluation.mistakes import count_errors
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> errors = count_errors(match(detections, targets, n_classes=2))
        >>> {kind: count for kind, count in errors.items() if count}
        {'background': 1, 'missed': 1}
    """
    sides = torch.ones(len(targets), 2) if sizes is None else sizes
    scale = sides.double().repeat(1, 2).numpy()
    rows: list[tuple[np.ndarray, ...]] = []
    objects: list[tuple[np.ndarray, ...]] = []
    pairs: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    pair_ious: list[np.ndarray] = [np.empty(0)]
    n_rows = n_objects = 0
    for (boxes, labels, scores), (gt_boxes, gt_labels, difficult) in read_images(detections, targets, n_classes):
        if not labels.all():
            boxes, labels, scores = boxes[labels > 0], labels[labels > 0], scores[labels > 0]
        iou = box_iou(boxes, gt_boxes).numpy()  # (k, n)
        same = labels[:, None] == gt_labels
        own, own_iou = nearest_object(iou, same)
        other, other_iou = nearest_object(iou, ~same)
        near = np.argwhere(iou >= iou_threshold)
        pairs.append(near + np.array([n_rows, n_objects]))
        pair_ious.append(iou[near[:, 0], near[:, 1]])
        own, other = (np.where(each >= 0, each + n_objects, -1) for each in (own, other))
        rows.append((labels, scores, boxes.numpy(), own, own_iou, other, other_iou))
        objects.append((gt_labels, gt_boxes.numpy(), difficult))
        n_rows, n_objects = n_rows + len(labels), n_objects + len(gt_labels)

    # Columns without rows, for data without images: of numbers, values, boxes and marks.
    none: tuple[np.ndarray, ...] = np.empty(0, np.int64), np.empty(0), np.empty((0, 4)), np.empty(0, bool)
    empty = tuple(none[kind] for kind in (0, 1, 2, 0, 1, 0, 1))
    labels, scores, found_boxes, own, own_iou, other, other_iou = map(np.concatenate, zip(empty, *rows, strict=True))
    empty = tuple(none[kind] for kind in (0, 2, 3))
    truth_labels, truth_boxes, difficult = map(np.concatenate, zip(empty, *objects, strict=True))
    numbers = np.arange(len(rows))
    pictures = numbers.repeat([len(each[0]) for each in rows])
    truth_pictures = numbers.repeat([len(each[0]) for each in objects])

    matched = own_iou >= iou_threshold
    ignored = matched & np.append(difficult, False)[own]
    order = np.argsort(-scores, kind="stable")
    hits: np.ndarray = np.empty(len(order), bool)
    hits[order] = first_of(np.where(matched & ~ignored, own, -1)[order])
    outcomes = np.select(
        [ignored, hits, ~matched & (own_iou >= BACKGROUND_IOU), other_iou >= iou_threshold, matched,
         other_iou >= BACKGROUND_IOU],
        [IGNORED, HIT, WRONG_PLACE, WRONG_CLASS, DUPLICATE, WRONG_BOTH],
        BACKGROUND,
    )  # fmt: skip
    return Matches(
        pictures,
        labels,
        scores,
        found_boxes / scale[pictures],
        outcomes,
        own,
        other,
        truth_pictures,
        truth_labels,
        truth_boxes / scale[truth_pictures],
        difficult,
        np.concatenate(pairs),
        np.concatenate(pair_ious),
        len(rows),
        n_classes,
        float(iou_threshold),
    )


def above(matches: Matches, min_score: float | None) -> np.ndarray:
    """Tells which detections have a score above this, (D,) bool; None: all. NaN is above nothing."""
    return np.ones(len(matches.scores), bool) if min_score is None else matches.scores > min_score
