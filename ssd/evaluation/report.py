"""Writes the report of an evaluation: one HTML file that needs no other file, and its numbers as JSON beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ssd.data.dataset import BoxDataset
from ssd.evaluation import matching, mistakes
from ssd.evaluation.coco import CocoOptions, CocoResult
from ssd.evaluation.matching import KINDS, MISSED, Matches
from ssd.evaluation.uncertainty import interval
from ssd.evaluation.voc import METHODS, EvalResult, average_precision
from ssd.inference.selection import REPORT
from ssd.reports import page
from ssd.reports.lines import line_plot
from ssd.runtime.text import printable
from ssd_ext import DetectionOptions

__all__ = ["Origin", "check_report", "write_report"]

STATED = ("min_score", "max_overlap", "top_k")  # options of detection that a report states
SHOWN_PICTURES = 40  # maximum number of pictures in the report
SHOWN_MISSED = 10  # so many of them are those with the most missed objects, whatever the scores of their errors
LISTED_BOXES = 100_000  # in the JSON file: no picture is listed after so many objects and detections; about 15 MB
SHOWN_BOXES = 100  # maximum number of detections of a picture that are drawn and listed: those with the highest scores
SIDE = 480  # the longer side of a picture in the report, in pixels
CURVE_POINTS = 200  # of a curve in the report
TRAINING_CURVES = (  # of a history: the title of a plot, the list of its steps, and its lines
    ("loss", "step", ("loss", "conf_loss", "loc_loss")),
    ("mAP", "eval_step", ("mAP",)),
    ("learning rate", "step", ("lr",)),
)
MATRIX_CLASSES = 30  # with more classes, the report lists the most frequent confusions instead of the matrix
CONFUSIONS = 20  # length of this list
MEANINGS = (  # of KINDS
    "The box is right, and an object of another class is there.",
    "The class is right, and the box does not fit well enough.",
    "The box overlaps an object of another class, and does not fit well enough.",
    "The object already has a detection with a higher score.",
    "There is no object.",
    "No detection refers to the object.",
)


OUTCOMES = {**dict(enumerate(KINDS)), matching.HIT: "hit", matching.IGNORED: "ignored"}  # of detections, as JSON has it


class Origin(NamedTuple):
    """What the detections of a report are, and how to make them again."""

    command: str  # the command that repeats the evaluation
    data: Sequence[str]  # paths of the data
    part: str  # the part of the data, such as "split test"
    source: str  # the weights, or the file of detections
    options: DetectionOptions | None  # None for a file of detections


def check_report(path: str | PathLike[str]) -> None:
    """Checks that a report can be written, before the evaluation begins.

    Raises:
        ValueError, OSError: see `ssd.reports.page.check_paths`.
    """
    page.check_paths(path, REPORT)


def write_report(
    path: str | PathLike[str],
    result: EvalResult,
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    dataset: BoxDataset,
    classes: Sequence[str],
    origin: Origin,
    *,
    in_pixels: bool = False,
    history: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Writes the report of an evaluation. Each file appears, or replaces an older one, only when it is complete.

    Args:
        path: the HTML file to write, in an existing folder. A file with the suffix .json is written beside it.
        result: the result of the evaluation. If it was measured by the rules of COCO, everything else in the report is
            measured by the rules of Pascal VOC at an IoU of 0.5.
        detections, targets: see `ssd.evaluation.voc.average_precision`.
        dataset: the pictures; those that the report shows are read. If the targets are its `truths`, the JSON file has
            the position of each object in its annotation.
        classes: the C-1 class names without background.
        origin: where the detections come from.
        in_pixels: whether boxes are in pixels; otherwise they are in fractions of the picture.
        history: the history of the run that trained the network, see `ssd.training.run.train`; its curves are shown.

    Raises:
        ValueError, OSError: see `check_report`; also if the disk is full.
    """
    check_report(path)
    path = Path(path)
    voc = result if result.method in METHODS else average_precision(detections, targets, classes)
    sizes = dataset.sizes if in_pixels else None
    matches = matching.match(detections, targets, len(classes) + 1, voc.iou_threshold, sizes)
    numbers = _numbers(result, voc, matches, classes, origin, interval(result, dataset.groups))
    found = _Mistakes(matches, dataset, numbers["best"]["min_score"])
    html = _page(numbers, voc, found, path.with_suffix(".json").name, history or {})
    page.write(path, html, numbers | {"pictures": found.listed(classes)})


def _numbers(
    result: EvalResult,
    voc: EvalResult,
    matches: Matches,
    classes: Sequence[str],
    origin: Origin,
    mAP_interval: tuple[float, float] | None,
) -> dict[str, Any]:
    """The content of the JSON file, see docs/evaluation.md; without "pictures"."""
    min_score, mean_f1 = mistakes.best_of_all(matches)
    kept = None if math.isnan(min_score) else min_score
    counts, costs = mistakes.count_errors(matches, kept), mistakes.error_costs(matches, voc.method)
    calibration = mistakes.calibration(matches)
    bins = zip(
        calibration.edges[:-1],
        calibration.edges[1:],
        calibration.counts,
        calibration.mean_scores,
        calibration.hit_shares,
        strict=True,
    )
    numbers = {
        **page.head(REPORT, origin.command),
        "data": list(origin.data),
        "part": origin.part,
        "source": origin.source,
        "options": {name: getattr(origin.options, name) for name in STATED} if origin.options else {},
        "versions": page.versions(),
        "n_pictures": matches.n_pictures,
        "n_objects": int(matches.n_truths.sum()),
        "n_detections": len(matches.scores),
        "method": result.method,
        "metric": result.title,
        "mAP": result.mAP,
        "mAP_interval": mAP_interval,
        "iou": voc.iou_threshold,
        "coco": result.figures if isinstance(result, CocoResult) else None,
        "coco_options": result.options._asdict() if isinstance(result, CocoResult) else None,
        "best": {"min_score": min_score, "mean_f1": mean_f1},
        "classes": [
            {"name": name, "ap": result.ap[name], "n_objects": voc.n_truths[name], **best._asdict()}
            for name, best in zip(classes, mistakes.best_of_classes(matches), strict=True)
        ],
        "errors": [{"kind": kind, "count": counts[kind], "mAP_cost": costs[kind]} for kind in KINDS],
        "confusion": {"labels": ["background", *classes], "counts": mistakes.confusion(matches, kept).tolist()},
        "sizes": [size._asdict() for size in mistakes.ap_by_size(matches, voc.method)],
        "calibration": {
            "expected_error": calibration.error,
            "bins": [
                dict(zip(("low", "high", "count", "mean_score", "hit_share"), each, strict=True)) for each in bins
            ],
        },
    }
    known: dict[str, Any] = page.known(numbers)
    return known


class _Mistakes:
    """The pictures with mistakes at a threshold, those first that a reader should look at first.

    Args:
        matches: all detections and objects.
        dataset: the pictures.
        min_score: the threshold; None: all detections count.
    """

    def __init__(self, matches: Matches, dataset: BoxDataset, min_score: float | None) -> None:
        self.matches, self.dataset = matches, dataset
        self.without_hit, self.wrong = mistakes.count_by_picture(matches, min_score)
        self.missed = mistakes.missed_objects(matches, min_score)
        kept = np.flatnonzero(matching.above(matches, min_score))
        kept = kept[np.lexsort((-matches.scores[kept], matches.pictures[kept]))]
        numbers = np.arange(matches.n_pictures + 1)
        self.rows = np.split(kept, np.searchsorted(matches.pictures[kept], numbers[1:-1]))  # by descending score
        # The first object of each picture, and the end.
        self.ends: np.ndarray = np.asarray(np.searchsorted(matches.truth_pictures, numbers))
        truths = dataset.truths
        same = np.array_equal(truths.row_splits.numpy(), self.ends)
        self.indices = truths.columns["index"].tolist() if same else [None] * len(matches.truth_labels)
        self.shown, others = self._order()
        self.order = [*self.shown, *others]

    def _order(self) -> tuple[list[int], list[int]]:
        """The pictures with mistakes: those that the page shows, and the others."""
        matches = self.matches
        highest = np.full(matches.n_pictures, -np.inf)  # score of an error
        errors = np.concatenate([np.empty(0, np.int64), *self.rows])
        errors = errors[matches.outcomes[errors] >= 0]
        np.maximum.at(highest, matches.pictures[errors], np.nan_to_num(matches.scores[errors], nan=-np.inf))
        missed = np.bincount(matches.truth_pictures[self.missed], minlength=matches.n_pictures)
        some = self.without_hit + self.wrong > 0
        by_score = [i for i in np.lexsort((-missed, -highest)).tolist() if some[i]]
        shown = by_score[:SHOWN_PICTURES]
        if len(by_score) > SHOWN_PICTURES:
            first = shown[: SHOWN_PICTURES - SHOWN_MISSED]
            by_missed = [i for i in np.argsort(-missed, kind="stable").tolist() if missed[i] and i not in first]
            shown = list(dict.fromkeys([*first, *by_missed[:SHOWN_MISSED], *by_score]))[:SHOWN_PICTURES]
        return shown, [i for i in by_score if i not in shown]

    def listed(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The pictures for the JSON file, see docs/evaluation.md."""
        names, n, pictures = [None, *classes], 0, []
        matches, dataset = self.matches, self.dataset
        scales = np.tile(dataset.sizes.numpy(), 2)
        boxes = _finite((matches.boxes * scales[matches.pictures]).round(2))
        truth_boxes = _finite((matches.truth_boxes * scales[matches.truth_pictures]).round(2))
        means_other = np.isin(matches.outcomes, (matching.WRONG_CLASS, matching.WRONG_BOTH))
        own = np.where(matches.outcomes == matching.BACKGROUND, -1, matches.own)
        columns = matches.labels, matches.outcomes, matches.scores, np.where(means_other, matches.other, own)
        labels, outcomes, scores, meant = (column.tolist() for column in columns)
        of_truths = matches.truth_labels, matches.difficult, self.missed
        truth_labels, difficult, missed = (column.tolist() for column in of_truths)
        for place, index in enumerate(self.order):
            objects, found = self._objects(index), self.rows[index][:SHOWN_BOXES].tolist()
            n += len(objects) + len(found)
            if n > LISTED_BOXES:
                break
            truths = [
                {
                    "index": self.indices[row],
                    "class": names[truth_labels[row]],
                    "box": truth_boxes[row],
                    "difficult": difficult[row],
                    "missed": missed[row],
                }
                for row in objects
            ]
            detections = [
                {
                    "class": names[labels[row]],
                    "score": None if math.isnan(scores[row]) else scores[row],
                    "box": boxes[row],
                    "kind": OUTCOMES[outcomes[row]],
                    "object": meant[row] - objects.start if meant[row] >= 0 else None,
                }
                for row in found
            ]
            pictures.append(
                {
                    "file": str(dataset.pictures[index]),
                    "annotation": str(dataset.files[index]),
                    "tile": dataset.tile(index),
                    "shown": place < len(self.shown),
                    "without_hit": int(self.without_hit[index]),
                    "wrong": int(self.wrong[index]),
                    "objects": truths,
                    "detections": detections,
                }
            )
        return pictures

    def _objects(self, index: int) -> range:
        """The rows of the objects of a picture."""
        return range(*self.ends[index : index + 2].tolist())

    def drawings(self) -> list[dict[str, Any]]:
        """The pictures that the page shows, for the template."""
        return [self._drawing(index) for index in self.shown]

    def _drawing(self, index: int) -> dict[str, Any]:
        matches, dataset = self.matches, self.dataset
        width, height = dataset.sizes[index].tolist()
        size = page.within((width, height), SIDE)
        return {
            "file": page.short(dataset.pictures[index]),
            "counts": {"without_hit": int(self.without_hit[index]), "wrong": int(self.wrong[index])},
            "size": size,
            "image": page.thumbnail(dataset.picture(index), size),
            "truths": [
                {
                    "label": int(matches.truth_labels[row]),
                    "kind": MISSED if self.missed[row] else matching.HIT,
                    "difficult": bool(matches.difficult[row]),
                    "box": page.drawn(matches.truth_boxes[row], size),
                }
                for row in self._objects(index)
            ],
            "found": [
                {
                    "label": int(matches.labels[row]),
                    "kind": int(matches.outcomes[row]),
                    "score": float(matches.scores[row]),
                    "box": page.drawn(matches.boxes[row], size),
                }
                for row in self.rows[index][:SHOWN_BOXES].tolist()
            ],
        }


def _finite(boxes: np.ndarray) -> list[list[float] | None]:
    """Boxes (n, 4) as lists; None for one that has NaN or infinity, which JSON has not."""
    finite = np.isfinite(boxes).all(1)
    return [box if its else None for box, its in zip(boxes.tolist(), finite.tolist(), strict=True)]


def _page(
    numbers: Mapping[str, Any],
    voc: EvalResult,
    found: _Mistakes,
    json_name: str,
    history: Mapping[str, Sequence[float]],
) -> str:
    names = ["background", *(printable(row["name"]) for row in numbers["classes"])]
    rows = numbers["confusion"]["counts"]
    confusions = sorted(
        ((n, names[t], names[f]) for t, row in enumerate(rows) for f, n in enumerate(row) if t and f and t != f and n),
        reverse=True,
    )
    return page.render(
        "evaluation/report.html.jinja",
        **numbers,
        embedded=numbers,
        title=", ".join(printable(PurePath(name).name or name) for name in numbers["data"]),
        json_name=printable(json_name),
        names=names,
        curves={
            row["name"]: _curve(*voc.curves[row["name"]], row["recall"], row["precision"]) for row in numbers["classes"]
        },
        kinds=KINDS,
        meanings=MEANINGS,
        confusions=confusions[:CONFUSIONS],
        coco_rules=str(CocoOptions(**numbers["coco_options"])) if numbers["coco_options"] else "",
        is_matrix=len(names) <= MATRIX_CLASSES + 1,
        worst=found.drawings(),
        n_worst=len(found.order),
        training=[
            plot
            for name, step, names in TRAINING_CURVES
            if (plot := line_plot(name, history.get(step, ()), {each: history.get(each, ()) for each in names}))
        ],
    )


class _Curve(NamedTuple):
    """A curve in a square of 100 x 100 whose y axis points down."""

    line: str  # points of a polyline
    area: str  # points of the polygon below it
    best: tuple[float, float] | None  # the point with the highest F1


def _curve(
    recall: np.ndarray, precision: np.ndarray, best_recall: float | None, best_precision: float | None
) -> _Curve:
    """Draws the highest precision at each recall or a higher one; its area is the AP."""
    if not len(recall):
        return _Curve("", "", None)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    xs = np.linspace(0, recall[-1], CURVE_POINTS)
    ys = highest[np.searchsorted(recall, xs).clip(max=len(recall) - 1)]
    turns: np.ndarray = np.ones(len(xs), bool)
    turns[1:-1] = (ys[1:-1] != ys[:-2]) | (ys[1:-1] != ys[2:])  # of equal neighbours only the ends
    points = [f"{100 * x:.1f},{100 - 100 * y:.1f}" for x, y in zip(xs[turns], ys[turns], strict=True)]
    line = " ".join(points)
    best = None if best_recall is None or best_precision is None else (100 * best_recall, 100 - 100 * best_precision)
    return _Curve(line, f"0,100 {line} {100 * recall[-1]:.1f},100", best)
