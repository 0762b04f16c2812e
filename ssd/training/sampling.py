"""Repeat factor sampling: pictures of rare classes are seen several times in an epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd.data.loader import epoch_length
from ssd.runtime.packed import Packed
from ssd.training.splits import Pictures, objects_of


def repeat_factors(objects: Packed[dict[str, Tensor]], threshold: float) -> tuple[Tensor, dict[int, float]]:
    """Computes how often each picture is seen in an epoch.

    The factor of a class with the share f of pictures is max(1, sqrt(threshold / f)). That of a picture is the largest
    factor of its classes, or 1 without objects.

    Args:
        objects: the objects of N pictures, with "labels" (G,) int64 in 1..C-1.
        threshold: share of the pictures, in 0..1, below which a class is rare.

    Returns:
        The factors of the pictures, (N,) float64, at least 1; and the share of pictures of each rare class.

    Source: Gupta et al., LVIS, arXiv 1908.03195, section 4.1; Mahajan et al., Exploring the Limits of Weakly Supervised
    Pretraining, arXiv 1805.00932.
    """
    labels, counts = objects.columns["labels"], objects.counts
    n, n_classes = len(counts), int(labels.max()) + 1 if len(labels) else 1
    image = torch.arange(n).repeat_interleave(counts)
    pairs = (image * n_classes + labels).unique()  # a class counts once in a picture
    share = (pairs % n_classes).bincount(minlength=n_classes).double() / n
    factor = (threshold / share).sqrt().clamp(min=1.0)
    factors = torch.ones(n, dtype=torch.float64).scatter_reduce(0, image, factor[labels], "amax")
    rare = ((factor > 1) & (share > 0)).nonzero().flatten().tolist()
    return factors, {label: float(share[label]) for label in rare}


def repeats_of(pictures: Pictures, classes: Sequence[str], threshold: float) -> tuple[Tensor, str]:
    """Computes how often each training picture is seen in an epoch.

    Args:
        pictures: the N training pictures.
        classes: names of the C-1 classes.
        threshold: see `repeat_factors`.

    Returns:
        The factors of the pictures, see `repeat_factors`, and a line that says what follows from them.
    """
    repeats, rare = repeat_factors(objects_of(pictures), threshold)
    names = ", ".join(f"{classes[label - 1]} ({share:.2%})" for label, share in rare.items())
    return repeats, (
        f"an epoch has {epoch_length(len(repeats), repeats)} pictures instead of {len(repeats)}: those of rare classes "
        f"are repeated, up to {repeats.max():.1f} times; classes in less than {threshold:.2%} of the pictures: "
        f"{names or 'none'}"
    )
