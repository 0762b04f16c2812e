"""The twelve figures of COCO, computed by faster-coco-eval (the extra `coco`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd.rows import read_column, read_images
from ssd.voc_metrics import EvalResult, check_classes, show

__all__ = ["FIGURES", "CocoResult", "coco_average_precision"]

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


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
    from faster_coco_eval import COCO, COCOeval_faster

    found, objects = _rows(detections, targets, len(classes) + 1)
    truth = COCO(
        {
            "images": [{"id": i} for i in range(len(targets))],
            "categories": [{"id": label} for label in range(1, len(classes) + 1)],
            "annotations": objects,
        }
    )
    evaluation = COCOeval_faster(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = {name: _known(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}

    # (ten IoUs, 101 recalls, classes) of all sizes and 100 detections; -1 for a class without ground truth
    precision = evaluation.eval["precision"][..., 0, -1]
    ap = {name: _known(precision[..., k].mean()) for k, name in enumerate(classes)}
    recall = np.asarray(evaluation.params.recThrs)
    none = np.empty(0), np.empty(0)
    return CocoResult(
        mAP=figures["AP"],
        ap=ap,
        n_truths=_count(classes, (row["category_id"] for row in objects if not row["iscrowd"])),
        n_detections=_count(classes, (row["category_id"] for row in found)),
        iou_threshold=0.5,
        method="coco",
        curves={name: none if np.isnan(ap[name]) else (recall, precision[0, :, k]) for k, name in enumerate(classes)},
        figures=figures,
    )


def _rows(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]], n_classes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The detections and the objects as COCO's annotations; images are numbered in the order of their ids."""
    found: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    by_id = sorted(range(len(targets)), key=lambda i: targets[i].get("image_id", i))
    numbers = {i: number for number, i in enumerate(by_id)}
    for i, (detection, truth) in enumerate(read_images(detections, targets, n_classes)):
        boxes, labels, scores = detection
        boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0.0)  # a NaN would pass for any IoU
        scores = np.where(np.isnan(scores), -np.inf, scores)
        for box, label, score in zip(_xywh(boxes), labels.tolist(), scores.tolist(), strict=True):
            found.append({"image_id": numbers[i], "category_id": label, "bbox": box, "score": score})
        boxes, labels, difficult = truth
        sizes = boxes[:, 2:] - boxes[:, :2]
        areas = read_column(targets[i].get("areas", sizes.prod(1)), f"targets[{i}]: areas", len(labels)).tolist()
        for box, label, crowd, area in zip(_xywh(boxes), labels.tolist(), difficult.tolist(), areas, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,  # 0 would stand for no object
                    "image_id": numbers[i],
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return found, objects


def _xywh(boxes: Tensor) -> list[list[float]]:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _known(value: float) -> float:
    """A figure of COCO's, in which -1 stands for nothing to measure."""
    return float(value) if value >= 0 else float("nan")


def _count(classes: Sequence[str], labels: Iterable[int]) -> dict[str, int]:
    counts = Counter(labels)
    return {name: counts[label] for label, name in enumerate(classes, start=1)}


def check_metric(classes: tuple[str, ...]) -> None:
    """What can be found wrong before there are detections."""
    check_classes(classes)
    if find_spec("faster_coco_eval") is None:
        raise ImportError("method 'coco' needs faster-coco-eval: pip install 'ssd-ext[coco]'")
