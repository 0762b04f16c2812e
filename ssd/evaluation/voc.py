"""Mean average precision by the rules of the Pascal VOC development kit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from ssd.evaluation.checks import read_images
from ssd_ext import box_iou

__all__ = ["EvalResult", "Evidence", "average_precision"]

Method = Literal["area", "11point"]
METHODS: tuple[Method, ...] = get_args(Method)


class Evidence(NamedTuple):
    """What an mAP is computed from: the pictures of detections and objects."""

    n_pictures: int  # N
    # For each class the picture of each of the d detections that count, (d,) int64 in 0..N-1, and whether it is a hit,
    # (d,) bool; by descending score.
    detections: list[tuple[np.ndarray, np.ndarray]]
    truths: list[np.ndarray]  # for each class the picture of each of the g objects, without difficult ones, (g,) int64


@dataclass(frozen=True)
class EvalResult:
    """Average precision of every class; `print` shows it as a table.

    Attributes:
        mAP: mean of `ap` over the classes that have ground truth, in 0..1; NaN if there is no such class.
        ap: average precision by class name, in 0..1; NaN for a class without ground truth.
        n_truths: number of ground-truth objects by class name, without difficult objects.
        n_detections: number of detections by class name, including those that match a difficult object and are ignored.
        iou_threshold: smallest IoU of a true positive.
        method: "area" or "11point".
        curves: by class name (recall (d,), precision (d,)) float64, after each of the d detections that count, by
            descending score; empty for a class without ground truth.
        evidence: what the mAP was computed from, for `ssd.evaluation.uncertainty`; None for COCO's metric.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.voc import average_precision
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> print(average_precision(detections, targets, ["cat"]))
        class             truths  detections      AP
        cat                    2           2  0.5000
        --------------------------------------------
        mAP@0.5 (area)         2           2  0.5000
    """

    mAP: float
    ap: dict[str, float]
    n_truths: dict[str, int]
    n_detections: dict[str, int]
    iou_threshold: float
    method: str
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False, compare=False)
    evidence: Evidence | None = field(repr=False, compare=False, default=None, kw_only=True)

    @property
    def title(self) -> str:
        """Name of the mean, such as "mAP@0.5"."""
        return f"mAP@{self.iou_threshold:g}"

    def summary(self) -> str:
        """The mean and the average precision of every class, in one line."""
        per_class = ", ".join(f"{name} {show(ap)}" for name, ap in self.ap.items())
        return f"{self.title} {show(self.mAP)} ({per_class})"

    def __str__(self) -> str:
        title = f"{self.title} ({self.method})"
        width = max(map(len, (title, *self.ap)))
        row = f"{{:<{width}}}  {{:>8}}  {{:>10}}  {{:>6}}".format
        lines = [row("class", "truths", "detections", "AP")]
        lines += [row(c, self.n_truths[c], self.n_detections[c], show(ap)) for c, ap in self.ap.items()]
        totals = sum(self.n_truths.values()), sum(self.n_detections.values())
        lines += ["-" * len(lines[0]), row(title, *totals, show(self.mAP))]
        return "\n".join(lines)


def average_precision(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    method: Method = "area",
) -> EvalResult:
    """Computes the average precision of every class, and their mean, over a set of images.

    The detections of a class in all images are examined by descending score. Each is compared only with the object of
    its image and class that has the highest IoU. If this IoU is below `iou_threshold`, the detection is a false
    positive. If the object is difficult, the detection is ignored. If an earlier detection matched the object, the
    later detection is a false positive. Otherwise it is a true positive.

    Args:
        detections: for each image (boxes (k, 4) xyxy, labels (k,) integer in 0..C-1, scores (k,)), k >= 0, in any
            order. Label 0 (background, the "nothing found" row of `ssd.detect`) is left out.
        targets: for each image a mapping with "boxes" (n, 4) xyxy in the same unit as the detections (fractions of the
            image or pixels), "labels" (n,) integer in 1..C-1, and optionally "difficult" (n,) bool; n >= 0.
        classes: the C-1 different class names without background; label i is `classes[i - 1]`.
        iou_threshold: smallest IoU of a true positive, in (0, 1]; compared with >=, as in VOC.
        method: "area" is the area under the curve after its precision was made non-increasing (VOC2010 and later);
            "11point" is the mean, over the recalls 0, 0.1 .. 1, of the highest precision at this recall or a higher one
            (VOC2007).

    Returns:
        An `EvalResult`. A class without ground truth, or with difficult objects only, has the AP NaN and is not in the
        mean. A class with ground truth and no detection has the AP 0. If no class has ground truth, mAP is NaN.

    Raises:
        ValueError: the numbers of images or rows differ; an object, a label, threshold, method or name is not allowed.

    Ties: equal scores are ordered by image, then by row; NaN scores come last. Of equal IoUs the first object counts.
    Boxes are continuous: the width is xmax - xmin, without the +1 of the development kit's whole pixels.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.2; VOC2012
    development kit, VOCevaldet.m.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.voc import average_precision
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> result = average_precision(detections, targets, ["cat"])  # finds one of two cats
        >>> result.mAP, result.n_truths
        (0.5, {'cat': 2})
    """
    classes = tuple(classes)
    check_metric(classes, iou_threshold, method)
    pictures, labels, scores, found, truth_pictures, truth_labels, difficult = _join(
        detections, targets, len(classes) + 1, iou_threshold
    )

    ap: dict[str, float] = {}
    n_truths: dict[str, int] = {}
    n_detections: dict[str, int] = {}
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    evidence = Evidence(len(targets), [], [])
    for label, name in enumerate(classes, start=1):  # label 0, nothing found, is left out
        rows = np.flatnonzero(labels == label)
        n_detections[name] = len(rows)
        evidence.truths.append(truth_pictures[(truth_labels == label) & ~difficult[:-1]])
        n_truths[name] = len(evidence.truths[-1])
        rows = rows[~difficult[found[rows]]]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        hits = first_of(found[rows])
        evidence.detections.append((pictures[rows], hits))
        curves[name] = recall, precision = precision_over_recall(hits, n_truths[name])
        ap[name] = area_under(recall, precision, method) if n_truths[name] else float("nan")

    counted = [ap[name] for name in classes if n_truths[name]]
    mean = float(np.mean(counted)) if counted else float("nan")
    return EvalResult(mean, ap, n_truths, n_detections, float(iou_threshold), method, curves, evidence=evidence)


def _join(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    n_classes: int,
    iou_threshold: float,
) -> tuple[np.ndarray, ...]:
    """Joins all images: picture, label, score and matched object (or -1) of each detection (D,), picture and label of
    each object (G,), and whether each object is difficult (G+1,), where the last entry, index -1, stands for no
    object."""
    rows: list[tuple[np.ndarray, ...]] = [(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))]
    objects: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, bool))]
    n_objects = 0
    for (det_boxes, det_labels, det_scores), (gt_boxes, gt_labels, gt_difficult) in read_images(
        detections, targets, n_classes
    ):
        iou = box_iou(det_boxes, gt_boxes).numpy()  # (k, n)
        best, its_iou = nearest_object(iou, det_labels[:, None] == gt_labels)
        rows.append((det_labels, det_scores, np.where(its_iou >= iou_threshold, best + n_objects, -1)))
        objects.append((gt_labels, gt_difficult))
        n_objects += len(gt_labels)
    numbers: np.ndarray = np.arange(len(rows)) - 1  # of the pictures
    pictures, truth_pictures = (numbers.repeat([len(each[0]) for each in its]) for its in (rows, objects))
    labels, scores, found = map(np.concatenate, zip(*rows, strict=True))
    truth_labels, difficult = map(np.concatenate, zip(*objects, strict=True))
    return pictures, labels, scores, found, truth_pictures, truth_labels, np.append(difficult, False)


def nearest_object(iou: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each detection in an image the object with the highest IoU.

    Args:
        iou: (k, n) IoU of each detection with each object, in 0..1.
        allowed: (k, n) bool, False for objects that the detection is not compared with.

    Returns:
        Two arrays (k,): the rows of the objects, int64, and the IoUs. The row is -1 and the IoU is 0 if no allowed
        object overlaps the detection. Of equal IoUs the first object is taken.
    """
    if iou.size == 0:
        return np.full(len(iou), -1), np.zeros(len(iou))
    iou = np.where(allowed, iou, 0.0)
    best, highest = iou.argmax(axis=1), iou.max(axis=1)
    return np.where(highest > 0, best, -1), highest


def first_of(found: np.ndarray) -> np.ndarray:
    """Tells which detections are the first that matched their object.

    Args:
        found: (d,) integer, the object that each detection matched, or -1; by descending score.

    Returns:
        (d,) bool; False for detections that matched no object. A later detection of the same object is a false
        positive.
    """
    objects, first = np.unique(found, return_index=True)
    hits: np.ndarray = np.zeros(len(found), bool)
    hits[first[objects >= 0]] = True
    return hits


def precision_over_recall(hits: np.ndarray, n_truths: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes recall and precision of one class after each detection.

    Args:
        hits: (d,) bool, whether each detection is a true positive; by descending score.
        n_truths: number of objects, without difficult ones.

    Returns:
        Recall (d,) and precision (d,), float64 in 0..1; empty if there is no object.
    """
    if n_truths == 0:
        return np.empty(0), np.empty(0)
    true_positives = hits.cumsum()
    return true_positives / n_truths, true_positives / np.arange(1, len(hits) + 1)


def area_under(recall: np.ndarray, precision: np.ndarray, method: str) -> float:
    """Computes the average precision of one class.

    Args:
        recall: (d,) in 0..1, not decreasing.
        precision: (d,) in 0..1.
        method: see `average_precision`.

    Returns:
        The average precision in 0..1; 0 without a detection.
    """
    # best[d]: highest precision at the recall of detection d or a higher one. The last entry is 0, the precision at
    # recalls that are not reached.
    best: np.ndarray = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # (d+1,)
    if method == "11point":
        # i / 10 and tp / n_truths are both correctly rounded quotients, so equal fractions compare equal. i * 0.1 is
        # not: a recall of exactly 3/10 would be below the point 0.3.
        return float(best[np.searchsorted(recall, np.arange(11) / 10)].mean())
    return float(np.diff(recall, prepend=0.0) @ best[:-1])


def check_classes(classes: Sequence[str]) -> None:
    """Raises ValueError if a name is in `classes` twice."""
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes has a name twice: {classes}")


def check_metric(classes: Sequence[str], iou_threshold: float, method: str) -> None:
    """Checks everything that can be checked before there are detections, see `average_precision`.

    Raises:
        ValueError: a name is in `classes` twice, or the threshold or the method is not allowed.
    """
    check_classes(classes)
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")


def show(value: float) -> str:
    """Formats a value of 0..1 with four decimals; NaN, nothing to measure, becomes a dash."""
    return "-" if np.isnan(value) else f"{value:.4f}"
