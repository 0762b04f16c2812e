"""Fingerprints of data sets, from which a resumed run notices that its data has changed."""

import hashlib
from collections.abc import Mapping

import torch

from ssd.training.splits import Pictures, whole_of

Fingerprint = dict[str, int | str]


def fingerprint(dataset: Pictures | None) -> Fingerprint:
    """Counts the pictures and objects of a data set, and hashes file names and boxes.

    With tiles, the file names are those of all pictures, whether a tile of them is used or not, so they do not depend
    on labels. Folders and pixels are not part of it: the data may be moved, and a damaged picture may be replaced.

    Args:
        dataset: a data set or a part of one; None counts as a data set without pictures.

    Returns:
        "pictures" and "objects", the numbers; "files" and "boxes", the hashes as hexadecimal text.
    """
    files, objects, n_pictures, n_objects = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8), 0, 0
    if dataset is not None:
        whole, indices = whole_of(dataset)
        packed = whole.objects
        rows = torch.cat([packed.columns["boxes"], packed.columns["labels"][:, None]], dim=1).numpy()
        ends = packed.row_splits.tolist()
        n_pictures = len(indices)
        # Which tiles are used depends on the labels, and so does whether a picture has any.
        for picture in whole.cut_from or (whole.pictures[i] for i in indices):
            files.update(f"{picture.name}\n".encode("utf-8", "surrogateescape"))
        for i in indices:
            objects.update(rows[ends[i] : ends[i + 1]].tobytes() + b"\n")
            n_objects += ends[i + 1] - ends[i]
    return {"pictures": n_pictures, "files": files.hexdigest(), "objects": n_objects, "boxes": objects.hexdigest()}


def difference(before: Mapping[str, int | str], now: Mapping[str, int | str]) -> str | None:
    """Describes what has changed from one fingerprint to another; None if nothing has changed."""
    for number in ("pictures", "objects"):
        if before[number] != now[number]:
            return f"{now[number]} {number} instead of {before[number]}"
    if before["files"] != now["files"]:
        return "other pictures, or another order of the pictures"
    return "other boxes or classes" if before["boxes"] != now["boxes"] else None
