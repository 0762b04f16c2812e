"""The twelve figures of COCO, computed by faster-coco-eval (the extra `coco`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import read_column
from ssd.evaluation.checks import read_images
from ssd.evaluation.voc import EvalResult, check_classes, show

if TYPE_CHECKING:
    from faster_coco_eval import COCOeval_faster

__all__ = ["FIGURES", "CocoResult", "coco_average_precision"]

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BLOCK = 300_000  # rows of some classes that are measured at once, each of which takes 2 kB meanwhile


@dataclass(frozen=True)
class CocoResult(EvalResult):
    """What `coco_average_precision` found; `print` shows it as a table, with the twelve figures below.

    Attributes:
        mAP: the first of the figures.
        ap: mean of a class's average precision over the IoUs 0.5, 0.55 .. 0.95; NaN for a class without ground truth.
        n_truths: ground-truth objects by class name, crowds and difficult ones not counted.
        n_detections: detections by class name.
        iou_threshold: 0.5, of the curves.
        method: "coco".
        curves: by class name the recalls 0, 0.01 .. 1 and the best precision at that recall or more, both (101,); empty
            for a class without ground truth.
        figures: AP (over the ten IoUs), AP50, AP75 (at one), APs, APm, APl (small: up to 32 * 32 pixels, medium, large:
            from 96 * 96), and the recalls AR1, AR10, AR100 (with so many detections of a class in an image), ARs, ARm,
            ARl; in 0..1, NaN where there is no such object.
    """

    figures: dict[str, float]

    @property
    def title(self) -> str:
        return "mAP@0.5:0.95"

    def __str__(self) -> str:
        cells = [f"{name:<5} {show(value):>6}" for name, value in self.figures.items()]
        rows = [cells[:3], cells[3:6], cells[6:9], cells[9:]]
        return "\n".join([super().__str__(), "", *map("   ".join, rows)])


def coco_average_precision(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
) -> CocoResult:
    """COCO's average precision and recall over a set of images.

    Detections of which a crowd, or a difficult object, is what fits best count neither way: COCO's converters of Pascal
    VOC mark difficult objects as crowds, and so does this.

    Args:
        detections: for each image (boxes (k,4) xyxy in pixels, labels (k,) integer in 0..C-1, scores (k,)), k >= 0.
            Label 0 is left out. Of a class, the 100 of an image with the highest scores count.
        targets: for each image a mapping with "boxes" (n,4) xyxy in pixels, "labels" (n,) integer in 1..C-1, optionally
            "difficult" (n,) bool, also of crowds, "areas" (n,) in square pixels, by default those of the boxes, and
            "image_id"; as `BoxDataset.truths` has them.
        classes: the C-1 different names without background; label i is `classes[i - 1]`.

    Returns:
        A `CocoResult`.

    Raises:
        ImportError: faster-coco-eval is not installed.
        ValueError: numbers of images or rows that differ; a label or name not allowed.

    Ties: equal scores go by "image_id", or else the place of the image, then by row; NaN scores come last. A box that
    is not finite fits nothing.

    Source: Lin et al., Microsoft COCO: Common Objects in Context, 2014; cocodataset.org/#detection-eval.
    """
    classes = tuple(classes)
    check_metric(classes)
    found, truths = _columns(detections, targets, len(classes) + 1)
    parts: dict[str, list[np.ndarray]] = {"precision": [], "recall": []}
    for labels in _blocks(found, truths, len(classes)):
        evaluation = _evaluate(found, truths, labels)  # of which nothing else is kept
        for name, part in parts.items():
            part.append(evaluation.eval[name])
    precision, recall = (np.concatenate(part, -3) for part in parts.values())
    evaluation.eval = {"precision": precision, "recall": recall}
    evaluation.summarize()
    figures = {name: _known(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}

    # (ten IoUs, 101 recalls, classes) of all sizes and 100 detections; -1 for a class without ground truth
    precision = precision[..., 0, -1]
    ap = {name: _known(precision[..., k].mean()) for k, name in enumerate(classes)}
    recall = np.asarray(evaluation.params.recThrs)
    none = np.empty(0), np.empty(0)
    return CocoResult(
        mAP=figures["AP"],
        ap=ap,
        n_truths=_count(classes, truths.labels[~truths.crowd]),
        n_detections=_count(classes, found.labels),
        iou_threshold=0.5,
        method="coco",
        curves={name: none if np.isnan(ap[name]) else (recall, precision[0, :, k]) for k, name in enumerate(classes)},
        figures=figures,
    )


class _Columns(NamedTuple):
    """Detections, or objects, of all images: R rows in the order of the images."""

    images: np.ndarray  # numbers, in the order of the images' ids
    labels: np.ndarray
    boxes: np.ndarray  # (R, 4) x, y, width, height
    areas: np.ndarray
    scores: np.ndarray  # of detections
    crowd: np.ndarray  # of objects


def _columns(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]], n_classes: int
) -> tuple[_Columns, _Columns]:
    """All detections and all objects."""
    by_id = sorted(range(len(targets)), key=lambda i: targets[i].get("image_id", i))
    numbers = np.empty(len(targets), np.int64)
    numbers[by_id] = np.arange(len(targets))
    found: list[tuple[np.ndarray, ...]] = []
    objects: list[tuple[np.ndarray, ...]] = []
    for i, (detection, truth) in enumerate(read_images(detections, targets, n_classes)):
        boxes, labels, scores = detection
        boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0.0)  # a NaN would pass for any IoU
        xywh = _xywh(boxes)
        scores = np.where(np.isnan(scores), -np.inf, scores)
        found.append((labels, xywh, xywh[:, 2] * xywh[:, 3], scores, np.zeros(len(labels), bool)))
        boxes, labels, difficult = truth
        areas = targets[i].get("areas", (boxes[:, 2:] - boxes[:, :2]).prod(1))
        areas = read_column(areas, f"targets[{i}]: areas", len(labels)).numpy()
        objects.append((labels, _xywh(boxes), areas, np.zeros(len(labels)), difficult))
    none = np.empty(0, np.int64), np.empty((0, 4)), np.empty(0), np.empty(0), np.empty(0, bool)

    def joined(images: list[tuple[np.ndarray, ...]]) -> _Columns:
        counts = [len(labels) for labels, *_ in images]
        columns = (np.concatenate(each) for each in zip(none, *images, strict=True))
        return _Columns(numbers.repeat(counts), *columns)

    return joined(found), joined(objects)


def _blocks(found: _Columns, truths: _Columns, n_classes: int) -> Iterator[range]:
    """The labels, in blocks whose rows are a little more than `BLOCK` at most."""
    rows = np.bincount(np.concatenate([found.labels, truths.labels]), minlength=n_classes + 1)
    start, total = 1, 0
    for label in range(1, n_classes + 1):
        total += rows[label]
        if total >= BLOCK or label == n_classes:
            yield range(start, label + 1)
            start, total = label + 1, 0


def _evaluate(found: _Columns, truths: _Columns, labels: range) -> COCOeval_faster:
    """The evaluation of some classes, which do not depend on the others."""
    from faster_coco_eval import COCO, COCOeval_faster

    found, truths = (
        _Columns(*(column[(rows.labels >= labels.start) & (rows.labels < labels.stop)] for column in rows))
        for rows in (found, truths)
    )
    images = [{"id": i} for i in np.union1d(found.images, truths.images).tolist()]
    head = {"images": images, "categories": [{"id": label} for label in labels]}
    evaluation = COCOeval_faster(*(COCO(head | {"annotations": _rows(rows)}) for rows in (truths, found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _rows(columns: _Columns) -> list[dict[str, Any]]:
    """As COCO's annotations."""
    names = "image_id", "category_id", "bbox", "area", "score", "iscrowd"
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [{"id": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows, 1)]  # 0 is no object


def _xywh(boxes: Tensor) -> np.ndarray:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).numpy()


def _known(value: float) -> float:
    """A figure of COCO's, in which -1 stands for nothing to measure."""
    return float(value) if value >= 0 else float("nan")


def _count(classes: Sequence[str], labels: np.ndarray) -> dict[str, int]:
    return dict(zip(classes, np.bincount(labels, minlength=len(classes) + 1)[1:].tolist(), strict=True))


def check_metric(classes: tuple[str, ...]) -> None:
    """What can be found wrong before there are detections."""
    check_classes(classes)
    if find_spec("faster_coco_eval") is None:
        raise ImportError("method 'coco' needs faster-coco-eval: pip install 'ssd-ext[coco]'")
