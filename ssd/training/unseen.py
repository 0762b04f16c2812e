"""Finds the pictures of a data set that a network was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Subset

from ssd.data import BoxDataset
from ssd.data.archives import folders_of
from ssd.options import ReadOptions
from ssd.runtime.remote import absolute
from ssd.training.fingerprint import fingerprint
from ssd.training.settings import Settings
from ssd.training.splits import Pictures, held_out_pictures, tiles_of

Opener = Callable[[str | None, ReadOptions], BoxDataset]  # from a split or None and options to the pictures
UNKNOWN = "whether some of them were trained on is not known"


def _has_its_pictures(checkpoint: Mapping[str, Any], run: Settings, opened: Opener) -> bool:
    """Whether a data set at another place is that of the run, which was moved or converted.

    It is known by the names of the pictures that were trained on, and by the number of their objects.
    """
    known = checkpoint.get("fingerprints", {}).get("training", {})
    if run.val_data is not None:
        return False
    try:
        whole = opened(run.split, run.reading)
    except (FileNotFoundError, ValueError):  # no such split
        return False
    parts: list[Pictures] = [whole]
    if run.held_out and len(whole) > 1:
        held_out = held_out_pictures(len(whole), run.held_out, run.seed)
        parts.append(Subset(whole, sorted(set(range(len(whole))).difference(held_out))))
    prints = [fingerprint(tiles_of(part, run)) for part in parts]
    return any(all(its[key] == known.get(key) for key in ("files", "objects")) for its in prints)


def _places(data: Sequence[str]) -> set[str]:
    """The absolute paths of folders and archives. A folder of archives counts as these."""
    try:
        return {name for root in data for folder in folders_of(root) for name in folder.names[1:]}
    except (OSError, ValueError):  # the data of the run may not be there any more
        return set(map(absolute, data))


def open_unseen(
    checkpoint: Mapping[str, Any],
    data: Sequence[str],
    opened: Opener,
    split: str | None = None,
) -> tuple[BoxDataset, str]:
    """Opens the pictures of a data set that a network was not trained on, as far as its checkpoint tells.

    Args:
        checkpoint: see `ssd.weights.checkpoint.load_checkpoint`; also one that `ssd train` did not write.
        data: the folders of the data set.
        opened: opens a split of it, or all pictures for None; the second argument has the options of the run, or the
            default ones for other data.
        split: the split to open instead, whatever the network was trained on.

    Returns:
        The pictures, and a line that says which ones they are; "" if `split` chose them, or if `ssd train` did not
        write the checkpoint.
    """
    if "settings" not in checkpoint:
        return opened(split, ReadOptions()), ""
    run = Settings.from_dict(checkpoint["settings"])
    if set(map(absolute, data)) != set(run.data) and (asked := _places(data)) != (trained := _places(run.data)):
        validation = _places(run.val_data or ())
        if asked & trained or asked & validation or not _has_its_pictures(checkpoint, run, opened):
            pictures = opened(split, run.reading if asked <= trained | validation else ReadOptions())
            if asked & trained:
                line = "some of these pictures may have been trained on: the data of the run overlaps with these"
            elif asked <= validation:
                line = "measured on the validation data of the run, which was not trained on"
            else:
                line = f"measured on all {len(pictures)} pictures; {UNKNOWN}"
            return pictures, line if split is None else ""
    if split is not None:
        return opened(split, run.reading), ""
    return _not_trained_on(checkpoint, run, opened)


def _not_trained_on(checkpoint: Mapping[str, Any], run: Settings, opened: Opener) -> tuple[BoxDataset, str]:
    """Opens the pictures of the data of a run that it did not train on, see `open_unseen`."""
    if run.test_split:
        try:
            return opened(
                run.test_split, run.reading
            ), f"measured on the split {run.test_split}, which was not used for training"
        except (FileNotFoundError, ValueError):  # the test split of a competition has no annotations
            pass
    if run.val_split and run.val_data is None:
        return opened(run.val_split, run.reading), f"measured on the split {run.val_split}, which was not trained on"
    whole = opened(run.split, run.reading)
    if not run.held_out or run.val_data is not None or len(whole) == 1:
        return whole, f"measured on {len(whole)} pictures, all of which were trained on"
    part = whole.part(held_out_pictures(len(whole), run.held_out, run.seed))
    if fingerprint(part)["files"] != checkpoint.get("fingerprints", {}).get("validation", {}).get("files"):
        return whole, f"measured on {len(whole)} pictures, most of which were trained on"
    return part, f"measured on the {len(part)} pictures that were held out of training"
