"""select_hard_negatives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import adversarial as adv
import numpy as np
import torch
from torch import Tensor

from ops import Op


def descending(values: list[float], index: int) -> tuple[bool, float, int]:
    """A sort key: NaN first, then by falling value, equal ones by rising index (-0 equals 0)."""
    value = values[index]
    return (False, 0.0, index) if math.isnan(value) else (True, -value, index)


def oracle(loss: Tensor, positive: Tensor, ratio: float, min_negatives: int) -> Tensor:
    selected = torch.zeros(positive.shape, dtype=torch.bool)
    for image, (values, is_positive) in enumerate(zip(loss.tolist(), positive.tolist(), strict=True)):
        negatives = [p for p in range(len(values)) if not is_positive[p]]
        product = np.float32(ratio) * np.float32(sum(is_positive))
        k = max(math.ceil(product), min_negatives)
        for prior in sorted(negatives, key=lambda p: descending(values, p))[:k]:
            selected[image, prior] = True
    return selected


def cases() -> Iterator[tuple]:
    def positive(shape: tuple[int, int], seed: int) -> Tensor:
        return torch.rand(shape, generator=adv.generator(seed)) < (0.0, 0.05, 0.2, 0.6, 1.1)[seed]

    for n in adv.SIZES:
        for seed, n_images in enumerate((1, 2, 0, 5, 1)):
            shape = (n_images, n)
            for loss in (adv.hostile_values(shape, seed), torch.zeros(shape)):
                for ratio, min_negatives in ((3, 0), (0.5, 7), (1e9, 0), (0, 0), (1 / 3, 0)):
                    yield loss, positive(shape, seed), ratio, min_negatives
            yield adv.sliced(adv.hostile_values(shape, seed)), adv.sliced(positive(shape, seed)), 3, 0
    for n in (adv.N_PRIORS, 9216, 9217, 20000):  # up to 9216 the CUDA kernel has the keys in registers
        shape = (2, n)
        for loss in (adv.hostile_values(shape), torch.rand(shape, generator=adv.generator(1)), torch.full(shape, 3.0)):
            yield loss, positive(shape, 1), 3, 0
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        loss = torch.randn(3, 700, dtype=torch.float64, generator=adv.generator(0))
        loss[:, :300] = 1 + loss[:, :300] * 1e-12  # float64 tells them apart
        yield loss.to(dtype), positive((3, 700), 1), 3, 0
        yield adv.hostile_values((3, 700)).to(dtype), positive((3, 700), 1), 3, 0
    steps = torch.randperm(100, generator=adv.generator(0))[None] // 2  # neighbouring numbers, each twice
    for k in (7, 8, 9, 10):
        for sign in (1, -1):
            loss = sign * (1 + steps.double() * torch.finfo(torch.float32).eps)
            yield loss.float(), torch.zeros(1, 100, dtype=torch.bool), 0, k


def full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    shape, g = (len(counts), n_priors), adv.generator(0)
    return torch.rand(shape, generator=g), torch.rand(shape, generator=g) < 0.01, 3.0, 0


OPS = [
    Op(
        "select_hard_negatives",
        cases,
        full_size,
        golden="fbf74b5f3ae9c1ca065ef7af6ca29d813ece0826c84a5688d7ed025baa3187c2",
        sample=lambda: (*full_size((3, 2), 40, 0)[:2], 3.0, 2),
        oracle=oracle,
    )
]
