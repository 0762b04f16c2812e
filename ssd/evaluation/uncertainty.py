"""How far the mAP would differ on other pictures of the same kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ssd.evaluation.voc import EvalResult

__all__ = ["describe", "interval"]

MOST_DRAWS, FEWEST_DRAWS = 1000, 200
WORK = 10**8  # draws times detections and objects; with more, fewer draws are made, so that it takes about a second
LEVEL = 0.95
BLOCK = 2**24  # numbers of a class that are in memory at once
FEW, FEW_OF_A_CLASS = 100, 50  # objects; with fewer, single objects change the mAP visibly


def interval(result: EvalResult, groups: Sequence[int] | np.ndarray | None = None) -> tuple[float, float] | None:
    """Estimates the interval in which the mAP lies that the same detector has on all pictures of this kind.

    As many pictures as there are are drawn from them with repetition, 200 to 1000 times, and the mAP of each draw is
    computed. The interval lies between its quantiles 0.025 and 0.975. The random numbers are always the same.

    Args:
        result: the result of `ssd.evaluation.voc.average_precision`.
        groups: for each of the N pictures the number of its group, from 0, such as the photograph of which it is a
            tile; groups are drawn instead of pictures. None: each picture is its own group.

    Returns:
        The lowest and the highest mAP, in 0..1; None for fewer than 2 groups, without objects, and for COCO's mAP.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (the percentile interval).
    """
    evidence = result.evidence
    if evidence is None or math.isnan(result.mAP):
        return None
    group_of = torch.arange(evidence.n_pictures) if groups is None else torch.as_tensor(np.asarray(groups))
    n = int(group_of.max()) + 1 if len(group_of) else 0
    if n < 2:
        return None
    rows = sum(len(hits) + len(truths) for (_, hits), truths in zip(evidence.detections, evidence.truths, strict=True))
    draws = max(FEWEST_DRAWS, min(MOST_DRAWS, WORK // (rows + n)))
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(draws, n).scatter_add_(1, drawn, torch.ones(draws, n))
    weights = times[:, group_of].T.contiguous()  # (N, draws): how often each picture was drawn
    total, counted = torch.zeros(draws, dtype=torch.float64), torch.zeros(draws)
    for (pictures, hits), truths in zip(evidence.detections, evidence.truths, strict=True):
        if not len(truths):
            continue
        step = max(1, BLOCK // (len(hits) + 1))
        parts = (_resampled(pictures, hits, truths, part, result.method) for part in weights.split(step, 1))
        ap, there = map(torch.cat, zip(*parts, strict=True))
        total += ap
        counted += there
    means = (total / counted)[counted > 0].numpy()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(
    pictures: np.ndarray, hits: np.ndarray, truths: np.ndarray, weights: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """The average precision of a class in several draws.

    Args:
        pictures, hits: (D,) the picture of each detection and whether it is a hit, by descending score.
        truths: (G,) the picture of each object.
        weights: (N, draws) how often each picture is in each draw.

    Returns:
        (draws,) float64 the AP, 0 without objects; and (draws,) bool, whether the draw has an object.
    """
    n_truths = weights[torch.from_numpy(truths)].sum(0)
    there = n_truths > 0
    rows = np.flatnonzero(hits)
    if not len(rows):
        return torch.zeros(len(there), dtype=torch.float64), there
    # A repeated picture gives equal detections that follow each other, and either all or none of them are hits. So the
    # curve has its highest points after a hit, and the false detections between two hits can be counted together.
    wrong = np.flatnonzero(~hits[: rows[-1]])
    starts = torch.from_numpy(np.searchsorted(wrong, rows)).roll(1)
    starts[0] = 0
    found = weights[torch.from_numpy(pictures[rows])]  # (K, draws)
    false = embedding_bag(torch.from_numpy(pictures[wrong]), weights, starts, mode="sum")
    recall = found.cumsum(0)
    precision = recall / (recall + false.cumsum_(0)).clamp_(min=1)
    highest = precision.flip(0).cummax(0).values.flip(0)
    if method == "area":
        ap = (found * highest).sum(0).double() / n_truths.clamp(min=1)
    else:
        recall /= n_truths.clamp(min=1)
        points = torch.arange(11, dtype=torch.float64)[None] / 10
        at = torch.searchsorted(recall.T.double().contiguous(), points.expand(recall.shape[1], 11).contiguous())
        ap = torch.cat([highest, torch.zeros_like(highest[:1])]).T.double().gather(1, at).mean(1)
    return torch.where(there, ap, 0.0), there


def describe(result: EvalResult, bounds: tuple[float, float] | None) -> str | None:
    """Says in a line how sure the mAP is, and whether there are few objects; None if nothing is known.

    Args:
        result: see `interval`.
        bounds: the result of `interval`.
    """
    line = ""
    if bounds is not None:
        low, high = bounds
        line = f"{result.title} {result.mAP:.3f}, on other pictures like these {low:.3f} to {high:.3f} (95 % interval)"
    counts = {name: n for name, n in result.n_truths.items() if n}
    rarest = min(counts, key=lambda name: counts[name], default=None)
    if rarest is None:
        return line or None
    few = []
    if counts[rarest] < FEW_OF_A_CLASS and len(counts) > 1:
        few.append(f"{counts[rarest]} of {rarest}")
    if (total := sum(counts.values())) < FEW:
        few.append(f"{total} in all")
    if few:
        line += f"{'; ' if line else ''}few objects ({', '.join(few)}), so small differences are chance"
    return line or None
