"""encode_boxes and decode_boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import adversarial as adv
import numpy as np
import torch
from torch import Tensor

from ops import Op
from ops.box_iou import numbers


@np.errstate(all="ignore")
def _each(code: Callable, values: Tensor, priors: Tensor) -> Tensor:
    """code(value, prior, t) of x and of y of every row: two numbers from two of each, t the type they are made in."""
    values, priors = numbers(values, priors)
    out = np.zeros_like(values)
    for at in np.ndindex(values.shape[:-1]):
        for i in (0, 1):
            out[at][i::2] = code(values[at][i::2], priors[at[-1]][i::2], values.dtype.type)
    return torch.from_numpy(out)


def encode_oracle(boxes: Tensor, priors: Tensor, center: float, size: float) -> Tensor:
    def encode(box, prior, t):
        (low, high), (middle, extent) = box, prior
        return ((low + high) * t(0.5) - middle) / (extent * t(center)), np.log((high - low) / extent) / t(size)

    return _each(encode, boxes, priors)


def decode_oracle(pred_offsets: Tensor, priors: Tensor, center: float, size: float, limit: float | None) -> Tensor:
    def decode(offsets, prior, t):
        (shift, log_scale), (middle, extent) = offsets, prior
        centre, log_scale = shift * (extent * t(center)) + middle, log_scale * t(size)
        if limit is not None and log_scale > t(limit):
            log_scale = t(limit)
        half = np.exp(log_scale) * extent * t(0.5)
        return centre - half, centre + half

    return _each(decode, pred_offsets, priors)


def _per_prior(values, priors, rest: list[tuple]) -> Iterator[tuple]:
    """Rows values(n, seed) for priors priors(n, seed) in all shapes and dtypes, each followed by one of `rest`."""
    for n in (*adv.SIZES, 255, 256, 257, 513):  # a tile on the CPU and a block on the GPU have 256 rows
        for seed, leading in enumerate(((), (0,), (1,), (3,), (2, 3))):
            rows = values(math.prod(leading) * n, seed).view(*leading, n, 4)
            yield rows, priors(n, seed), *rest[seed % len(rest)]
            yield adv.sliced(rows), adv.sliced(priors(n, seed)), *rest[0]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for n in (33, 300):
            yield values(2 * n, n).view(2, n, 4).to(dtype), priors(n, n).to(dtype), *rest[-1]
    yield values(2 * adv.N_PRIORS, 1).view(2, -1, 4), priors(adv.N_PRIORS, 2), *rest[0]
    # Views that start in the middle of a 16-byte unit.
    yield values(9, 0).flatten()[1:33].view(8, 4), priors(8, 1), *rest[0]
    yield values(8, 0), priors(9, 1).flatten()[3:35].view(8, 4), *rest[0]


def encode_cases() -> Iterator[tuple]:
    for boxes in (adv.grid_boxes, adv.hostile_boxes):
        yield from _per_prior(boxes, lambda n, seed: adv.to_cxcywh(adv.random_boxes(n, seed)), [(0.1, 0.2), (1, 0.3)])
    hostile = adv.to_cxcywh(torch.tensor(adv.NOT_BOXES + adv.ODD_BOXES))
    yield adv.hostile_boxes(5 * len(hostile)).view(5, -1, 4), hostile, 0.1, 0.2


def decode_cases() -> Iterator[tuple]:
    def normal(n: int, seed: int) -> Tensor:
        return torch.randn(n, 4, generator=adv.generator(seed)) * 3

    def hostile(n: int, seed: int) -> Tensor:
        return adv.hostile_values((n, 4), seed)

    rest = [(0.1, 0.2, None), (1, 0.3, 0.5), (0.1, 0.2, 4.0)]
    for pred_offsets in (normal, hostile):
        yield from _per_prior(pred_offsets, lambda n, seed: adv.to_cxcywh(adv.random_boxes(n, seed)), rest)
    priors = adv.to_cxcywh(torch.tensor(adv.NOT_BOXES + adv.ODD_BOXES))
    yield normal(5 * len(priors), 0).view(5, -1, 4), priors, 0.1, 0.2, None


def _priors(n: int) -> Tensor:
    return adv.to_cxcywh(adv.random_boxes(n, 1))


def encode_full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    images = len(counts)
    return adv.random_boxes(images * n_priors).view(images, n_priors, 4), _priors(n_priors), 0.1, 0.2


def decode_full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    pred_offsets = torch.randn(len(counts), n_priors, 4, generator=adv.generator(0))
    return pred_offsets, _priors(n_priors), 0.1, 0.2, None


OPS = [
    Op(
        "encode_boxes",
        encode_cases,
        encode_full_size,
        golden="3a7ce7d5d124a51ae374359f714aef2717de751fab789fda1818776cb2de3ce8",
        sample=lambda: (adv.random_boxes(40), _priors(40), 0.1, 0.2),
        oracle=encode_oracle,
        differentiable=(0,),
        has_exp_or_log=True,
    ),
    Op(
        "decode_boxes",
        decode_cases,
        decode_full_size,
        golden="37f16a58d9d9a2505aa36353019b953fe764a3a7f6968c4478e951266a1b47ad",
        sample=lambda: (torch.randn(2, 40, 4, generator=adv.generator(0)), _priors(40), 0.1, 0.2, 4.0),
        oracle=decode_oracle,
        differentiable=(0,),
        has_exp_or_log=True,
    ),
]
