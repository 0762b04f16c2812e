"""What a finished run tells: how good it is, what is weakest, whether more epochs would help, its worst pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ssd.data.augmentation import EvalTransform
from ssd.data.reading import PictureFile
from ssd.detection import Found
from ssd.drawing import contact_sheet, draw_detections, save_png, side_by_side
from ssd.evaluation.evaluate import EvalResult, detect_all, score
from ssd.evaluation.voc import best_object
from ssd.inference.detector import SHOWN
from ssd.networks.ssd300 import SSD300
from ssd.runtime.processes import ALONE, Ranks
from ssd.training.settings import Settings
from ssd.training.splits import Sets

SHEET = "worst.png"
WORST = 6  # pictures on the sheet
LEARNT = 0.95  # mAP on pictures that were trained on, from which on little is left to learn
MEMORISED = 0.1  # what it may be ahead of that on other pictures


class Mistakes(NamedTuple):
    """What is wrong with the detections of one picture."""

    index: int  # of the picture
    missed: int  # objects that were not found
    wrong: int  # detections that found no object, or one that a better one had found


def report(
    model: SSD300, sets: Sets, settings: Settings, out: Path, *, workers: int, ranks: Ranks = ALONE
) -> tuple[str, EvalResult | None]:
    """Measures a trained network, and draws its worst pictures, those of the validation set, into the folder.

    Args:
        model: the network that is kept.
        sets, settings: of the run.
        out: where `worst.png` is written, if there is anything wrong to show.
        workers: processes that read pictures.
        ranks: processes that share the pictures; the first writes, and all return the same.

    Returns:
        the closing lines, and the result on the test set, if there is one.
    """
    measured = {"held out": sets.val, "test": sets.test}
    if sets.val is not None:
        measured["seen"] = _unaugmented(sets.train, len(sets.val), model.input_size)
    how = {"bf16": settings.bf16, "workers": workers, "quiet": True, "ranks": ranks}
    found = {name: detect_all(model, dataset, **how) for name, dataset in measured.items() if dataset is not None}
    return ranks.from_first(lambda: _tell(found, sets, out))


def _tell(found: dict[str, tuple[Any, Any]], sets: Sets, out: Path) -> tuple[str, EvalResult | None]:
    """The closing lines, of detections and truths by the name of the set."""
    results = {name: score(*pair, sets.classes) for name, pair in found.items()}
    lines, test, val = [], results.get("test"), results.get("held out")
    if val is not None:
        detections, truths = found["held out"]
        mistakes = sorted(find_mistakes(detections, truths), key=lambda m: -(m.missed + m.wrong))
        if drawn := _draw(sets, detections, truths, mistakes, out / SHEET):
            lines.append(f"{out / SHEET}: the {drawn} worst of {len(truths)} pictures held out, beside the truth")
        lines.append(advice(results["seen"].mAP, val.mAP))
    if test is not None:
        lines.insert(0, f"{sets.names['test_split']}, not looked at before:\n{test}")
    if weakest := _weakest(test or val):
        lines.append(weakest)
    return "\n".join(lines), test


def advice(seen: float, unseen: float) -> str:
    """Whether more epochs would help, from the mAP on pictures that were trained on and on those that were not."""
    if math.isnan(seen) or math.isnan(unseen):
        return "no objects held out: nothing tells whether more epochs would help"
    facts = f"mAP {seen:.3f} on pictures it trained on, {unseen:.3f} on those held out: "
    if seen - unseen > MEMORISED:
        return facts + "more pictures, or more varied ones, would help more than more epochs"
    if seen < LEARNT:
        return facts + "it has not learnt all of them yet, more epochs (--epochs) may help"
    return facts + "more epochs would change little"


def find_mistakes(detections: Sequence[Found], targets: Sequence[dict[str, Tensor]]) -> Iterator[Mistakes]:
    """Counts what is missed and wrong in every picture at the scores that are drawn and an IoU of 0.5.

    Args:
        detections, targets: see `ssd.evaluation.evaluate.score`; difficult objects count neither way.
    """
    for index, ((boxes, labels, scores), truth) in enumerate(zip(detections, targets, strict=True)):
        shown = (scores >= SHOWN.min_score) & (labels > 0)
        objects = truth["boxes"], truth["labels"].numpy()
        best = best_object(boxes[shown].double(), labels[shown].numpy(), objects[0].double(), objects[1], 0.5)
        difficult = truth["difficult"].numpy()
        counted = np.unique(best[best >= 0])
        n_found = int((~difficult[counted]).sum())
        n_ignored = int(difficult[best[best >= 0]].sum())
        yield Mistakes(index, int((~difficult).sum()) - n_found, len(best) - n_ignored - n_found)


def _draw(
    sets: Sets,
    detections: Sequence[Found],
    targets: Sequence[dict[str, Tensor]],
    mistakes: Sequence[Mistakes],
    path: Path,
) -> int:
    """The worst pictures, found beside truth; how many."""
    sheets = []
    for index, missed, wrong in [m for m in mistakes[:WORST] if m.missed + m.wrong]:
        data, place = (sets.val.dataset, sets.val.indices[index]) if isinstance(sets.val, Subset) else (sets.val, index)
        picture = PictureFile(data.pictures[place])
        pixels, size = picture.pixels(), (picture.width, picture.height)
        shown = detections[index].scores >= SHOWN.min_score
        found = Found(*(column[shown] for column in detections[index])).in_pixels(*size)
        truth = targets[index]["boxes"] * torch.tensor(size * 2), targets[index]["labels"]
        left, right = (draw_detections(pixels, *columns, classes=sets.classes) for columns in (found, truth))
        sheets.append(side_by_side(left, right, (f"{picture.path.name}: {missed} missed, {wrong} wrong", "truth")))
    if sheets:
        save_png(contact_sheet(sheets), path)
    return len(sheets)


def _unaugmented(train: Dataset, at_most: int, input_size: int) -> Dataset:
    """Some pictures of a training set, as a network sees them when it detects."""
    data, indices = (train.dataset, train.indices) if isinstance(train, Subset) else (train, range(len(train)))
    return Subset(data.view(EvalTransform(input_size)), indices[:: math.ceil(len(indices) / max(1, at_most))])


def _weakest(result: EvalResult | None) -> str | None:
    aps = {name: ap for name, ap in (result.ap if result else {}).items() if not math.isnan(ap)}
    if len(aps) < 2:
        return None
    name = min(aps, key=aps.get)
    return f"weakest class: {name} (AP {aps[name]:.3f}, {result.n_truths[name]} objects there)"
