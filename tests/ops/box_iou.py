"""box_iou; and the IoU of two boxes in single steps, on which other oracles rest."""

from __future__ import annotations

from collections.abc import Iterator

import adversarial as adv
import numpy as np
import torch
from torch import Tensor

from ops import Op


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    """numpy arrays in the compute dtype: float64 if one of the tensors is float64, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.detach().cpu().to(dtype).numpy() for t in tensors]


@np.errstate(all="ignore")
def iou(a: np.ndarray, b: np.ndarray) -> np.floating:
    """IoU of two xyxy boxes."""
    zero = a.dtype.type(0)
    inter = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = (area_a + area_b) - inter
    return inter / union if inter > 0 and union > 0 else zero


def oracle(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    a, b = numbers(boxes1, boxes2)
    table = np.zeros((len(a), len(b)), a.dtype)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i, j] = iou(a[i], b[j])
    return torch.from_numpy(table)


def cases() -> Iterator[tuple[Tensor, Tensor]]:
    for n in adv.SIZES:
        for seed, m in enumerate((0, 1, 2, 3, 33, 64, 65)):
            for boxes in (adv.grid_boxes, adv.hostile_boxes):
                a, b = boxes(n, seed), boxes(m, seed + 100)
                yield a, b
                yield adv.sliced(a), adv.sliced(b)
    for m in (4, 5, 8, 127, 511, 512, 513, 1030):  # around the tiles of both kernels
        for dtype in (torch.float32, torch.float64):
            yield adv.hostile_boxes(33, m).to(dtype), adv.hostile_boxes(m, 1).to(dtype)
    for dtype in (torch.float16, torch.bfloat16):
        yield adv.hostile_boxes(40, 1).to(dtype), adv.random_boxes(130, 2).to(dtype)
    yield adv.random_boxes(2), adv.random_boxes(adv.N_PRIORS, 1)
    yield adv.random_boxes(adv.N_PRIORS, 1), adv.random_boxes(2)
    # A view that starts in the middle of a 16-byte unit.
    yield adv.random_boxes(9).flatten()[1:33].view(8, 4), adv.random_boxes(5).flatten()[3:19].view(4, 4)


def full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    return adv.random_boxes(n_boxes), adv.random_boxes(n_priors, 1)


OPS = [
    Op(
        "box_iou",
        cases,
        full_size,
        golden="36435df314936e2d8c1515865795e26df55ba487bdd40b473005903e0bad52dd",
        sample=lambda: (adv.random_boxes(5), adv.random_boxes(40, 1)),
        oracle=oracle,
        differentiable=(0, 1),
    )
]
