"""Test data that finds mistakes: exact ties, values at the threshold, and whatever else a float can hold.

Every function returns CPU tensors and gives the same ones for the same arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NAN, INF = math.nan, math.inf

#: Around one and two warps, and none at all.
SIZES = (0, 1, 31, 32, 33, 63, 64, 65)

#: Priors of SSD300.
N_PRIORS = 8732

#: Objects of each image: where the empty images are is what an indexing mistake depends on.
BATCHES = {
    "no images": (),
    "one image": (3,),
    "all empty": (0, 0, 0),
    "first empty": (0, 3, 2),
    "middle empty": (2, 0, 0, 3),
    "last empty": (2, 3, 0),
    "crowded": (1, 40, 2),
}

#: Pairs of boxes and their IoU, which float16 to float64 represent exactly.
AT_THRESHOLD = (
    ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), 0.5),
    ((0.0, 0.0, 1.0, 1.0), (0.5, 0.0, 1.0, 0.5), 0.25),
    ((0.0, 0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 1.0), 0.75),
    ((-1.0, -1.0, 0.0, 0.0), (-1.0, -1.0, 0.0, 0.0), 1.0),
    ((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 2.0, 1.0), 0.125),
)

#: Boxes that have IoU 0 with everything.
NOT_BOXES = (
    (0.5, 0.5, 0.5, 0.5),  # a point
    (0.25, 0.0, 0.25, 1.0),  # a line
    (0.75, 0.25, 0.25, 0.75),  # inverted in x
    (0.25, 0.75, 0.75, 0.25),  # inverted in y
    (0.75, 0.75, 0.25, 0.25),  # inverted in both: its area is positive
    (NAN, 0.0, 1.0, 1.0),
    (0.0, NAN, 1.0, 1.0),
    (0.0, 0.0, NAN, 1.0),
    (0.0, 0.0, 1.0, NAN),
    (NAN, NAN, NAN, NAN),
    (0.0, 0.0, INF, 1.0),
    (-INF, 0.0, 1.0, 1.0),
    (-INF, -INF, INF, INF),
    (INF, INF, INF, INF),
    (0.0, 0.0, INF, 0.0),  # infinity * 0
    (-3e38, -3e38, 3e38, 3e38),  # the area overflows in float32
)

#: Boxes, but at the edge of the number range.
ODD_BOXES = (
    (0.0, 0.0, 1.0, 1.0),
    (-1.0, -2.0, 3.0, 4.0),
    (-0.0, -0.0, 1.0, 1.0),
    (0.0, 0.0, 1e-18, 1e-18),  # a small area
    (0.0, 0.0, 1e-22, 1e-22),  # a subnormal area
    (0.0, 0.0, 1e-30, 1e-30),  # an area that vanishes in float32
    (0.0, 0.0, 1e18, 1e18),
    (1.0, 0.0, 2.0, 1.0),  # shares a side with the unit box, and nothing more
)

ODD_VALUES = (NAN, INF, -INF, 0.0, -0.0, 1.0, 1.0, -1.0, 1e-45, 3e38)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid_boxes(n: int, seed: int = 0, cells: int = 16) -> Tensor:
    """(n, 4) xyxy in [0, 1] on a 1/cells grid: exact areas; with few cells many IoUs and boxes are equal."""
    g = generator(seed)
    corners = torch.rand(n, 2, cells + 1, generator=g).argsort(dim=-1)[..., :2].sort(dim=-1).values  # (n, xy, two)
    return corners.transpose(1, 2).reshape(n, 4) / cells


def random_boxes(n: int, seed: int = 0) -> Tensor:
    """(n, 4) xyxy around [0, 1], sizes 0.02 to 0.42, no two alike."""
    g = generator(seed)
    centre, size = torch.rand(n, 2, generator=g), torch.rand(n, 2, generator=g) * 0.4 + 0.02
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def hostile_boxes(n: int, seed: int = 0) -> Tensor:
    """(n, 4): boxes on a coarse grid, every third replaced by one of NOT_BOXES or ODD_BOXES."""
    g = generator(seed)
    odd = torch.tensor(NOT_BOXES + ODD_BOXES)
    chosen = odd[torch.randint(len(odd), (n,), generator=g)]
    return torch.where(torch.rand(n, 1, generator=g) < 1 / 3, chosen, grid_boxes(n, seed, cells=4))


def to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Centre and size; exact for boxes on a grid, which a decoding then gives back exactly."""
    low, high = boxes_xyxy.split(2, dim=-1)
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def hostile_values(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Scores or losses: a third ODD_VALUES, a third few different numbers, a third random ones."""
    g = generator(seed)
    odd = torch.tensor(ODD_VALUES)[torch.randint(len(ODD_VALUES), shape, generator=g)]
    tied = torch.randint(-2, 3, shape, generator=g) / 4
    kind = torch.randint(3, shape, generator=g)
    return torch.where(kind == 0, odd, torch.where(kind == 1, tied, torch.randn(shape, generator=g)))


def pack(counts: tuple[int, ...]) -> Tensor:
    """(B + 1,) int32, the row splits of images with so many objects each."""
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def sliced(tensor: Tensor) -> Tensor:
    """The same values, neither contiguous nor at the start of their storage, with NaN or -77 all around."""
    filler = NAN if tensor.is_floating_point() else True if tensor.dtype == torch.bool else -77
    wide = torch.full([2 * n + 3 for n in tensor.shape], filler, dtype=tensor.dtype, device=tensor.device)
    view = wide[tuple(slice(1, 1 + 2 * n, 2) for n in tensor.shape)]
    view.copy_(tensor)
    return view


def exact_logits(n_images: int, n_priors: int, n_classes: int, seed: int = 0) -> Tensor:
    """(B, P, C) logits 0 or -inf: every probability is exactly 1/k or 0, in whatever order a row is summed.

    Scores then tie between priors and between classes, whatever the implementation of exp.
    """
    g = generator(seed)
    on = torch.rand(n_images, n_priors, n_classes, generator=g) < 0.5
    on.scatter_(2, torch.randint(n_classes, (n_images, n_priors, 1), generator=g), True)
    return torch.where(on, 0.0, -INF)


def separated_logits(n_images: int, n_priors: int, n_classes: int, seed: int = 0) -> Tensor:
    """(B, P, C): each prior has one class, and no two scores of an image are nearer than 1 / (P + 1).

    The order of the scores is then the same for every implementation of exp. All other classes stay below
    1e-6.
    """
    g = generator(seed)
    score = torch.stack([torch.randperm(n_priors, generator=g) for _ in range(n_images)] or [torch.empty(0, n_priors)])
    score = ((score + 1) / (n_priors + 1)).double()[..., None]
    logits = torch.full((n_images, n_priors, n_classes), -20.0, dtype=torch.float64)
    logits[..., :1] = (1 - score).log()
    label = torch.randint(1, n_classes, (n_images, n_priors, 1), generator=g)
    return logits.scatter(2, label, score.log()).float()
