"""The twelve metrics of COCO, computed by faster-coco-eval (the extra `coco`); docs/semantics.md has the rules."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import read_column
from ssd.evaluation.checks import read_images
from ssd.evaluation.voc import EvalResult, check_classes, show

if TYPE_CHECKING:
    from faster_coco_eval import COCOeval_faster

__all__ = ["FIGURES", "CocoOptions", "CocoResult", "coco_average_precision"]

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LARGEST_SIDE = 1e5  # of objects in pixels, in pycocotools
BLOCK = 300_000  # rows of detections and objects that are measured at once; each needs 2 kB of memory meanwhile


def at_least_11(value: int) -> None:
    """Raises ValueError unless the value can be `CocoOptions.max_dets`."""
    if not isinstance(value, int) or not 11 <= value <= 10**6:  # AR1 and AR10 are figures of their own
        raise ValueError(f"must be a whole number from 11 to 1000000, got {value}")


def two_sides(value: tuple[float, float]) -> None:
    """Raises ValueError unless the value can be `CocoOptions.size_limits`."""
    if len(value) != 2 or not 0 < value[0] < value[1] < LARGEST_SIDE:
        raise ValueError(f"must be two sides in pixels, the smaller one first, such as 32,96, got {_listed(value)}")


class CocoOptions(NamedTuple):
    """The rules of COCO's metric that can be changed (docs/semantics.md, "COCO's figures").

    The annotation of each field has its type, its meaning and its check.

    Examples:
        >>> from ssd.evaluation.coco import CocoOptions
        >>> print(CocoOptions(max_dets=500))
        at most 500 detections of a class in a picture; small: up to 32 * 32 pixels, large: from 96 * 96 pixels
    """

    max_dets: Annotated[
        int,
        "with --method coco: number of detections of a class that count in a picture, those with the highest scores; "
        "--top-k limits the detections of all classes",
        at_least_11,
    ] = 100
    size_limits: Annotated[
        tuple[float, float],
        "with --method coco: sides in pixels of the squares up to whose area objects are small, and from whose area on "
        "they are large",
        two_sides,
    ] = (32, 96)

    def __str__(self) -> str:
        small, large = (f"{side:g} * {side:g}" for side in self.size_limits)
        return (
            f"at most {self.max_dets} detections of a class in a picture; small: up to {small} pixels, "
            f"large: from {large} pixels"
        )


COCO = CocoOptions()  # the rules of COCO


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class CocoResult(EvalResult):
    """The result of `coco_average_precision`; `print` shows it as a table, the twelve metrics and the options.

    Attributes:
        mAP: "AP" of the twelve metrics, in 0..1; NaN if there is no object.
        ap: average precision by class name, the mean over the IoUs 0.5, 0.55 .. 0.95, in 0..1; NaN for a class without
            ground truth.
        n_truths: number of ground-truth objects by class name, without crowds and difficult objects.
        n_detections: number of detections by class name.
        iou_threshold: 0.5, the IoU of the curves.
        method: "coco".
        curves: by class name the recalls 0, 0.01 .. 1 and the highest precision at this recall or a higher one, both
            (101,); empty for a class without ground truth.
        figures: the twelve metrics by name, in 0..1; NaN if there is no such object. AP is the mean over ten IoUs; AP50
            and AP75 are at one IoU; APs, APm and APl are those of small (up to 32 * 32 pixels), medium and large (from
            96 * 96 pixels) objects. AR1, AR10 and AR100 are the recalls with at most 1, 10 and 100 detections of a
            class in an image; ARs, ARm and ARl are the recalls of small, medium and large objects. With another
            `max_dets`, AR100 has the name of this number, such as AR500.
        options: the number of detections that count, and the limits of the sizes.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.coco import coco_average_precision
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> result = coco_average_precision(detections, targets, ["cat"])
        >>> [(name, round(result.figures[name], 3)) for name in ("AP50", "APs", "APl", "AR100")]
        [('AP50', 0.505), ('APs', 0.505), ('APl', nan), ('AR100', 0.5)]
    """

    figures: dict[str, float]
    options: CocoOptions

    @property
    def title(self) -> str:
        """Name of the mean: "mAP@0.5:0.95"."""
        return "mAP@0.5:0.95"

    def __str__(self) -> str:
        cells = [f"{name:<5} {show(value):>6}" for name, value in self.figures.items()]
        rows = [cells[:3], cells[3:6], cells[6:9], cells[9:]]
        return "\n".join([super().__str__(), "", *map("   ".join, rows), "", str(self.options)])


def coco_average_precision(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    options: CocoOptions = COCO,
) -> CocoResult:
    """Computes COCO's average precision and recall over a set of images.

    A detection whose best match is a crowd or a difficult object is ignored. COCO's converters from Pascal VOC to
    COCO's format mark difficult objects as crowds, and so does this function.

    Args:
        detections: for each image (boxes (k, 4) xyxy in pixels, labels (k,) integer in 0..C-1, scores (k,)), k >= 0.
            Label 0 is left out. In each image and class, the `options.max_dets` detections with the highest scores
            count.
        targets: for each image a mapping, as from `BoxDataset.truths`: "boxes" (n, 4) xyxy in pixels and "labels" (n,)
            integer in 1..C-1; optionally "difficult" (n,) bool, True also for crowds, "areas" (n,) in square pixels, by
            default the areas of the boxes, and "image_id".
        classes: the C-1 different class names without background; label i is `classes[i - 1]`.
        options: the number of detections that count, and the limits of the sizes.

    Returns:
        A `CocoResult`.

    Raises:
        ImportError: faster-coco-eval is not installed.
        ValueError: the numbers of images or rows differ; an object, a label, a name or an option is not allowed.

    Ties: detections with equal scores are ordered by "image_id", or by the position of the image if there is none, then
    by row; NaN scores come last. A box that is not finite matches nothing.

    Source: Lin et al., Microsoft COCO: Common Objects in Context, 2014; cocodataset.org/#detection-eval.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.coco import coco_average_precision
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> result = coco_average_precision(detections, targets, ["cat"])  # finds one of two cats
        >>> round(result.mAP, 3), result.title  # the precision is 1 at 51 of the 101 recalls
        (0.505, 'mAP@0.5:0.95')
    """
    classes = tuple(classes)
    check_metric(classes, options)
    found, truths = _columns(detections, targets, len(classes) + 1)
    parts: dict[str, list[np.ndarray]] = {"precision": [], "recall": []}
    with _no_collection():
        for labels in _blocks(found, truths, len(classes)):
            # It is large, so only its "precision" and "recall" are kept.
            evaluation = _evaluate(found, truths, labels, options)
            for name, part in parts.items():
                part.append(evaluation.eval[name])
    precision, recall = (np.concatenate(part, -3) for part in parts.values())
    evaluation.eval = {"precision": precision, "recall": recall}
    evaluation.summarize()
    names = (name.replace("100", str(options.max_dets)) for name in FIGURES)
    figures = {name: _known(value) for name, value in zip(names, evaluation.stats, strict=True)}

    # (10 IoUs, 101 recalls, classes), of all sizes and with max_dets detections; -1 for a class without ground truth
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
        options=options,
    )


class _Columns(NamedTuple):
    """The R detections, or objects, of all images, in the order of the images."""

    images: np.ndarray  # (R,) int64: numbers of the images, counted in the order of their ids
    labels: np.ndarray  # (R,) int64
    boxes: np.ndarray  # (R, 4) x, y, width, height in pixels
    areas: np.ndarray  # (R,) in square pixels
    scores: np.ndarray  # (R,); 0 for objects
    crowd: np.ndarray  # (R,) bool; False for detections


def _columns(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]], n_classes: int
) -> tuple[_Columns, _Columns]:
    """Joins the detections, and the objects, of all images."""
    by_id = sorted(range(len(targets)), key=lambda i: targets[i].get("image_id", i))
    numbers: np.ndarray = np.empty(len(targets), np.int64)
    numbers[by_id] = np.arange(len(targets))
    found: list[tuple[np.ndarray, ...]] = []
    objects: list[tuple[np.ndarray, ...]] = []
    for i, (detection, truth) in enumerate(read_images(detections, targets, n_classes)):
        boxes, labels, scores = detection
        boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0.0)  # a NaN would match at any IoU
        xywh = _xywh(boxes)
        scores = np.where(np.isnan(scores), -np.inf, scores)
        found.append((labels, xywh, xywh[:, 2] * xywh[:, 3], scores, np.zeros(len(labels), bool)))
        boxes, labels, difficult = truth
        given = targets[i].get("areas", (boxes[:, 2:] - boxes[:, :2]).prod(1))
        areas: np.ndarray = read_column(given, f"targets[{i}]: areas", len(labels)).numpy()
        objects.append((labels, _xywh(boxes), areas, np.zeros(len(labels)), difficult))
    none: tuple[np.ndarray, ...] = (
        np.empty(0, np.int64),
        np.empty((0, 4)),
        np.empty(0),
        np.empty(0),
        np.empty(0, bool),
    )

    def joined(images: list[tuple[np.ndarray, ...]]) -> _Columns:
        counts = [len(labels) for labels, *_ in images]
        columns = (np.concatenate(each) for each in zip(none, *images, strict=True))
        return _Columns(numbers.repeat(counts), *columns)

    return joined(found), joined(objects)


def _blocks(found: _Columns, truths: _Columns, n_classes: int) -> Iterator[range]:
    """Divides the labels into blocks. Each ends with the class at which its number of rows reaches `BLOCK`."""
    rows = np.bincount(np.concatenate([found.labels, truths.labels]), minlength=n_classes + 1)
    start, total = 1, 0
    for label in range(1, n_classes + 1):
        total += rows[label]
        if total >= BLOCK or label == n_classes:
            yield range(start, label + 1)
            start, total = label + 1, 0


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses the search for unused cycles of objects, which would visit millions of annotations again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _evaluate(found: _Columns, truths: _Columns, labels: range, options: CocoOptions) -> COCOeval_faster:
    """Evaluates some of the classes; the results of a class do not depend on other classes."""
    from faster_coco_eval import COCO, COCOeval_faster

    found, truths = (
        _Columns(*(column[(rows.labels >= labels.start) & (rows.labels < labels.stop)] for column in rows))
        for rows in (found, truths)
    )
    images = [{"id": i} for i in np.union1d(found.images, truths.images).tolist()]
    head = {"images": images, "categories": [{"id": label} for label in labels]}
    evaluation = COCOeval_faster(*(COCO(head | {"annotations": _rows(rows)}) for rows in (truths, found)), "bbox")
    small, large = (side**2 for side in options.size_limits)
    evaluation.params.maxDets = [1, 10, options.max_dets]
    evaluation.params.areaRng = [[0, LARGEST_SIDE**2], [0, small], [small, large], [large, LARGEST_SIDE**2]]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _rows(columns: _Columns) -> list[dict[str, object]]:
    """Converts rows to a list of COCO's annotations."""
    names = "image_id", "category_id", "bbox", "area", "score", "iscrowd"
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [{"id": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows, 1)]  # id 0 means no match


def _xywh(boxes: Tensor) -> np.ndarray:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).numpy()


def _known(value: float) -> float:
    """Converts a metric of COCO; -1, which means that there is nothing to measure, becomes NaN."""
    return float(value) if value >= 0 else float("nan")


def _count(classes: Sequence[str], labels: np.ndarray) -> dict[str, int]:
    return dict(zip(classes, np.bincount(labels, minlength=len(classes) + 1)[1:].tolist(), strict=True))


def check_metric(classes: Sequence[str], options: CocoOptions = COCO) -> None:
    """Checks everything that can be checked before there are detections.

    Raises:
        ImportError: faster-coco-eval is not installed.
        ValueError: a name is in `classes` twice, or an option is not allowed.
    """
    check_classes(classes)
    for name, hint in get_type_hints(CocoOptions, include_extras=True).items():
        for check in get_args(hint)[2:]:
            try:
                check(getattr(options, name))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
    if find_spec("faster_coco_eval") is None:
        raise ImportError("method 'coco' needs faster-coco-eval: pip install 'ssd-ext[coco]'")
