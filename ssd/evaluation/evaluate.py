"""From a network and a data set to a figure: its detections in all pictures, measured by one of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ssd.data.dataset import BoxDataset
from ssd.data.loader import eval_loader
from ssd.detection import Found, unpad
from ssd.evaluation import coco as coco_metrics
from ssd.evaluation import voc as voc_metrics
from ssd.evaluation.voc import EvalResult
from ssd.inference.detector import Predict, predictor
from ssd.networks.ssd300 import SSD300
from ssd.runtime.packed import Packed
from ssd.runtime.processes import ALONE, Ranks
from ssd_ext import DetectionOptions

__all__ = ["METHODS", "EvalResult", "detect_all", "evaluate", "score"]


class Metric(NamedTuple):
    """How a method measures.

    Attributes:
        check: raises an error if classes, and the least IoU of a hit if the method takes one, cannot be measured.
        measure: the result of detections and targets, followed by the same.
        in_pixels: boxes are in pixels, not in fractions of the picture.
        takes_iou: the least IoU of a hit can be chosen.
    """

    check: Callable[..., None]
    measure: Callable[..., EvalResult]
    in_pixels: bool = False
    takes_iou: bool = True


METRICS = {
    **{
        method: Metric(
            partial(voc_metrics.check_metric, method=method), partial(voc_metrics.average_precision, method=method)
        )
        for method in voc_metrics.METHODS
    },
    "coco": Metric(coco_metrics.check_metric, coco_metrics.coco_average_precision, in_pixels=True, takes_iou=False),
}
METHODS = tuple(METRICS)
READ_EVERY = 32  # batches between two reads of the detections, each of which waits for the device


def evaluate(
    model: SSD300 | Predict,
    dataset: Dataset,
    classes: Sequence[str],
    options: DetectionOptions = DetectionOptions(),
    *,
    iou_threshold: float | None = None,
    method: str = "area",
    batch_size: int = 8,
    bf16: bool | None = None,
    workers: int | None = None,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> EvalResult:
    """Runs a network over a dataset and measures its average precision; the defaults are the tutorial's.

    Args:
        model: the network, run on the device of its parameters and left in evaluation mode, or what
            `ssd.inference.detector.predictor` takes in its place.
        dataset: gives (image, target) as `ssd.data.open_dataset` with `EvalTransform` does.
        classes: the C-1 names without background.
        options: see `ssd_ext.DetectionOptions`.
        iou_threshold: see `score`.
        method: see `score`; "coco" cuts detections at the picture's edges, as `ssd detect` does, and needs the pixels
            of a `BoxDataset`.
        batch_size: pictures per forward pass.
        bf16: bfloat16 autocast; None uses it where the hardware has it.
        workers: processes that read pictures; by default one per core, at most 4.
        quiet: no progress bar.
        ranks: processes that share the pictures; each returns the result of all.

    Returns:
        An `EvalResult`.
    """
    classes = tuple(classes)
    metric, _ = _checked(method, classes, iou_threshold)
    if metric.in_pixels and not isinstance(dataset, BoxDataset):
        raise ValueError(f"method {method!r} measures in pixels: it needs a BoxDataset, got {type(dataset).__name__}")
    detections, targets = detect_all(
        model, dataset, options, batch_size=batch_size, bf16=bf16, workers=workers, quiet=quiet, ranks=ranks
    )

    def measure() -> EvalResult:
        found, truth = detections, targets
        if metric.in_pixels:
            width, height = dataset.sizes.repeat_interleave(found.counts, 0).T
            found = Packed(found.columns.in_pixels(width, height), found.row_splits)
            truth = dataset.truths
        return score(found, truth, classes, iou_threshold, method)

    return ranks.from_first(measure)


def detect_all(
    model: SSD300 | Predict,
    dataset: Dataset,
    options: DetectionOptions = DetectionOptions(),
    *,
    batch_size: int = 8,
    bf16: bool | None = None,
    workers: int | None = None,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[Packed[Found] | tuple[()], Packed[dict[str, Tensor]] | tuple[()]]:
    """Runs a network over a dataset.

    Args:
        see `evaluate`.

    Returns:
        what it finds in every picture, and what there is, in fractions of the picture: as `score` takes them. Of
        several processes the first has all of it, and the others nothing.
    """
    predict = predictor(model, options, bf16=bf16)
    loader = eval_loader(Subset(dataset, ranks.every(range(len(dataset)))), batch_size, workers)
    waiting: list[tuple[Tensor, ...]] = []
    detections: list[Packed[Found]] = []
    targets: list[Packed[dict[str, Tensor]]] = []

    def read() -> None:
        detections.extend(map(unpad, waiting))
        waiting.clear()

    for batch in tqdm(loader, unit="batch", disable=True if quiet or not ranks.first else None):
        waiting.append(predict(batch.images))
        targets.append(batch.targets())
        if len(waiting) == READ_EVERY:
            read()
    read()
    mine = (Packed.join(detections), Packed.join(targets)) if targets else None
    parts = [part for part in ranks.to_first(mine) if part is not None]
    if len(parts) < 2:
        return parts[0] if parts else ((), ())
    place = torch.arange(len(dataset))  # a picture is that of number place // size of process place % size
    before = torch.tensor([0, *(len(found) for found, _ in parts)]).cumsum(0)
    order = before[place % ranks.size] + place // ranks.size
    found, truth = (Packed.join(each).take(order) for each in zip(*parts, strict=True))
    return found, truth


def score(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    iou_threshold: float | None = None,
    method: str = "area",
) -> EvalResult:
    """Average precision of detections, by one of `METHODS`.

    Args:
        detections, targets, classes: see `ssd.evaluation.voc.average_precision`; for "coco" boxes in pixels, see
            `ssd.evaluation.coco.coco_average_precision`.
        iou_threshold: smallest IoU that counts as found, in (0, 1]; by default 0.5. Not for "coco", which averages over
            ten.
        method: "area" or "11point" of Pascal VOC, or "coco".

    Returns:
        An `EvalResult`; of "coco" a `CocoResult`.
    """
    metric, chosen = _checked(method, classes, iou_threshold)
    return metric.measure(detections, targets, classes, **chosen)


def _checked(method: str, classes: Sequence[str], iou_threshold: float | None) -> tuple[Metric, dict[str, float]]:
    """The metric of a method and the least IoU that it takes, if it takes one.

    Raises:
        ValueError: an unknown method, or the method cannot measure these classes or take this IoU.
    """
    if method not in METRICS:
        raise ValueError(f"method must be one of {', '.join(METRICS)}, got {method!r}")
    metric = METRICS[method]
    if iou_threshold is not None and not metric.takes_iou:
        raise ValueError(f"iou_threshold cannot be chosen for the method {method!r}, got {iou_threshold}: leave it out")
    chosen = {"iou_threshold": 0.5 if iou_threshold is None else iou_threshold} if metric.takes_iou else {}
    metric.check(tuple(classes), **chosen)
    return metric, chosen
