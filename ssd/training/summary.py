"""The report at the end of a run: the test result, the weakest class, advice on more epochs, the worst pictures."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ssd.data.augmentation import EvalTransform
from ssd.detection import Found
from ssd.drawing import contact_sheet, draw_detections, save_png, side_by_side
from ssd.evaluation.evaluate import EvalResult, detect_all
from ssd.evaluation.matching import match
from ssd.evaluation.mistakes import count_by_picture
from ssd.evaluation.report import Origin, write_report
from ssd.evaluation.uncertainty import describe, interval
from ssd.evaluation.voc import average_precision
from ssd.inference.detector import SHOWN
from ssd.networks import Network
from ssd.runtime.processes import ALONE, Ranks
from ssd.training.progress import NOTHING_LEARNT, History, learns_nothing
from ssd.training.settings import Settings
from ssd.training.splits import Pictures, Sets, whole_of
from ssd_ext import DetectionOptions

REPORT, REPORT_NUMBERS, SHEET = "report.html", "report.json", "worst.png"
WORST = 6  # number of pictures on the sheet
LEARNT = 0.95  # with this mAP on training pictures, or a higher one, little is left to learn
# Difference between mAP on training pictures and mAP on pictures held out. If it is larger, the network has memorised
# the training pictures.
MEMORISED = 0.1


class Closing(NamedTuple):
    """The result of `report`."""

    text: str  # its lines
    test: EvalResult | None  # the result on the test set, if there is one
    mAP_interval: tuple[float, float] | None  # of the test set or else the pictures held out, see `interval`


Detected = tuple[Sequence[Found], Sequence[Mapping[str, Tensor]]]  # detections and targets, see `detect_all`


def report(
    model: Network,
    sets: Sets,
    settings: Settings,
    weights: Path,
    *,
    workers: int,
    ranks: Ranks = ALONE,
    history: History | None = None,
) -> Closing:
    """Measures a trained network, and draws the validation pictures with the most mistakes.

    Writes into the folder of the weights: `report.html` and `report.json`, about the test set or, if there is none, the
    pictures held out; and `worst.png`, if there are mistakes in the pictures held out.

    Args:
        model: the network.
        sets: the pictures of the run.
        settings: the settings of the run; `bf16` and `data` are used.
        weights: the file with the network.
        workers: number of processes that read pictures.
        ranks: processes that share the pictures. The first one writes; all return the same.
        history: the history of the run, whose curves `report.html` shows.
    """
    measured: dict[str, Pictures | None] = {"held out": sets.val, "test": sets.test}
    if sets.val is not None:
        measured["seen"] = _unaugmented(sets.train, len(sets.val), model.input_size)
    found: dict[str, Detected] = {
        name: detect_all(model, pictures, bf16=settings.bf16, workers=workers, quiet=True, ranks=ranks)
        for name, pictures in measured.items()
        if pictures is not None
    }
    return ranks.from_first(lambda: _describe(found, sets, settings, weights, history))


def _describe(
    found: Mapping[str, Detected], sets: Sets, settings: Settings, weights: Path, history: History | None
) -> Closing:
    """The report, from the detections in each set, "held out", "test" and "seen"."""
    results = {name: average_precision(*pair, sets.classes) for name, pair in found.items()}
    lines: list[str] = []
    out = weights.parent
    mAP_interval = None
    if unseen := next((name for name in ("test", "held out") if name in results), None):
        pictures, indices = whole_of(_reported(sets))
        mAP_interval = interval(results[unseen], pictures.groups[list(indices)])
        if line := describe(results[unseen], mAP_interval):
            lines.append(line)
        lines.append(_write(results[unseen], found[unseen], sets, settings, weights, history))
    test, val = results.get("test"), results.get("held out")
    if sets.val is not None and val is not None:
        detections, truths = found["held out"]
        if drawn := _draw(sets.val, sets.classes, detections, truths, out / SHEET):
            lines.append(f"{out / SHEET}: the {drawn} worst of {len(truths)} pictures held out, beside the truth")
        nothing = history is not None and learns_nothing(history)
        lines.append(NOTHING_LEARNT if nothing else advice(results["seen"].mAP, val.mAP, bool(settings.mosaic)))
    if test is not None:
        lines.insert(0, f"result on the split {sets.names['test_split']}, which is measured once:\n{test}")
    if weakest := _weakest(test or val):
        lines.append(weakest)
    return Closing("\n".join(lines), test, mAP_interval)


def _reported(sets: Sets) -> Pictures:
    """The pictures that the report is about: those of the test set or else those held out."""
    pictures = sets.val if sets.test is None else sets.test
    assert pictures is not None
    return pictures


def advice(seen: float, unseen: float, mosaics: bool) -> str:
    """Says in a sentence whether more epochs would help.

    Args:
        seen: mAP on training pictures, in 0..1 or NaN.
        unseen: mAP on pictures that were held out, in 0..1 or NaN.
        mosaics: whether some of the training samples were mosaics.
    """
    if math.isnan(seen) or math.isnan(unseen):
        return "no objects were held out, so it is unknown whether more epochs would help"
    facts = f"mAP {seen:.3f} on training pictures, {unseen:.3f} on those held out: "
    if seen - unseen > MEMORISED:
        varied = "more varied ones" if mosaics else "more varied samples (--mosaic 0.5, if objects are large)"
        return facts + f"more pictures, or {varied}, would help more than more epochs"
    if seen < LEARNT:
        return facts + "the network has not learnt all training pictures yet; a new run with more --epochs may help"
    return facts + "more epochs would change little"


def _write(
    result: EvalResult, found: Detected, sets: Sets, settings: Settings, weights: Path, history: History | None
) -> str:
    """Writes the report about the test set or else the pictures held out; returns a line that says where it is."""
    path, pictures = weights.with_name(REPORT), _reported(sets)
    if sets.test is not None:
        data, split = settings.data, sets.names["test_split"]
    else:
        data, split = settings.val_data or settings.data, sets.names["val_split"]
    chosen = ["--split", split] if split else []  # without a split, `ssd eval` takes those that were held out
    if settings.tiles:  # it measures the merged detections of whole pictures, and not those of each tile
        chosen += ["--tiles", str(settings.tiles), "--overlap", str(settings.overlap)]
    if settings.bf16 is not None:
        chosen.append("--bf16" if settings.bf16 else "--no-bf16")
    command = shlex.join(["ssd", "eval", *data, "--weights", str(weights), *chosen, "--report", str(path)])
    whole, indices = whole_of(pictures)
    what = "tiles" if settings.tiles else "pictures"
    part = f"split {split}" if split else f"the {len(indices)} {what} that were held out of training"
    part += f", in tiles of {settings.tiles} pixels" if settings.tiles else ""
    origin = Origin(command, data, part, str(weights), DetectionOptions())
    write_report(path, result, *found, whole.part(indices), sets.classes, origin, history=history)
    return f"{path}: the report on {part}, for a browser"


def _draw(
    pictures: Pictures,
    classes: Sequence[str],
    detections: Sequence[Found],
    targets: Sequence[Mapping[str, Tensor]],
    path: Path,
) -> int:
    """Draws the pictures with the most mistakes, detections beside truth, and returns their number.

    Only detections that are drawn count: those with a score above `SHOWN.min_score`.
    """
    dataset, indices = whole_of(pictures)
    missed, wrong = count_by_picture(match(detections, targets, len(classes) + 1), SHOWN.min_score)
    sheets = []
    for index in np.argsort(-(missed + wrong), kind="stable")[:WORST].tolist():
        if not missed[index] + wrong[index]:
            break
        file = dataset.pictures[indices[index]]
        picture = dataset.picture(indices[index])
        pixels, size = picture.pixels(), (picture.width, picture.height)
        shown = detections[index].scores > SHOWN.min_score
        found = Found(*(column[shown] for column in detections[index])).in_pixels(*size)
        truth = targets[index]["boxes"] * torch.tensor(size * 2), targets[index]["labels"]
        left, right = (draw_detections(pixels, *columns, classes=classes) for columns in (found, truth))
        sheets.append(
            side_by_side(left, right, (f"{file.name}: {missed[index]} missed, {wrong[index]} wrong", "truth"))
        )
    if sheets:
        save_png(contact_sheet(sheets), path)
    return len(sheets)


def _unaugmented(train: Pictures, at_most: int, input_size: int) -> Pictures:
    """Selects at most `at_most` pictures of a training set, without augmentation."""
    dataset, indices = whole_of(train)
    return Subset(dataset.view(EvalTransform(input_size)), indices[:: math.ceil(len(indices) / max(1, at_most))])


def _weakest(result: EvalResult | None) -> str | None:
    if result is None:
        return None
    aps = {name: ap for name, ap in result.ap.items() if not math.isnan(ap)}
    if len(aps) < 2:
        return None
    name = min(aps, key=lambda name: aps[name])
    return f"weakest class: {name} (AP {aps[name]:.3f}, measured on {result.n_truths[name]} objects)"
