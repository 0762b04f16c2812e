"""nms and batched_nms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import adversarial as adv
import torch
from torch import Tensor

from ops import Op
from ops.box_iou import iou, numbers
from ops.select_hard_negatives import descending
from ssd_ext._op import plain


def batched_oracle(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    (boxes,) = numbers(boxes)
    scores, idxs, kept = scores.tolist(), idxs.tolist(), []
    for i in sorted(range(len(boxes)), key=lambda i: descending(scores, i)):
        if not any(idxs[i] == idxs[k] and float(iou(boxes[k], boxes[i])) > iou_threshold for k in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def oracle(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return batched_oracle(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), iou_threshold)


def scores_of(n: int, seed: int) -> Tensor:
    return (adv.hostile_values((n,), seed), torch.zeros(n), torch.rand(n, generator=adv.generator(seed)))[seed % 3]


def _spread(n: int, seed: int) -> Tensor:
    """(n, 4): boxes of which most overlap few others, with sides from 1/2 to 16 and some from 64 to 128."""
    g = adv.generator(seed)
    corners = 120 * torch.rand(n, 2, generator=g)
    powers = 5 * torch.rand(n, 2, generator=g) - 1 + 7 * (torch.rand(n, 1, generator=g) < 0.02)
    return torch.cat([corners, corners + 2**powers], dim=1)


_coarse_boxes = partial(adv.grid_boxes, cells=4)


def cases() -> Iterator[tuple]:
    for n in (*adv.SIZES, 255, 256, 257):
        for seed, boxes in enumerate((_coarse_boxes, adv.random_boxes, adv.hostile_boxes)):
            yield boxes(n, seed), scores_of(n, seed), 0.5
        yield adv.sliced(_coarse_boxes(n, 3)), adv.sliced(scores_of(n, 3)), 0.0
    for threshold in (-1.0, -0.0, 1.0, adv.INF, adv.NAN):
        yield adv.hostile_boxes(70), adv.hostile_values((70,)), threshold
    for dtype in (torch.float32, torch.float64):  # the number below the IoU is the largest that suppresses
        for box in adv.random_boxes(8).to(dtype):
            pair = torch.stack([box, box + (box[2:] - box[:2]).repeat(2) * 0.2])
            iou = plain.box_iou(*pair[:, None])[0, 0]
            yield pair, torch.zeros(2), iou.item()
            yield pair, torch.zeros(2), iou.nextafter(torch.zeros_like(iou)).item()
    for n in (511, 512, 513, 1024, 1025, 2100):  # around the bands and the tiles of the sort
        yield adv.random_boxes(n, n), scores_of(n, n), 0.6
    yield adv.random_boxes(600), scores_of(600, 0), -1.0
    for seed, threshold in enumerate((0.1, 0.2, 0.3)):  # more than 512 kept boxes, which C++ finds by their places
        yield _spread(900, seed), scores_of(900, 2), threshold
    yield _spread(700, 3).double() + 1e6, scores_of(700, 2), 0.2
    # Each box of the first band has its equal behind the band, and one of them has it inside too.
    corners = torch.arange(512.0)[:, None].repeat(2, 4) * 3 + torch.tensor([0.0, 0.0, 2.0, 2.0])
    corners[1] = corners[0]
    yield corners, -torch.arange(1024.0), 0.5
    for boxes_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for scores_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            scores = 1 + 1e-12 * adv.hostile_values((70,)).double()  # float64 tells them apart
            yield adv.hostile_boxes(70).to(boxes_dtype), scores.to(scores_dtype), 0.4


def batched_cases() -> Iterator[tuple]:
    def ids(n: int, n_classes: int) -> Tensor:
        return torch.randint(n_classes, (n,), generator=adv.generator(n)) * 7 - 10

    for n in (*adv.SIZES, 255, 256, 257):
        for seed, boxes in enumerate((_coarse_boxes, adv.random_boxes, adv.hostile_boxes)):
            yield boxes(n, seed), scores_of(n, seed), ids(n, (1, 3, 1000)[seed]), 0.4
    for n, n_classes in ((600, 1), (1300, 2), (1300, 9), (1300, 40), (700, 5000)):
        yield adv.random_boxes(n) + 1e4, scores_of(n, 0), ids(n, n_classes) * 2**40, 0.3
        yield _coarse_boxes(n, 1), adv.sliced(scores_of(n, 2)), adv.sliced(ids(n, n_classes).int()), 0.3
    large = ids(2600, 40)  # so many that rounds are counted: by the largest group, which has two bands and one box
    large[torch.randperm(2600, generator=adv.generator(1))[:1025]] = 5
    yield adv.random_boxes(2600), scores_of(2600, 0), large, 0.9
    limits = torch.iinfo(torch.int64)
    idxs = torch.tensor([limits.max, limits.min, 0, -1, limits.max, limits.min])
    yield adv.grid_boxes(1).expand(6, 4), torch.zeros(6), idxs, 0.5


def full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    scores = torch.rand(n_boxes, generator=adv.generator(0)).bfloat16()  # many tie
    return adv.random_boxes(n_boxes), scores, 0.5


def batched_full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    boxes, scores, threshold = full_size(counts, n_priors, n_boxes)
    return boxes, scores, torch.randint(20, (n_boxes,), generator=adv.generator(1)), threshold


OPS = [
    Op(
        "nms",
        cases,
        full_size,
        golden="f14e57cc260fc1a26fdb7573a4bcb8a879df322063d6d79e8d87bb69bfe22ec1",
        sample=lambda: full_size((), 0, 40),
        oracle=oracle,
        data_dependent=True,
    ),
    Op(
        "batched_nms",
        batched_cases,
        batched_full_size,
        golden="a1f8797b1e9f0f9d3da5949855f2654c0a4c6290a6dee64c78bd03fd86e656a5",
        sample=lambda: batched_full_size((), 0, 40),
        oracle=batched_oracle,
        data_dependent=True,
    ),
]
