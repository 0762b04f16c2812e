"""What a run was trained on, in a few numbers: enough to notice, when it is resumed, that the data has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

Fingerprint = dict[str, Any]


def fingerprint(dataset: Dataset | None) -> Fingerprint:
    """Numbers of pictures and objects, and hashes of file names and boxes.

    Not of folders and pixels: the data may be moved, and a damaged picture replaced.

    Args:
        dataset: a `BoxDataset`, a `Subset` of one, or None, which has no pictures.
    """
    indices = range(0)
    if isinstance(dataset, Subset):
        dataset, indices = dataset.dataset, dataset.indices
    elif dataset is not None:
        indices = range(len(dataset))
    files, objects, n = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8), 0
    if indices:
        packed = dataset.objects
        rows = torch.cat([packed.columns["boxes"], packed.columns["labels"][:, None]], dim=1).numpy()
        ends = packed.row_splits.tolist()
    for i in indices:
        files.update(f"{dataset.pictures[i].name}\n".encode("utf-8", "surrogateescape"))
        objects.update(rows[ends[i] : ends[i + 1]].tobytes() + b"\n")
        n += ends[i + 1] - ends[i]
    return {"pictures": len(indices), "files": files.hexdigest(), "objects": n, "boxes": objects.hexdigest()}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What has changed from one fingerprint to another, in words, or None."""
    for number in ("pictures", "objects"):
        if before[number] != now[number]:
            return f"{now[number]} {number} instead of {before[number]}"
    if before["files"] != now["files"]:
        return "other pictures, or in another order"
    return "other boxes or classes" if before["boxes"] != now["boxes"] else None
