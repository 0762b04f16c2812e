"""Counts the mistakes of a network and what they cost, and finds the best thresholds of scores.

All functions take the result of `ssd.evaluation.matching.match`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssd.evaluation.matching import (
    BACKGROUND,
    DUPLICATE,
    HIT,
    IGNORED,
    KINDS,
    MISSED,
    WRONG_BOTH,
    WRONG_CLASS,
    WRONG_PLACE,
    Matches,
    above,
)
from ssd.evaluation.voc import area_under, first_of, precision_over_recall

# Sides of small objects are below the first limit, those of large objects at or above the second one. Both are
# fractions of the picture's side. They are COCO's limits of 32 and 96 pixels in a picture of 512 x 512 pixels.
SIZE_LIMITS = (1 / 16, 3 / 16)
SIZES = ("small", "medium", "large")
BINS = 10  # of the calibration
DIGITS = 7  # decimals of a threshold; scores are float32


class Operating(NamedTuple):
    """What remains of a class if only detections with a score above a threshold are kept."""

    min_score: float  # the threshold; NaN if no detection is a hit
    precision: float  # in 0..1; NaN if no detection is a hit
    recall: float  # in 0..1; NaN without objects
    f1: float  # harmonic mean of precision and recall, in 0..1; NaN without objects


class SizeResult(NamedTuple):
    """Average precision of objects of one size."""

    name: str  # one of SIZES
    low: float  # smallest side, as a fraction of the picture's side
    high: float  # sides are below this; infinite for large objects
    mAP: float  # mean over the classes with objects of this size, in 0..1; NaN if there is none
    n_objects: int  # without difficult ones


class Calibration(NamedTuple):
    """Scores compared with the share of hits, in bins of equal width."""

    edges: np.ndarray  # (B+1,) float64, from 0 to 1
    counts: np.ndarray  # (B,) int64: number of detections
    mean_scores: np.ndarray  # (B,) float64; NaN in an empty bin
    hit_shares: np.ndarray  # (B,) float64 in 0..1; NaN in an empty bin
    error: float  # expected calibration error, in 0..1 for scores in 0..1; NaN without detections


def missed_objects(matches: Matches, min_score: float | None = None) -> np.ndarray:
    """Finds the objects that no detection refers to: TIDE's missed objects.

    Args:
        matches: see `match`.
        min_score: only detections with a score above this count; None: all detections.

    Returns:
        (G,) bool. False for difficult objects, for objects that a hit has matched, and for those to which a detection
        of a wrong class, or at a wrong place, refers.
    """
    shown = above(matches, min_score)
    missed = ~matches.difficult
    for outcome, objects in ((HIT, matches.own), (WRONG_PLACE, matches.own), (WRONG_CLASS, matches.other)):
        missed[objects[shown & (matches.outcomes == outcome)]] = False
    return missed


def count_errors(matches: Matches, min_score: float | None = None) -> dict[str, int]:
    """Counts the errors of each kind.

    Args:
        matches, min_score: see `missed_objects`.

    Returns:
        Dict from each of KINDS to its number.
    """
    outcomes = matches.outcomes[above(matches, min_score)]
    counts = [int((outcomes == kind).sum()) for kind in range(MISSED)]
    return dict(zip(KINDS, [*counts, int(missed_objects(matches, min_score).sum())], strict=True))


def count_by_picture(matches: Matches, min_score: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Counts the mistakes in each picture.

    Args:
        matches, min_score: see `missed_objects`.

    Returns:
        Two arrays (N,) int64: the number of objects without a hit, and the number of detections that are an error.
        Difficult objects do not count.
    """
    shown, n = above(matches, min_score), matches.n_pictures
    objects = np.bincount(matches.truth_pictures[~matches.difficult], minlength=n)
    hits = np.bincount(matches.pictures[shown & (matches.outcomes == HIT)], minlength=n)
    return objects - hits, np.bincount(matches.pictures[shown & (matches.outcomes >= 0)], minlength=n)


def error_costs(matches: Matches, method: str = "area") -> dict[str, float]:
    """Computes how much mAP each kind of errors costs: mAP without the errors of this kind, minus mAP.

    The errors of a kind are repaired as TIDE does. A detection of a wrong class gets the class of the object, and a
    detection at a wrong place the box of the object. If several detections then match one object, only the one with the
    highest score is kept; if the object is difficult, the detection is ignored. The other wrong detections are removed.
    Missed objects are no longer counted as objects. If all objects of a class are missed, its AP becomes 1.

    Args:
        matches: see `match`.
        method: "area" or "11point", see `ssd.evaluation.voc.average_precision`.

    Returns:
        Dict from each of KINDS to its cost, in 0..1; NaN if there are no objects. The costs do not add up to 1 - mAP,
        because the effect of one kind of errors depends on the others.

    Source: see `match`; section 2.3 of the paper.
    """
    n_truths = matches.n_truths
    counted = np.flatnonzero(n_truths)
    if not counted.size:
        return dict.fromkeys(KINDS, math.nan)
    outcomes, hits = matches.outcomes, matches.outcomes == HIT
    kept = outcomes != IGNORED

    def mean(labels: np.ndarray, hits: np.ndarray, kept: np.ndarray, n_truths: np.ndarray = n_truths) -> float:
        aps = _average_precisions(labels[kept], matches.scores[kept], hits[kept], n_truths, method)
        return float(np.where(n_truths > 0, aps, 1.0)[counted].mean())

    def repaired(kind: int, objects: np.ndarray) -> float:
        """The mean if the detections of a kind matched these objects."""
        moved = outcomes == kind
        found = np.where(moved, objects, np.where(hits, matches.own, -1))
        labels = np.where(moved, np.append(matches.truth_labels, 0)[found], matches.labels)
        order = np.argsort(-matches.scores, kind="stable")
        first: np.ndarray = np.empty(len(order), bool)
        first[order] = first_of(found[order])
        return mean(labels, first, kept & (first | (found < 0)) & ~(moved & np.append(matches.difficult, False)[found]))

    base = mean(matches.labels, hits, kept)
    means = {
        WRONG_CLASS: repaired(WRONG_CLASS, matches.other),
        WRONG_PLACE: repaired(WRONG_PLACE, matches.own),
        **{kind: mean(matches.labels, hits, kept & (outcomes != kind)) for kind in (WRONG_BOTH, DUPLICATE, BACKGROUND)},
    }
    missed = np.bincount(matches.truth_labels[missed_objects(matches)], minlength=matches.n_classes)
    means[MISSED] = mean(matches.labels, hits, kept, n_truths - missed)
    return {name: means[kind] - base for kind, name in enumerate(KINDS)}


def best_of_classes(matches: Matches) -> list[Operating]:
    """Finds for each class the threshold with the highest F1.

    Args:
        matches: see `match`.

    Returns:
        C-1 results; the one of label i is at i - 1. The threshold is a short decimal number between the lowest score
        that is kept and the next lower score of the class. Of equal F1 the highest threshold is taken.
    """
    results = []
    for n_truths, (scores, kept, hits) in zip(matches.n_truths[1:].tolist(), _steps(matches), strict=True):
        if not n_truths or not hits.any():
            nothing = 0.0 if n_truths else math.nan
            results.append(Operating(math.nan, math.nan, nothing, nothing))
            continue
        f1 = 2 * hits / (kept + n_truths)
        best = int(f1.argmax())
        results.append(
            Operating(
                _between(*_gap(scores, best)),
                float(hits[best] / kept[best]),
                float(hits[best] / n_truths),
                float(f1[best]),
            )
        )
    return results


def best_of_all(matches: Matches) -> tuple[float, float]:
    """Finds the threshold with the highest mean F1 over the classes that have objects.

    Args:
        matches: see `match`.

    Returns:
        The threshold, chosen as in `best_of_classes`, and the mean F1 in 0..1. Without a hit both are NaN.
    """
    steps = [(n, step) for n, step in zip(matches.n_truths[1:].tolist(), _steps(matches), strict=True) if n]
    if not any(hits.any() for _, (_, _, hits) in steps):
        return math.nan, math.nan
    every = np.unique(np.concatenate([scores for _, (scores, _, _) in steps]))[::-1]
    total = np.zeros(len(every))
    for n_truths, (scores, kept, hits) in steps:
        f1: np.ndarray = np.append(0.0, 2 * hits / (kept + n_truths))
        starts = np.searchsorted(-every, -scores)  # from here on, the class has one more of its scores
        total += f1.repeat(np.diff(starts, prepend=0, append=len(every)))
    best = int(total.argmax())
    return _between(*_gap(every, best)), float(total[best] / len(steps))


def confusion(matches: Matches, min_score: float | None = None) -> np.ndarray:
    """Counts which class was found for the objects of each class.

    By descending score, each detection takes the free object of any class with which it has the highest IoU, if this is
    at least the threshold of `match`. A detection that takes none is ignored if it has such an IoU with a difficult
    object.

    Args:
        matches, min_score: see `missed_objects`.

    Returns:
        (C, C) int64. Row t and column f count the objects of label t that were found as label f; row 0 counts
        detections without an object, and column 0 objects without a detection.

    Ties: equal scores go by the order of the detections; of equal IoUs the first object is taken.
    """
    shown = above(matches, min_score)[matches.pairs[:, 0]]
    detections, objects = matches.pairs[shown].T
    order = np.lexsort((objects, -matches.pair_ious[shown], detections, -matches.scores[detections]))
    difficult = matches.difficult.tolist()
    taken: dict[int, int] = {}  # detection of an object
    done: set[int] = set()  # detections that have taken an object
    excused: set[int] = set()
    for detection, its_object in zip(detections[order].tolist(), objects[order].tolist(), strict=True):
        if difficult[its_object]:
            excused.add(detection)
        elif detection not in done and its_object not in taken:
            taken[its_object] = detection
            done.add(detection)
    found: np.ndarray = np.zeros(len(matches.truth_labels), np.int64)  # the label that was found for each object
    found[list(taken)] = matches.labels[list(taken.values())]
    free = above(matches, min_score)
    free[list(done | excused)] = False
    counts: np.ndarray = np.zeros((matches.n_classes, matches.n_classes), np.int64)
    np.add.at(counts, (matches.truth_labels[~matches.difficult], found[~matches.difficult]), 1)
    np.add.at(counts[0], matches.labels[free], 1)
    return counts


def calibration(matches: Matches) -> Calibration:
    """Compares the scores with the share of hits.

    Args:
        matches: see `match`. Ignored detections, and those with the score NaN, are left out.

    Returns:
        A `Calibration` of ten bins. Scores outside of 0..1 count in the first or the last bin. The expected calibration
        error is the mean of |share of hits - mean score| over the bins, weighted by their numbers of detections.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2, equation 3.
    """
    used = (matches.outcomes != IGNORED) & ~np.isnan(matches.scores)
    scores, hits = matches.scores[used], matches.outcomes[used] == HIT
    bins = np.clip(np.floor(scores * BINS), 0, BINS - 1).astype(np.int64)
    counts, sums, n_hits = (np.bincount(bins, weights, BINS) for weights in (None, scores, hits))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN in empty bins
        means, shares = sums / counts, n_hits / counts
    error = float(np.abs(n_hits - sums).sum() / len(scores)) if len(scores) else math.nan
    return Calibration(np.arange(BINS + 1) / BINS, counts, means, shares, error)


def ap_by_size(matches: Matches, method: str = "area") -> list[SizeResult]:
    """Computes the average precision of small, medium and large objects.

    The side of a box is the square root of its area, as a fraction of the square root of the picture's area. Objects of
    other sizes are treated as difficult ones. A detection that matches no object is ignored if its own size is another
    one, as in COCO's metric.

    Args:
        matches: see `match`.
        method: "area" or "11point", see `ssd.evaluation.voc.average_precision`.

    Returns:
        The results of SIZES, whose limits are SIZE_LIMITS.
    """
    sides, truth_sides = _sides(matches.boxes), _sides(matches.truth_boxes)
    side = np.where(_own_matched(matches), np.append(truth_sides, 0.0)[matches.own], sides)
    results = []
    for name, low, high in zip(SIZES, (0.0, *SIZE_LIMITS), (*SIZE_LIMITS, math.inf), strict=True):
        of_size = ~matches.difficult & (truth_sides >= low) & (truth_sides < high)
        n_truths = np.bincount(matches.truth_labels[of_size], minlength=matches.n_classes)
        kept = (matches.outcomes != IGNORED) & (side >= low) & (side < high)
        aps = _average_precisions(
            matches.labels[kept], matches.scores[kept], matches.outcomes[kept] == HIT, n_truths, method
        )
        mean = float(aps[n_truths > 0].mean()) if n_truths.any() else math.nan
        results.append(SizeResult(name, low, high, mean, int(n_truths.sum())))
    return results


def _own_matched(matches: Matches) -> np.ndarray:
    """Tells which detections have the IoU of a hit with an object of their class, (D,) bool."""
    matched: np.ndarray = np.zeros(len(matches.scores), bool)
    detections, objects = matches.pairs.T
    matched[detections[matches.labels[detections] == matches.truth_labels[objects]]] = True
    return matched


def _average_precisions(
    labels: np.ndarray, scores: np.ndarray, hits: np.ndarray, n_truths: np.ndarray, method: str
) -> np.ndarray:
    """Average precision of each label, (C,); 0 for labels without objects."""
    order = np.lexsort((-scores, labels))
    splits = _splits(labels[order], range(len(n_truths) + 1))
    hits = hits[order]
    curves = (
        precision_over_recall(hits[start:end], n)
        for (start, end), n in zip(pairwise(splits), n_truths.tolist(), strict=True)
    )
    return np.array([area_under(*curve, method) for curve in curves])


def _steps(matches: Matches) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each label from 1 on: its different scores in descending order, and how many detections, and how many hits,
    have this score or a higher one."""
    used = (matches.outcomes != IGNORED) & ~np.isnan(matches.scores)
    labels, scores, hits = matches.labels[used], matches.scores[used], matches.outcomes[used] == HIT
    order = np.lexsort((-scores, labels))
    scores, hits = scores[order], hits[order]
    splits = _splits(labels[order], range(1, matches.n_classes + 1))
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, end in pairwise(splits):
        its = scores[start:end]
        last = np.flatnonzero(np.append(its[1:] != its[:-1], True)) if len(its) else np.empty(0, np.int64)
        steps.append((its[last], last + 1, hits[start:end].cumsum()[last]))
    return steps


def _splits(labels: np.ndarray, starts: range) -> list[int]:
    """The first row of each label in `starts`, in sorted labels."""
    rows: np.ndarray = np.asarray(np.searchsorted(labels, starts))
    return rows.tolist()


def _gap(scores: np.ndarray, last: int) -> tuple[float, float]:
    """The first score that is not kept (-infinity if all are kept), and the last one that is."""
    return (float(scores[last + 1]) if last + 1 < len(scores) else -math.inf), float(scores[last])


def _between(low: float, high: float) -> float:
    """Chooses a number in low..high, without high, that has few decimals and is near to high."""
    for digits in range(1, DIGITS + 1 if math.isfinite(high) else 1):
        for step in (1, 2):
            number = round((math.ceil(high * 10**digits) - step) / 10**digits, digits)
            if low <= number and np.float32(number) < high:  # `ssd detect` compares scores in float32
                return number
    return low


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Square roots of the areas of boxes (k, 4); 0 for a box without area."""
    extents = np.nan_to_num(boxes[:, 2:] - boxes[:, :2], nan=0.0).clip(min=0)
    return np.sqrt(extents.prod(axis=1))
