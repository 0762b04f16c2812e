"""Writes the report of a data set: what is in it, how it looks, and what looks like a mistake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from ssd.data.dataset import BoxDataset
from ssd.data.duplicates import Looks, find_copies, look_at
from ssd.data.findings import KINDS, Finding, find_odd, summary, warnings
from ssd.data.members import text_of
from ssd.data.prior_fit import Fit
from ssd.reports import page
from ssd.runtime.text import printable

DATA_REPORT = "ssd info --report"  # the value of "made_by" in the JSON file
SHOWN_PICTURES = 36  # number of pictures in the gallery, unless more are needed to show every class
MOST_PICTURES = 60  # in the gallery; with very many classes, some are then not shown
ODD_SHARE = 0.5  # of the gallery: at most so many pictures are chosen because something about them looks odd
SHOWN_PLACES = 16  # boxes and pictures of each kind of finding that the page shows
SHOWN_GROUPS = 16  # groups of equal pictures that the page shows
LISTED = 20  # lines of a list on the page
SHOWN_BOXES = 300  # maximum number of boxes that are drawn in a picture
SIDE, SMALL_SIDE = 400, 240  # the longer sides in pixels of pictures in the gallery, and of all others
BINS_PER_DOUBLING = 2  # of the sizes: the side doubles in so many bins


class DataOrigin(NamedTuple):
    """Where the data of a report comes from, and what was decided about it."""

    command: str  # the command that writes the report again
    data: Sequence[str]  # paths of the data
    network: str  # the network that training would choose
    layout: str  # the layout of its priors, a key of `Fit.alone`
    notes: Sequence[str]  # why this network was chosen, and what else a user should know


def check_data_report(path: str | PathLike[str]) -> None:
    """Checks that a report can be written, before the data is read.

    Raises:
        ValueError, OSError: see `ssd.reports.page.check_paths`.
    """
    page.check_paths(path, DATA_REPORT)


def write_data_report(
    path: str | PathLike[str], dataset: BoxDataset, splits: Mapping[str, BoxDataset], fit: Fit, origin: DataOrigin
) -> None:
    """Writes the report of a data set. Each file appears, or replaces an older one, only when it is complete.

    All pictures are decoded once, at a low resolution. Those that cannot be read are listed.

    Args:
        path: the HTML file to write, in an existing folder. A file with the suffix .json is written beside it.
        dataset: all pictures of the data, whatever their split.
        splits: the splits that training would use, by name; empty if there are none.
        fit: how the priors of the network fit the objects.
        origin: where the data comes from.

    Raises:
        ValueError, OSError: see `ssd.reports.page.check_paths`; also if the disk is full.
    """
    check_data_report(path)
    path = Path(path)
    looks = look_at(dataset.pictures, dataset.levels)
    odd = find_odd(dataset)
    places = _splits_of(splits)
    duplicates = _duplicates(dataset, looks, places)
    chosen, hidden = _choose(dataset, odd, looks)
    numbers = page.known(
        {
            **page.head(DATA_REPORT, origin.command),
            "versions": page.versions(),
            "data": list(origin.data),
            "format": dataset.FORMAT,
            "summary": summary(dataset),
            "n_pictures": len(dataset),
            "n_objects": sum(dataset.counts.values()),
            "splits": [_describe_split(name, part) for name, part in splits.items()],
            "network": {"name": origin.network, "size": fit.input_size, "priors": origin.layout},
            "classes": _classes(dataset, splits, fit, origin.layout),
            "without_prior": {name: _share(alone) for name, alone in fit.alone.items()},
            "notes": [*origin.notes, *dataset.notes],
            "warnings": list(warnings(dataset)),
            "findings": [_describe(finding, dataset) for finding in odd],
            "duplicates": [
                {
                    "files": [str(dataset.pictures[i]) for i in group["pictures"]],
                    "equal_bytes": group["equal"],
                    "splits": group["splits"],
                }
                for group in duplicates
            ],
            "left_out": [
                {"file": str(d.path), "index": d.index, "class": d.name, "box": list(d.box), "reason": d.reason}
                for d in dataset.dropped
            ],
            "unreadable": [
                *({"file": file, "error": error} for file, error in dataset.unreadable),
                *({"file": str(dataset.pictures[i]), "error": error} for i, error in looks.unreadable.items()),
            ],
            "not_shown": [dataset.classes[label - 1] for label in hidden],
        }
    )
    objects = dataset.objects
    html = page.render(
        "reports/data.html.jinja",
        **numbers,
        embedded={"classes": [{"name": row["name"]} for row in numbers["classes"]]},
        title=", ".join(printable(PurePath(name).name or name) for name in origin.data),
        json_name=printable(path.with_suffix(".json").name),
        names=["", *map(printable, dataset.classes)],
        rules=KINDS,
        plots=_plots(fit, dataset.classes, origin.layout),
        dropped=list(map(str, dataset.dropped[:LISTED])),
        listed=LISTED,
        gallery=[_picture(i, dataset, objects[i], odd) for i in chosen],
        odd=[_pictures_of(finding, dataset) for finding in odd],
        groups=[_group(group, dataset, places) for group in duplicates[:SHOWN_GROUPS]],
    )
    page.write(path, html, numbers)


def _splits_of(splits: Mapping[str, BoxDataset]) -> dict[str, list[str]]:
    """The names of the splits that each picture is in, by `text_of` the picture."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, part in splits.items():
        for picture in dict.fromkeys(part.pictures.texts()):
            places[picture].append(name)
    return places


def _describe_split(name: str, part: BoxDataset) -> dict[str, Any]:
    return {"name": name, "n_pictures": len(part), "n_objects": sum(part.counts.values())}


def _share(flags: Any) -> float | None:
    """The share of True in a bool tensor; None if it is empty."""
    return float(flags.float().mean()) if len(flags) else None


def _classes(dataset: BoxDataset, splits: Mapping[str, BoxDataset], fit: Fit, layout: str) -> list[dict[str, Any]]:
    """For each class, its numbers of objects and pictures, its sizes, and how the priors fit."""
    labels = dataset.objects.columns["labels"].numpy()
    picture_of = np.arange(len(dataset)).repeat(dataset.objects.counts.numpy())
    both = np.unique(np.stack([labels, picture_of]), axis=1)[0]
    n_pictures = np.bincount(both, minlength=len(dataset.classes) + 1)
    rows = []
    for label, (name, n) in enumerate(dataset.counts.items(), 1):
        its = fit.labels == label
        low, median, high = fit.quantiles(its) if its.any() else (None, None, None)
        rows.append(
            {
                "name": name,
                "n_objects": n,
                "n_pictures": n_pictures[label],
                "splits": {split: part.counts.get(name, 0) for split, part in splits.items()},
                "side": {"low": low, "median": median, "high": high},
                "without_prior": _share(fit.alone[layout][its]),
            }
        )
    return rows


def _describe(finding: Finding, dataset: BoxDataset) -> dict[str, Any]:
    """A finding as the JSON file has it, with boxes in pixels."""
    sizes = np.tile(dataset.sizes.numpy()[finding.pictures], 2)
    names = [None, *dataset.classes]
    boxes = (finding.boxes * sizes).round(2)
    columns = finding.labels, finding.indices, finding.others, finding.other_indices
    rows = zip(finding.pictures.tolist(), boxes.tolist(), *(column.tolist() for column in columns), strict=True)
    places = [
        {
            "file": str(dataset.pictures[i]),
            "annotation": str(dataset.files[i]),
            "index": index if label else None,
            "class": names[label],
            "box": box if label else None,
            "other_index": other_index if other else None,
            "other_class": names[other],
        }
        for i, box, label, index, other, other_index in rows
    ]
    return {"kind": finding.kind, "rule": KINDS[finding.kind], "count": len(places), "places": places}


def _duplicates(dataset: BoxDataset, looks: Looks, places: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Groups of equal pictures, and pictures in two splits; groups that are in two splits come first."""
    texts = list(dataset.pictures.texts())
    groups = [copies._asdict() for copies in find_copies(dataset.pictures, looks)]
    grouped = {i for group in groups for i in group["pictures"]}
    groups += [
        {"pictures": [i], "equal": True}
        for i, text in enumerate(texts)
        if len(places.get(text, ())) > 1 and i not in grouped
    ]
    for group in groups:
        group["splits"] = sorted({name for i in group["pictures"] for name in places.get(texts[i], ())})
    return sorted(groups, key=lambda group: (len(group["splits"]) < 2, not group["equal"]))


def _choose(dataset: BoxDataset, odd: Sequence[Finding], looks: Looks) -> tuple[list[int], list[int]]:
    """Chooses the pictures of the gallery: odd ones, then those that show the other classes, then evenly spaced ones.

    Returns:
        The indices of the pictures, and the labels of the classes with objects that none of them shows.
    """
    counts: np.ndarray = np.zeros(len(dataset), np.int64)
    for finding in odd:
        if not np.isnan(finding.boxes).any():  # pictures without objects show nothing
            np.add.at(counts, finding.pictures, 1)
    readable = [i for i in range(len(dataset)) if i not in looks.unreadable]
    order = sorted((i for i in readable if counts[i]), key=lambda i: -counts[i])
    chosen = dict.fromkeys(order[: round(ODD_SHARE * SHOWN_PICTURES)])
    objects = dataset.objects
    splits, labels = objects.row_splits.tolist(), objects.columns["labels"].numpy()
    shown = {i: set(labels[splits[i] : splits[i + 1]].tolist()) for i in readable}
    missing = set().union(*shown.values()).difference(*(shown[i] for i in chosen))
    pictures_with: dict[int, list[int]] = defaultdict(list)
    for i, its in shown.items():
        for label in its & missing:
            pictures_with[label].append(i)
    for label in sorted(missing, key=lambda label: len(pictures_with[label])):  # the rarest class first
        if label in missing and len(chosen) < MOST_PICTURES:
            best = max(pictures_with[label], key=lambda i: len(shown[i] & missing))
            chosen[best] = None
            missing -= shown[best]
    others = [i for i in readable if i not in chosen and shown[i]]
    wanted = min(len(others), max(0, SHOWN_PICTURES - len(chosen)))
    chosen |= dict.fromkeys(others[int(k)] for k in np.linspace(0, len(others) - 1, wanted))
    return list(chosen), sorted(missing)


def _drawing(index: int, dataset: BoxDataset, side: int, boxes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A picture with boxes, for the template. Each box is in fractions of the picture."""
    picture, file = dataset.picture(index), dataset.pictures[index]
    width, height = picture.width, picture.height
    size = page.within((width, height), side)
    return {
        "file": page.short(file),
        "size": size,
        "pixels": (width, height),
        "image": page.thumbnail(picture, size),
        "boxes": [{**box, "box": page.drawn(box["box"], size)} for box in boxes],
    }


def _picture(index: int, dataset: BoxDataset, objects: Mapping[str, Any], odd: Sequence[Finding]) -> dict[str, Any]:
    """A picture of the gallery, with all its boxes and the kinds of what looks odd about it."""
    columns = zip(objects["labels"].tolist(), objects["boxes"].double().numpy(), strict=True)
    boxes = [{"label": label, "box": box} for label, box in columns][:SHOWN_BOXES]
    drawing = _drawing(index, dataset, SIDE, boxes)
    drawing["kinds"] = [finding.kind for finding in odd if index in finding.pictures]
    return drawing


def _pictures_of(finding: Finding, dataset: BoxDataset) -> dict[str, Any]:
    """The first places of a finding, for the template."""
    drawings = []
    columns = zip(
        finding.pictures.tolist(), finding.boxes, finding.labels.tolist(), finding.others.tolist(), strict=True
    )
    for index, box, label, other in list(columns)[:SHOWN_PLACES]:
        boxes = [{"label": label, "other": other, "box": box}] if label else []
        drawings.append(_drawing(index, dataset, SMALL_SIDE, boxes))
    return {"kind": finding.kind, "count": len(finding.pictures), "pictures": drawings}


def _group(group: Mapping[str, Any], dataset: BoxDataset, places: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Two pictures of a group of equal ones, of different splits if possible, for the template."""
    first, *others = group["pictures"]
    of = {i: list(places.get(text_of(dataset.pictures[i]), ())) for i in group["pictures"]}
    apart = [i for i in others if of[i] != of[first]] or others
    shown = [first, *apart[:1]]
    drawings = [{**_drawing(i, dataset, SMALL_SIDE, []), "splits": of[i]} for i in shown]
    return {**group, "shown": drawings, "n": len(group["pictures"])}


def _plots(fit: Fit, classes: Sequence[str], layout: str) -> list[dict[str, Any]]:
    """For each class with objects, the columns of a histogram of the sides, in a square of 100 x 100."""
    if not len(fit.sides):
        return []
    places = np.floor(np.log2(fit.sides.numpy().clip(1)) * BINS_PER_DOUBLING).astype(int)
    low, n = int(places.min()), int(places.max()) - int(places.min()) + 1
    edges = 2 ** ((low + np.arange(n + 1)) / BINS_PER_DOUBLING)
    labels, alone = fit.labels.numpy(), fit.alone[layout].numpy()
    plots = []
    for label, name in enumerate(classes, 1):
        its = labels == label
        if its.any():
            with_prior, without = (np.bincount(places[its & flags] - low, minlength=n) for flags in (~alone, alone))
            most = (with_prior + without).max()
            columns = [
                {
                    "x": 100 * k / n,
                    "width": 100 / n,
                    "fit": 100 * with_prior[k] / most,
                    "alone": 100 * without[k] / most,
                    "text": f"{edges[k]:.0f} to {edges[k + 1]:.0f} pixels: {with_prior[k] + without[k]} objects, "
                    f"{without[k]} without a prior",
                }
                for k in range(n)
                if with_prior[k] + without[k]
            ]
            ticks = [{"x": 100 * k / n, "text": f"{edges[k]:.0f}"} for k in _ticks(low, n)]
            plots.append({"name": printable(name), "label": label, "columns": columns, "ticks": ticks})
    return plots


def _ticks(low: int, n: int) -> list[int]:
    """The bins of an axis that begin at a power of 2, at most five of them."""
    whole = [k for k in range(n + 1) if (low + k) % BINS_PER_DOUBLING == 0]
    return whole[:: -(-len(whole) // 5)]
