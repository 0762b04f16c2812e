"""Runs a network on a data set, and measures its detections by one of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from ssd.data.dataset import BoxDataset
from ssd.data.loader import Sample, Samples, eval_loader
from ssd.detection import Found, Padded, unpad
from ssd.evaluation import coco as coco_metrics
from ssd.evaluation import voc as voc_metrics
from ssd.evaluation.checks import check_units
from ssd.evaluation.coco import CocoOptions
from ssd.evaluation.voc import EvalResult
from ssd.inference.detector import Detector
from ssd.inference.prediction import Predict, predictor
from ssd.loss import check_in_fractions
from ssd.networks import Network
from ssd.networks.network import unwrapped
from ssd.runtime.packed import Packed, splits_of
from ssd.runtime.processes import ALONE, Ranks
from ssd_ext import DetectionOptions

__all__ = ["METHODS", "EvalResult", "check", "detect_all", "detect_pictures", "evaluate", "score", "score_found"]


class Metric(NamedTuple):
    """The functions of a method of measuring detections.

    Attributes:
        check: takes the classes, and `iou_threshold` or `options` if the method has them; raises an error if these
            cannot be measured.
        measure: takes detections, targets and the same arguments as `check`; returns the result.
        in_pixels: whether boxes must be in pixels, not in fractions of the picture.
        takes_iou: whether the smallest IoU of a true positive can be chosen.
        takes_options: whether it takes `options`, a `CocoOptions`.
    """

    check: Callable[..., None]
    measure: Callable[..., EvalResult]
    in_pixels: bool = False
    takes_iou: bool = True
    takes_options: bool = False


METRICS: dict[str, Metric] = {
    **{
        method: Metric(
            partial(voc_metrics.check_metric, method=method), partial(voc_metrics.average_precision, method=method)
        )
        for method in voc_metrics.METHODS
    },
    "coco": Metric(
        *(coco_metrics.check_metric, coco_metrics.coco_average_precision),
        in_pixels=True,
        takes_iou=False,
        takes_options=True,
    ),
}
METHODS = tuple(METRICS)
Results = TypeVar("Results", bound=tuple[Packed[Any], ...])
READ_EVERY = 32  # batches between two copies of detections to the host; each copy waits for the device


def evaluate(
    model: Network | Predict,
    dataset: Samples[int],
    classes: Sequence[str],
    options: DetectionOptions = DetectionOptions(),
    *,
    iou_threshold: float | None = None,
    method: str = "area",
    coco: CocoOptions | None = None,
    batch_size: int = 8,
    bf16: bool | None = None,
    workers: int | None = None,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> EvalResult:
    """Runs a network on a data set and measures its average precision. The defaults are those of sgrvinod's tutorial.

    Args:
        model: the network, which runs on the device of its parameters, in evaluation mode; its modules get their
            modes back. It may be any module with its priors as `priors_cxcy` that returns offsets (B, P, 4) and class
            logits (B, P, C). It gets normalised floating-point images (B, 3, S, S). Or a function that detects, such as
            the result of `ssd.export.load`. It gets the images of the data set as they are, on the CPU, so uint8 from
            `EvalTransform`. It returns boxes (B, K, 4) xyxy in fractions of the picture, labels (B, K), scores (B, K)
            and counts (B,), as `ssd_ext.postprocess_detections` does; `options` and `bf16` have no effect on it.
        dataset: samples (image, target) by index, as from `ssd.data.open_dataset` with `EvalTransform`. An image is
            (3, S, S) RGB, where S is the side of the network's input: uint8, or floating-point and normalised with
            the mean and standard deviation of ImageNet. A target is a dict with "boxes" (n, 4) float xyxy in fractions
            of the picture and "labels" (n,) int64 in 1..C-1, n >= 0; and optionally "difficult" (n,) bool.
        classes: the C-1 class names without background; label i is `classes[i - 1]`.
        options: see `ssd_ext.DetectionOptions`. The variances must be those of the loss.
        iou_threshold: see `score`.
        method: see `score`. "coco" cuts detections at the picture's edges, as `ssd detect` does, and needs a
            `BoxDataset`, which knows the sizes of its pictures in pixels.
        coco: see `score`.
        batch_size: pictures per forward pass, at least 1.
        bf16: whether to use bfloat16 autocast; None: if the hardware supports it.
        workers: number of processes that read pictures; by default see `ssd.data.loader.worker_count`.
        quiet: whether to hide the progress bar.
        ranks: processes that share the pictures; all of them return the result of the whole data set.

    Returns:
        An `EvalResult`; with "coco" a `CocoResult`.

    Raises:
        ValueError: see `score`; "coco" is used with another data set than a `BoxDataset`; or boxes of the data set are
            in pixels.
        ImportError: see `score`.

    Examples:
        >>> from ssd import build_network
        >>> from ssd.data import open_dataset
        >>> from ssd.data.augmentation import EvalTransform
        >>> from ssd.data.shapes import write_shapes
        >>> from ssd.evaluation.evaluate import evaluate
        >>> folder = write_shapes("shapes", n_train=4, n_test=4, size=(96, 64))
        >>> dataset = open_dataset(folder, "test", transform=EvalTransform(224))
        >>> network = build_network("ssdlite", len(dataset.classes) + 1, size=224, width=0.1)  # with random weights
        >>> result = evaluate(network, dataset, dataset.classes, workers=0, quiet=True)
        >>> result.title, result.mAP < 0.1
        ('mAP@0.5', True)
    """
    classes = tuple(classes)
    check(dataset, classes, iou_threshold, method, coco)
    found = detect_all(
        model, dataset, options, batch_size=batch_size, bf16=bf16, workers=workers, quiet=quiet, ranks=ranks
    )
    return ranks.from_first(lambda: score_found(*found, dataset, classes, iou_threshold, method, coco))


def check(
    dataset: Samples[int],
    classes: Sequence[str],
    iou_threshold: float | None = None,
    method: str = "area",
    coco: CocoOptions | None = None,
) -> None:
    """Checks everything that can be checked before the network runs, see `evaluate`.

    Raises:
        ValueError, ImportError: see `evaluate`.
    """
    metric, _ = _checked(method, classes, iou_threshold, coco)
    if metric.in_pixels and not isinstance(dataset, BoxDataset):
        raise ValueError(f"method {method!r} measures in pixels: it needs a BoxDataset, got {type(dataset).__name__}")


def detect_all(
    model: Network | Predict,
    dataset: Samples[int],
    options: DetectionOptions = DetectionOptions(),
    *,
    batch_size: int = 8,
    bf16: bool | None = None,
    workers: int | None = None,
    quiet: bool = False,
    ranks: Ranks = ALONE,
    device: torch.device | None = None,
) -> tuple[Packed[Found] | tuple[()], Packed[dict[str, Tensor]] | tuple[()]]:
    """Runs a network on a data set.

    Args:
        model, dataset, options, batch_size, bf16, workers, quiet, ranks: see `evaluate`.
        device: where a function runs, see `ssd.data.loader.worker_count`; a network has its own.

    Returns:
        The detections and the targets of every picture, in fractions of the picture, as `score` takes them. With
        several processes the first one gets those of all pictures, and the others get empty tuples.
    """
    predict = predictor(model, options, bf16=bf16)
    indices = ranks.every(range(len(dataset)))
    # Subset works with any object that has __getitem__, although torch declares only Dataset.
    mine: Subset[Sample] = Subset(dataset, indices)  # type: ignore[arg-type]
    if isinstance(model, nn.Module):
        device = unwrapped(model).priors_cxcy.device
    loader = eval_loader(mine, batch_size, workers, device)
    waiting: list[Padded] = []
    detections: list[Packed[Found]] = []
    targets: list[Packed[dict[str, Tensor]]] = []

    def read() -> None:
        detections.extend(map(unpad, waiting))
        waiting.clear()

    silent = True if quiet or not ranks.first else None
    with _same_modes(model), closing(iter(loader)) as batches:
        for batch in tqdm(batches, total=len(loader), unit="batch", disable=silent):
            if len(batch.boxes):
                check_in_fractions(batch.boxes)
            waiting.append(predict(batch.images))
            targets.append(batch.targets())
            if len(waiting) == READ_EVERY:
                read()
    read()
    own = (Packed.join(detections), Packed.join(targets)) if targets else None
    return _gathered(own, len(dataset), ranks) or ((), ())


@contextmanager
def _same_modes(model: Network | Predict) -> Iterator[None]:
    """Restores afterwards which modules of a network are in training mode."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def detect_pictures(
    detector: Detector,
    dataset: BoxDataset,
    *,
    batch_size: int = 8,
    workers: int | None = None,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Packed[Found] | tuple[()]:
    """Calls a detector with each picture of a data set, so that all its options apply.

    Args:
        detector: the detector.
        dataset: the data set.
        batch_size, quiet, ranks: see `evaluate`.
        workers: see `ssd.Detector.__call__`.

    Returns:
        The detections in each picture, in pixels. With several processes the first one gets those of all pictures, and
        the others get an empty tuple.

    Raises:
        FileNotFoundError, ImageReadError: see `ssd.Detector.__call__`.
    """
    mine = list(ranks.every(range(len(dataset))))
    every = detector(map(dataset.picture, mine), batch_size=batch_size, workers=workers)
    silent = True if quiet or not ranks.first else None
    found = [
        Found(each.boxes, each.labels, each.scores)
        for each in tqdm(every, total=len(mine), unit="picture", disable=silent)
    ]
    counts = torch.tensor([len(each.labels) for each in found])
    own = (Packed(Found(*map(torch.cat, zip(*found, strict=True))), splits_of(counts)),) if found else None
    gathered = _gathered(own, len(dataset), ranks)
    return gathered[0] if gathered else ()


def _gathered(own: Results | None, n: int, ranks: Ranks) -> Results | None:
    """Gathers in the first process what each process has for its pictures, in the order of the pictures.

    Args:
        own: a tuple with the results of this process; process r has those of the pictures r, r + size, r + 2 size ...
            None if it has no pictures.
        n: number of pictures.
        ranks: the processes.

    Returns:
        The results of all pictures; None in other processes than the first one, or without pictures.
    """
    parts = [part for part in ranks.to_first(own) if part is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    place = torch.arange(n)  # process place % size has this picture at place // size
    before = torch.tensor([0, *(len(part[0]) for part in parts)]).cumsum(0)
    order = before[place % ranks.size] + place // ranks.size
    return cast(Results, tuple(Packed.join(each).take(order) for each in zip(*parts, strict=True)))


def score_found(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    dataset: Samples[int],
    classes: Sequence[str],
    iou_threshold: float | None = None,
    method: str = "area",
    coco: CocoOptions | None = None,
) -> EvalResult:
    """Measures the average precision of the detections of a network.

    Args:
        detections, targets: the result of `detect_all`.
        dataset: the data set; if the method measures in pixels, a `BoxDataset`.
        classes, iou_threshold, method, coco: see `score`.

    Returns:
        See `score`.
    """
    metric, chosen = _checked(method, classes, iou_threshold, coco)
    if metric.in_pixels and isinstance(dataset, BoxDataset) and isinstance(detections, Packed):
        width, height = dataset.sizes.repeat_interleave(detections.counts, 0).T
        detections = Packed(detections.columns.in_pixels(width, height), detections.row_splits)
        targets = dataset.truths
    # The units are known, and a network that has learnt nothing may find boxes far beyond the picture.
    return metric.measure(detections, targets, classes, **chosen)


def score(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    iou_threshold: float | None = None,
    method: str = "area",
    coco: CocoOptions | None = None,
) -> EvalResult:
    """Measures the average precision of detections, by one of `METHODS`.

    Args:
        detections, targets, classes: see `ssd.evaluation.voc.average_precision`; for "coco" the boxes are in pixels,
            see `ssd.evaluation.coco.coco_average_precision`.
        iou_threshold: smallest IoU of a true positive, in (0, 1]; by default 0.5. Cannot be chosen for "coco", which
            averages over ten IoUs.
        method: "area" or "11point" for the rules of Pascal VOC, or "coco".
        coco: for "coco", the number of detections that count and the limits of the sizes, if not COCO's own.

    Returns:
        An `EvalResult`; with "coco" a `CocoResult`.

    Raises:
        ValueError: the method is unknown; the IoU or an option is not allowed; detections and targets are in different
            units, or for "coco" not in pixels; see also the function of the method.
        TypeError: a detection is no triple, or a target is no mapping.
        ImportError: "coco" needs faster-coco-eval, which is not installed.

    Examples:
        >>> import torch
        >>> from ssd.evaluation.evaluate import score
        >>> boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60]])
        >>> detections = [(boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))]  # of one picture
        >>> targets = [{"boxes": torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
        >>> score(detections, targets, ["cat"]).summary()  # finds one of two cats
        'mAP@0.5 0.5000 (cat 0.5000)'
    """
    metric, chosen = _checked(method, classes, iou_threshold, coco)
    check_units(detections, targets, len(classes) + 1, in_pixels=metric.in_pixels)
    return metric.measure(detections, targets, classes, **chosen)


def _checked(
    method: str, classes: Sequence[str], iou_threshold: float | None, coco: CocoOptions | None
) -> tuple[Metric, dict[str, Any]]:
    """Returns the metric of a method, and the arguments for it: those of `iou_threshold` and `options` that it takes.

    Raises:
        ValueError: the method is unknown, or cannot measure these classes or take this IoU or these options.
    """
    if method not in METRICS:
        raise ValueError(f"method must be one of {', '.join(METRICS)}, got {method!r}")
    metric = METRICS[method]
    if iou_threshold is not None and not metric.takes_iou:
        raise ValueError(f"iou_threshold cannot be chosen for the method {method!r}, got {iou_threshold}: leave it out")
    if coco is not None and not metric.takes_options:
        raise ValueError(f"coco has options of the method 'coco', and the method is {method!r}: leave it out")
    chosen: dict[str, Any] = {}
    if metric.takes_iou:
        chosen["iou_threshold"] = 0.5 if iou_threshold is None else iou_threshold
    if metric.takes_options:
        chosen["options"] = coco or CocoOptions()
    metric.check(tuple(classes), **chosen)
    return metric, chosen
