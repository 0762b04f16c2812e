"""Arguments for every op that has a kernel: what the CPU and the CUDA kernels are compared on.

`python cases.py SANITIZER [KERNEL ...]` compares them under a sanitizer, in a process of its own, and then
runs these kernels of selftest.cu: see test_sanitizers.py.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import adversarial as adv
import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_ext import reference


def box_iou() -> Iterator[tuple[Tensor, Tensor]]:
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


def match_priors() -> Iterator[tuple[Tensor, Tensor, Tensor, float, str]]:
    for mode in ("per_prior", "bipartite"):
        for counts in (*adv.BATCHES.values(), (1, 0, 2) * 25):
            for seed, p in enumerate((0, 1, 33, 130)):
                for boxes in (adv.grid_boxes, adv.hostile_boxes):
                    a, b = boxes(sum(counts), seed), boxes(p, seed + 100)
                    yield a, adv.pack(counts), b, 0.25, mode
                    yield adv.sliced(a), adv.sliced(adv.pack(counts)), adv.sliced(b), 0.25, mode
        for n in (63, 64, 65, 128, 255, 256, 257, 513):  # around what is in shared memory at once
            few = adv.grid_boxes(n, n, cells=5), adv.pack((n // 3, n - n // 3))
            yield *few, adv.grid_boxes(70, 1, cells=5), 0.75, mode
        # Alike objects want the same priors; the next best lies anywhere.
        yield adv.random_boxes(1).repeat(20, 1), adv.pack((20,)), adv.random_boxes(600, 1), 1.0, mode
        for p in (63, 64, 127, 129, 255, 256, 257, 513, 1025):  # around tiles and chunks
            yield adv.grid_boxes(30, p, cells=4), adv.pack((12, 0, 18)), adv.grid_boxes(p, 1, cells=4), 0.5, mode
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            boxes = adv.random_boxes(40, 1).to(dtype), adv.pack((15, 25))
            yield *boxes, adv.hostile_boxes(300, 2).to(dtype), 0.3, mode
        yield adv.random_boxes(7), adv.pack((3, 4)), adv.random_boxes(adv.N_PRIORS, 1), 0.75, mode
        # More priors than an image's blocks take in one go, the best ones in the last and in the first.
        far = adv.random_boxes(40_000, 1) + torch.linspace(8, 0, 40_000)[:, None]
        yield adv.random_boxes(2), adv.pack((2,)), far, 1.0, mode
        yield adv.random_boxes(2), adv.pack((2,)), far.flip(0), 1.0, mode
        # Offsets that end after the boxes; and wild ones, with which nothing that is read can match.
        yield adv.grid_boxes(5), torch.tensor([0, 2, 9], dtype=torch.int32), adv.grid_boxes(40, 1), 0.5, mode
        wild = torch.tensor([7, -3, 2**31 - 1, 0, -(2**31), 2, 1], dtype=torch.int32)
        for n in (0, 1, 70):
            yield torch.full((n, 4), adv.NAN), wild, adv.grid_boxes(300), 0.0, mode


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


def encode_boxes() -> Iterator[tuple]:
    for boxes in (adv.grid_boxes, adv.hostile_boxes):
        yield from _per_prior(boxes, lambda n, seed: adv.to_cxcywh(adv.random_boxes(n, seed)), [(0.1, 0.2), (1, 0.3)])
    hostile = adv.to_cxcywh(torch.tensor(adv.NOT_BOXES + adv.ODD_BOXES))
    yield adv.hostile_boxes(5 * len(hostile)).view(5, -1, 4), hostile, 0.1, 0.2


def decode_boxes() -> Iterator[tuple]:
    def normal(n: int, seed: int) -> Tensor:
        return torch.randn(n, 4, generator=adv.generator(seed)) * 3

    def hostile(n: int, seed: int) -> Tensor:
        return adv.hostile_values((n, 4), seed)

    rest = [(0.1, 0.2, None), (1, 0.3, 0.5), (0.1, 0.2, 4.0)]
    for pred_offsets in (normal, hostile):
        yield from _per_prior(pred_offsets, lambda n, seed: adv.to_cxcywh(adv.random_boxes(n, seed)), rest)
    priors = adv.to_cxcywh(torch.tensor(adv.NOT_BOXES + adv.ODD_BOXES))
    yield normal(5 * len(priors), 0).view(5, -1, 4), priors, 0.1, 0.2, None


def select_hard_negatives() -> Iterator[tuple]:
    def positive(shape: tuple[int, int], seed: int) -> Tensor:
        return torch.rand(shape, generator=adv.generator(seed)) < (0.0, 0.05, 0.2, 0.6, 1.1)[seed]

    for n in adv.SIZES:
        for seed, n_images in enumerate((1, 2, 0, 5, 1)):
            shape = (n_images, n)
            for loss in (adv.hostile_values(shape, seed), torch.zeros(shape)):
                for ratio, min_negatives in ((3, 0), (0.5, 7), (1e9, 0), (0, 0)):
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


def _scores(n: int, seed: int) -> Tensor:
    return (adv.hostile_values((n,), seed), torch.zeros(n), torch.rand(n, generator=adv.generator(seed)))[seed % 3]


def _coarse_boxes(n: int, seed: int) -> Tensor:
    return adv.grid_boxes(n, seed, cells=4)


def nms() -> Iterator[tuple]:
    for n in (*adv.SIZES, 255, 256, 257):
        for seed, boxes in enumerate((_coarse_boxes, adv.random_boxes, adv.hostile_boxes)):
            yield boxes(n, seed), _scores(n, seed), 0.5
        yield adv.sliced(_coarse_boxes(n, 3)), adv.sliced(_scores(n, 3)), 0.0
    for threshold in (-1.0, -0.0, 1.0, adv.INF, adv.NAN):
        yield adv.hostile_boxes(70), adv.hostile_values((70,)), threshold
    for dtype in (torch.float32, torch.float64):  # the number below the IoU is the largest that suppresses
        for box in adv.random_boxes(8).to(dtype):
            pair = torch.stack([box, box + (box[2:] - box[:2]).repeat(2) * 0.2])
            iou = reference.box_iou(*pair[:, None])[0, 0]
            yield pair, torch.zeros(2), iou.item()
            yield pair, torch.zeros(2), iou.nextafter(torch.zeros_like(iou)).item()
    for n in (511, 512, 513, 1024, 1025, 2100):  # around the bands and the tiles of the sort
        yield adv.random_boxes(n, n), _scores(n, n), 0.6
    yield adv.random_boxes(600), _scores(600, 0), -1.0
    # Each box of the first band has its equal behind the band, and one of them has it inside too.
    corners = torch.arange(512.0)[:, None].repeat(2, 4) * 3 + torch.tensor([0.0, 0.0, 2.0, 2.0])
    corners[1] = corners[0]
    yield corners, -torch.arange(1024.0), 0.5
    for boxes_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for scores_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            scores = 1 + 1e-12 * adv.hostile_values((70,)).double()  # float64 tells them apart
            yield adv.hostile_boxes(70).to(boxes_dtype), scores.to(scores_dtype), 0.4


def batched_nms() -> Iterator[tuple]:
    def ids(n: int, n_classes: int) -> Tensor:
        return torch.randint(n_classes, (n,), generator=adv.generator(n)) * 7 - 10

    for n in (*adv.SIZES, 255, 256, 257):
        for seed, boxes in enumerate((_coarse_boxes, adv.random_boxes, adv.hostile_boxes)):
            yield boxes(n, seed), _scores(n, seed), ids(n, (1, 3, 1000)[seed]), 0.4
    for n, n_classes in ((600, 1), (1300, 2), (1300, 9), (1300, 40), (700, 5000)):
        yield adv.random_boxes(n) + 1e4, _scores(n, 0), ids(n, n_classes) * 2**40, 0.3
        yield _coarse_boxes(n, 1), adv.sliced(_scores(n, 2)), adv.sliced(ids(n, n_classes).int()), 0.3
    large = ids(2600, 40)  # so many that rounds are counted: by the largest group, which has two bands and one box
    large[torch.randperm(2600, generator=adv.generator(1))[:1025]] = 5
    yield adv.random_boxes(2600), _scores(2600, 0), large, 0.9
    limits = torch.iinfo(torch.int64)
    idxs = torch.tensor([limits.max, limits.min, 0, -1, limits.max, limits.min])
    yield adv.grid_boxes(1).expand(6, 4), torch.zeros(6), idxs, 0.5


def _loss_inputs(counts: tuple[int, ...], n_priors: int, n_classes: int, seed: int, kind: str = "random") -> tuple:
    """pred_offsets, pred_logits, boxes, labels, offsets and priors_cxcywh."""
    shape, g = (len(counts), n_priors), adv.generator(seed)
    if kind == "random":
        pred_offsets, logits = torch.randn(*shape, 4, generator=g) * 3, torch.randn(*shape, n_classes, generator=g) * 2
        make = adv.random_boxes
    elif kind == "hostile":
        pred_offsets, logits = adv.hostile_values((*shape, 4), seed), torch.randn(*shape, n_classes, generator=g)
        odd = torch.rand(shape, generator=g) < 0.05 * (seed % 2)  # in few rows only: a NaN hides all else in a sum
        logits[odd] = adv.hostile_values((*shape, n_classes), seed)[odd]
        make = adv.hostile_boxes
    else:  # all losses tie
        pred_offsets, logits = torch.zeros(*shape, 4), torch.full((*shape, n_classes), 0.25)
        make = adv.grid_boxes
    boxes, priors = make(sum(counts), seed + 1), adv.to_cxcywh(make(n_priors, seed + 2))
    labels = torch.randint(min(1, n_classes - 1), n_classes, (len(boxes),), generator=g)
    return pred_offsets, logits, boxes, labels, adv.pack(counts), priors


def _losses() -> Iterator[tuple]:
    """The arguments of multibox_loss."""
    options = [
        (0.5, 3.0, "l1", "per_prior", 0, 0.1, 0.2),
        (0.3, 1.5, "smooth_l1", "bipartite", 0, 0.1, 0.2),
        (0.4, 0.0, "smooth_l1", "per_prior", 7, 1.0, 0.5),
        (0.5, 2.0, "l1", "bipartite", 5, 0.3, 0.4),
    ]
    kinds = ("random", "hostile", "tied")
    choice = random.Random(0).choice
    for counts in adv.BATCHES.values():
        for seed, n_priors in enumerate((0, 1, 31, 33, 64, 65, 511, 513)):
            n_classes = choice((2, 3, 21, 32, 33, 81))
            yield *_loss_inputs(counts, n_priors, n_classes, seed, choice(kinds)), *choice(options)
    # One class has no labels. Tiles of the CUDA kernel: many rows, few long rows, rows too long for a tile.
    for n_classes, counts in ((1, (0, 0)), (24, (2, 0)), (91, (2, 0)), (300, (0, 3)), (400, (3, 0))):
        for kind in kinds:
            yield *_loss_inputs(counts, 70, n_classes, n_classes, kind), *options[1]
    yield *_loss_inputs((3, 2), adv.N_PRIORS, 21, 1), *options[0]
    yield *_loss_inputs((2,), 9217, 2, 2), *options[1]  # one prior more than the CUDA kernel has keys in registers
    yield *_loss_inputs((3, 0, 9), adv.N_PRIORS, 2, 3, "tied"), *options[0]
    yield *_loss_inputs((1,) * 33, 9, 3, 4), *options[2]  # more images than lanes of a warp

    half = (torch.float16, torch.bfloat16, torch.float32)
    for i, dtypes in enumerate([*itertools.product(half, half), (torch.float64, torch.float64)]):
        pred_offsets, logits, boxes, labels, offsets, priors = _loss_inputs((3, 12), 130, 21 + i % 2, i)
        pred_offsets, logits = pred_offsets.to(dtypes[0]), logits.to(dtypes[1])
        boxes, priors = (x.to(reference.compute_dtype(logits)) for x in (boxes, priors))
        inputs = pred_offsets, logits, boxes, labels, offsets, priors
        yield *inputs, *options[i % 4]
        yield *(adv.sliced(x) for x in inputs), *options[i % 4]
        # Views that start in the middle of a 16-byte unit.
        yield *(F.pad(x.flatten(), (1, 0))[1:].view(x.shape) for x in inputs), *options[(i + 1) % 4]

    pred_offsets, logits, boxes, labels, offsets, priors = _loss_inputs((5, 3), 65, 5, 1)
    labels[:4] = torch.tensor([-1, 5, 10**12, -(10**12)])
    yield pred_offsets, logits, boxes, labels, offsets, priors, *options[0]
    # Offsets that end after the boxes; and wild ones, with which nothing that is read can match.
    yield pred_offsets, logits, boxes, labels, torch.tensor([0, 2, 11], dtype=torch.int32), priors, *options[0]
    wild = torch.tensor([7, -3, 2**31 - 1, 0, -(2**31), 2, 1], dtype=torch.int32)
    pred_offsets, logits, _, _, _, priors = _loss_inputs((0,) * 6, 65, 5, 2)
    yield pred_offsets, logits, torch.full_like(boxes, adv.NAN), labels, wild, priors, *options[2]


multibox_loss = _losses


def multibox_loss_backward() -> Iterator[tuple]:
    for seed, (*inputs, threshold, ratio, loc_loss, matching, min_negatives, cv, sv) in enumerate(_losses()):
        options = threshold, ratio, loc_loss, matching, min_negatives, cv, sv
        _, _, n_pos, match, _ = reference.multibox_loss(*inputs, *options)
        # Any priors, and not those with the largest losses, which a rounding may decide; once in a while all.
        losses = torch.rand(match.shape, generator=adv.generator(seed))
        least = match.shape[1] if seed % 5 == 0 else min_negatives
        selected = reference.select_hard_negatives(losses, match >= 0, ratio, least)
        grads = torch.tensor([(1.0, 1.0), (-3e-3, 64.0), (0.0, adv.INF)][seed % 3]).to(inputs[2].dtype)
        results = [adv.sliced(x) if seed % 2 else x for x in (match, selected)]
        yield *grads, *inputs, *results, n_pos, loc_loss, cv, sv


class Undecided(tuple):
    """Arguments with which a rounding decides what comes first: kernels are compared with each other only."""


def _detection_inputs(n_images: int, n_priors: int, n_classes: int, seed: int, kind: str) -> tuple:
    """pred_offsets, pred_logits and priors_cxcywh."""
    shape, g = (n_images, n_priors), adv.generator(seed)
    pred_offsets, priors = torch.randn(*shape, 4, generator=g), adv.random_boxes(n_priors, seed)
    if kind == "exact":  # ties between priors, between classes and between IoUs
        pred_offsets, priors = torch.zeros(*shape, 4), adv.grid_boxes(n_priors, seed, cells=4)
        logits = adv.exact_logits(*shape, n_classes, seed)
    elif kind == "tied":
        logits = torch.full((*shape, n_classes), 0.125)
    elif kind == "separated":
        logits = adv.separated_logits(*shape, n_classes, seed)
    elif kind == "random":
        logits = torch.randn(*shape, n_classes, generator=g) * 2
    else:
        pred_offsets, priors = adv.hostile_values((*shape, 4), seed), adv.hostile_boxes(n_priors, seed)
        logits = torch.randn(*shape, n_classes, generator=g)
        odd = torch.rand(shape, generator=g) < 0.5  # in some rows only: one NaN in a sum hides all others
        logits[odd] = adv.hostile_values((*shape, n_classes), seed)[odd]
    return pred_offsets, logits, adv.to_cxcywh(priors)


def postprocess_detections() -> Iterator[tuple]:
    options = [  # min_score, max_overlap, top_k, pre_nms_top_k
        (0.01, 0.45, 200, None),
        (-1.0, 0.3, 1000, 1),
        (0.1, 0.4, 5, 20),
        (-0.5, 0.25, 1000, None),
        (0.02, -0.5, 40, None),
        (0.0, 0.0, 1, None),
        (0.3, adv.NAN, 200, 20),
        (adv.NAN, 0.5, 10, None),
        (0.01, 0.45, 0, None),
        (0.05, 1.0, 9, 0),
        (1e-31, 0.5, 200, 3),
        (0.25, 0.5, 30, None),
        (0.5, 0.25, 200, 2),
    ]

    def case(kind: str, inputs: tuple, settings: tuple) -> tuple:
        arguments = *inputs, *settings, 0.1, 0.2
        # Separated logits have equal scores below 1e-6, equal but for a rounding.
        decided = kind in ("exact", "tied") or (kind == "separated" and settings[0] > 1e-6)
        return arguments if decided else Undecided(arguments)

    seed = 0
    for n_priors in (0, 1, 31, 33, 64, 65):
        for n_classes in (1, 2, 3, 21, 33, 81):
            for kind in ("exact", "hostile") if n_classes == 1 else ("exact", "separated", "hostile", "random"):
                seed += 1
                inputs = _detection_inputs((2, 1, 0, 1, 3)[seed % 5], n_priors, n_classes, seed, kind)
                yield case(kind, inputs, options[seed % len(options)])
    # Several bands: few of many candidates are kept, or all; classes have more candidates than their limit.
    for kind, n_priors, n_classes, *settings in (
        ("exact", 1025, 5, 0.01, 0.3, 1000, None),
        ("exact", 1025, 21, 0.01, 0.3, 1000, 20),
        ("separated", 1025, 3, 1e-4, 0.5, 200, None),
        ("separated", 1500, 2, 1e-4, 1.0, 3000, None),
        ("hostile", 300, 33, -1.0, 0.5, 1000, None),
        ("random", 1025, 81, 0.001, 0.1, 1000, 400),
    ):
        yield case(kind, _detection_inputs(1, n_priors, n_classes, 1, kind), settings)
    crowded = torch.zeros(2, 700, 4), torch.zeros(2, 700, 3), torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(700, 4)
    yield case("tied", crowded, (0.1, 0.5, 5, None))
    for kind, *settings in (
        ("separated", 0.01, 0.45, 200, None),
        ("tied", 0.01, 0.45, 200, None),
        ("tied", 0.01, 0.45, 200, 20),
        ("random", 0.01, 0.45, 200, None),
    ):
        yield case(kind, _detection_inputs(1, adv.N_PRIORS, 21, 2, kind), settings)
    # The CUDA kernel guesses where a band ends from 4 candidates of 68 and from the best one of each of 512
    # threads: these say nothing where the best lie in between, or where few threads have them all.
    place = torch.arange(12_000)
    scores = torch.linspace(0.05, 0.14, 12_000)
    scores += 0.3 * (place % 68 >= 4) + 0.2 * (place % 512 < 200) + 0.1 * (place % 512 < 3)
    logits = torch.stack([torch.zeros(12_000), torch.logit(scores.double()).float()], dim=1)[None]
    yield case("exact", (torch.zeros(1, 12_000, 4), logits, torch.zeros(12_000, 4)), (0.01, 0.5, 300, None))
    # Rows of too many classes for a tile of the CUDA kernel; images without candidates among others.
    yield case("separated", _detection_inputs(2, 40, 800, 3, "separated"), (0.1, 0.4, 20, None))
    yield case("exact", _detection_inputs(2, 9, 600, 3, "exact"), (-1.0, 0.4, 1000, 1))
    inputs = _detection_inputs(4, 40, 21, 4, "exact")
    inputs[1][1:3] = torch.tensor([0.0] + [-50.0] * 20)
    yield case("exact", inputs, (0.01, 0.4, 20, None))

    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for i, dtype in enumerate(dtypes):
        for kind, n_classes in (("exact", 5), ("random", 32)):
            pred_offsets, logits, priors = _detection_inputs(2, 65, n_classes, i, kind)
            inputs = pred_offsets.to(dtypes[i - 1]), logits.to(dtype), priors.to(dtypes[i - 2])
            yield case(kind, inputs, (0.1, 0.3, 40, None))
            yield case(kind, tuple(map(adv.sliced, inputs)), (0.1, 0.3, 40, 7))
            # Views that start in the middle of a 16-byte unit.
            inputs = tuple(F.pad(x.flatten(), (1, 0))[1:].view(x.shape) for x in inputs)
            yield case(kind, inputs, (0.1, 0.3, 40, None))


CASES = {
    "box_iou": box_iou,
    "match_priors": match_priors,
    "encode_boxes": encode_boxes,
    "decode_boxes": decode_boxes,
    "select_hard_negatives": select_hard_negatives,
    "nms": nms,
    "batched_nms": batched_nms,
    "multibox_loss": multibox_loss,
    "multibox_loss_backward": multibox_loss_backward,
    "postprocess_detections": postprocess_detections,
}

# Ops with exp or log: all kernels give the same bits. Plain PyTorch has other functions, which like ours are right to
# one unit in the last place: two such units (2.4e-7, 4.4e-16) of a size up to 10 remain in a corner near 0.
CLOSE = {"encode_boxes", "decode_boxes", "multibox_loss", "multibox_loss_backward", "postprocess_detections"}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 4e-15, torch.float16: 2**-10, torch.bfloat16: 2**-7}
FLOAT32_ONLY = {"postprocess_detections"}  # converts float64


def takes_library_math(op: str, arguments: tuple) -> bool:
    """Whether exp and log are those of the library, in float64: no contract makes them equal on two devices.

    Those of CUDA are right to one unit in the last place too, and so as near to plain PyTorch as those of the CPU.
    """
    doubles = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in arguments)
    return doubles and op in CLOSE - FLOAT32_ONLY


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of the numbers, for a NaN those of one NaN: its sign and payload differ between processors."""
    tensor = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    if tensor.is_floating_point():
        tensor[tensor.isnan()] = math.nan
    return tensor.view(torch.uint8)


def _tuple(result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def same_bits(actual, expected) -> bool:
    """Equal dtypes, shapes and bits, -0 and 0 told apart; tensors or tuples of them."""
    return not differences(actual, expected)


def differences(actual, expected, close: bool = False) -> list[str]:
    """One line for each result that has other bits, or, if `close`, is further away than TOLERANCE."""
    lines = []
    for i, (a, e) in enumerate(zip(_tuple(actual), _tuple(expected), strict=True)):
        if a.dtype != e.dtype or a.shape != e.shape:
            lines.append(f"result {i} is {a.dtype} {tuple(a.shape)}, not {e.dtype} {tuple(e.shape)}")
            continue
        wrong = (_bits(a) != _bits(e)).view(a.numel(), a.element_size()).any(dim=1)
        if close:
            if e.dtype == torch.bool:
                # Hard negatives whose losses differ by a rounding may rank either way. Their number is the same, and
                # with it the loss, which is compared too.
                a, e = a.sum(dim=1), e.sum(dim=1)
            limit = TOLERANCE.get(e.dtype, 0)
            wrong = ~torch.isclose(a.double(), e.double(), rtol=limit, atol=limit, equal_nan=True).view(-1)
        if wrong.any():
            most = (a.double() - e.double()).abs().view(-1)[wrong].nan_to_num(math.inf, math.inf).max()
            lines.append(f"result {i}, {e.dtype}: {int(wrong.sum())} of {wrong.numel()} differ, by up to {most:.3g}")
    return lines


def check(op: str, arguments: tuple, kernels: dict[str, object], one_library: bool = True) -> None:
    """Fails unless the op of all these namespaces gives the bits of plain PyTorch.

    For an op of CLOSE: unless they all give the same bits, close to those of plain PyTorch. Not `one_library`: the
    kernels run on two devices, and where they take exp and log from their libraries each is close to plain PyTorch.
    """
    expected = getattr(reference, op)(*arguments)
    results = {name: getattr(namespace, op)(*arguments) for name, namespace in kernels.items()}
    first, bits = "plain PyTorch", expected
    near, equal = {}, results
    if op in CLOSE:
        first, bits = next(iter(results.items()))
        near = {first: bits}
        if not one_library and takes_library_math(op, arguments):
            near, equal = results, {}
    lines = []
    for name, result in {} if isinstance(arguments, Undecided) else near.items():
        lines += [f"{name} and plain PyTorch: {line}" for line in differences(result, expected, close=True)]
    for name, result in equal.items():
        lines += [f"{name} and {first}: {line}" for line in differences(result, bits)]
    if lines:
        shapes = [f"{x.dtype}{list(x.shape)}" if isinstance(x, Tensor) else x for x in arguments]
        raise AssertionError("\n    ".join([f"{op}({', '.join(map(str, shapes))})", *lines]))


def compare(kernels: dict[str, object], ops: Iterable[str] = CASES, one_library: bool = True) -> int:
    """Checks these ops on all their cases, prints every mismatch and fails after the last; returns the calls."""
    calls = mismatches = 0
    for op in ops:
        for arguments in CASES[op]():
            try:
                check(op, arguments, kernels, one_library)
            except AssertionError as error:
                print(error, flush=True)
                mismatches += 1
            calls += len(kernels)
    if mismatches:
        raise AssertionError(f"{mismatches} cases differ, after {calls} calls")
    return calls


def main(sanitizer: str, *selftests: str) -> None:
    from cuda_on_cpu import build

    kernels = {"CUDA": build.load(sanitizer)}
    if sanitizer == "address":
        torch.ops.load_library(build.library(build.CPU_KERNELS, sanitizer))
        kernels["CPU"] = torch.ops.ssd_ext
    calls = compare(kernels)
    for kernel in selftests:
        build.load_selftest(sanitizer)(torch.arange(64, dtype=torch.int32), kernel)
    print("done,", calls, "calls")


if __name__ == "__main__":
    main(*sys.argv[1:])
