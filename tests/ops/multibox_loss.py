"""multibox_loss and multibox_loss_backward."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import adversarial as adv
import torch
import torch.nn.functional as F
from torch import Tensor

from ops import Op, box_coding, match_priors, select_hard_negatives
from ssd_ext import LossOptions
from ssd_ext._boxes import compute_dtype, cxcywh_to_xyxy
from ssd_ext._op import plain
from ssd_ext.ops.multibox_loss import Batch


def cross_entropy(logits: list[float], label: int) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(x - largest) for x in logits)) - logits[label]


def options_of(arguments: tuple) -> LossOptions:
    return LossOptions(*arguments[6 : 6 + len(LossOptions._fields)])


def oracle(*arguments: Tensor | float | str) -> tuple[float, float, int]:
    """conf_loss, loc_loss and n_pos in float64; matching in the dtype of the inputs."""
    batch, options = Batch(*arguments[:6]), options_of(arguments)
    corners = arguments[13] if len(arguments) > 13 else cxcywh_to_xyxy(batch.priors_cxcywh)
    match = match_priors.oracle(batch.boxes, batch.row_splits, corners, options.threshold, options.matching)
    logits, predicted = batch.pred_logits.double().tolist(), batch.pred_offsets.double().tolist()
    ce = torch.zeros(match.shape, dtype=torch.float64)
    conf = loc = 0.0
    for image, prior in itertools.product(*map(range, match.shape)):
        if match[image, prior] < 0:
            ce[image, prior] = cross_entropy(logits[image][prior], 0)
            continue
        row = int(batch.row_splits[image] + match[image, prior])
        ce[image, prior] = cross_entropy(logits[image][prior], int(batch.labels[row]))
        conf += float(ce[image, prior])
        box, its_prior = batch.boxes[row].double()[None], batch.priors_cxcywh[prior].double()[None]
        target = box_coding.encode_oracle(box, its_prior, options.center_variance, options.size_variance)
        for wanted, got in zip(target[0].tolist(), predicted[image][prior], strict=True):
            error = abs(got - wanted)
            if options.loc_loss == "smooth_l1":
                error = 0.5 * error * error if error < 1 else error - 0.5
            loc += error
    hard = select_hard_negatives.oracle(ce, match >= 0, options.neg_pos_ratio, options.min_negatives)
    conf += float(ce[hard].sum())
    n_pos = int((match >= 0).sum())
    divisor = max(1, n_pos)
    return conf / divisor, loc / (divisor if options.loc_loss == "smooth_l1" else 4 * divisor), n_pos


def inputs(counts: tuple[int, ...], n_priors: int, n_classes: int, seed: int, kind: str = "random") -> tuple:
    """pred_offsets, pred_logits, boxes, labels, row_splits and priors_cxcywh."""
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


def cases() -> Iterator[tuple]:
    options = [
        LossOptions(),
        LossOptions(0.3, 1.5, "smooth_l1", "bipartite"),
        LossOptions(0.4, 0.0, "smooth_l1", "per_prior", 7, 1.0, 0.5),
        LossOptions(0.5, 2.0, "l1", "bipartite", 5, 0.3, 0.4),
    ]
    kinds = ("random", "hostile", "tied")
    choice = random.Random(0).choice
    for counts in adv.BATCHES.values():
        for seed, n_priors in enumerate((0, 1, 31, 33, 64, 65, 511, 513)):
            n_classes = choice((2, 3, 21, 32, 33, 81))
            yield *inputs(counts, n_priors, n_classes, seed, choice(kinds)), *choice(options)
    # One class has no labels. Tiles of the CUDA kernel: many rows, few long rows, rows too long for a tile.
    for n_classes, counts in ((1, (0, 0)), (24, (2, 0)), (91, (2, 0)), (300, (0, 3)), (400, (3, 0))):
        for kind in kinds:
            yield *inputs(counts, 70, n_classes, n_classes, kind), *options[1]
    yield *inputs((3, 2), adv.N_PRIORS, 21, 1), *options[0]
    yield *inputs((2,), 9217, 2, 2), *options[1]  # one prior more than the CUDA kernel has keys in registers
    yield *inputs((3, 0, 9), adv.N_PRIORS, 2, 3, "tied"), *options[0]
    yield *inputs((2,), 33_000, 2, 5), *options[0]  # more priors than an image's blocks take in one go
    yield *inputs((1,) * 33, 9, 3, 4), *options[2]  # more images than lanes of a warp

    # Other corners than those of the priors: they alone are matched, the offsets are from the priors.
    for seed, dtype in enumerate((torch.float32, torch.float64, torch.float32)):
        tensors = [x.to(dtype) if x.is_floating_point() else x for x in inputs((3, 0, 9), 130, 5, seed)]
        corners = adv.random_boxes(130, 50 + seed).to(dtype)
        yield *tensors, *options[seed], corners if seed < 2 else adv.sliced(corners)

    half = (torch.float16, torch.bfloat16, torch.float32)
    for i, dtypes in enumerate([*itertools.product(half, half), (torch.float64, torch.float64)]):
        pred_offsets, logits, boxes, labels, row_splits, priors = inputs((3, 12), 130, 21 + i % 2, i)
        pred_offsets, logits = pred_offsets.to(dtypes[0]), logits.to(dtypes[1])
        boxes, priors = (x.to(compute_dtype(logits)) for x in (boxes, priors))
        tensors = pred_offsets, logits, boxes, labels, row_splits, priors
        yield *tensors, *options[i % 4]
        yield *(adv.sliced(x) for x in tensors), *options[i % 4]
        # Views that start in the middle of a 16-byte unit.
        yield *(F.pad(x.flatten(), (1, 0))[1:].view(x.shape) for x in tensors), *options[(i + 1) % 4]

    pred_offsets, logits, boxes, labels, row_splits, priors = inputs((5, 3), 65, 5, 1)
    labels[:4] = torch.tensor([-1, 5, 10**12, -(10**12)])
    yield pred_offsets, logits, boxes, labels, row_splits, priors, *options[0]
    # Row splits that end after the boxes; and wild ones, with which nothing that is read can match.
    yield pred_offsets, logits, boxes, labels, torch.tensor([0, 2, 11], dtype=torch.int32), priors, *options[0]
    wild = torch.tensor([7, -3, 2**31 - 1, 0, -(2**31), 2, 1], dtype=torch.int32)
    pred_offsets, logits, _, _, _, priors = inputs((0,) * 6, 65, 5, 2)
    yield pred_offsets, logits, torch.full_like(boxes, adv.NAN), labels, wild, priors, *options[2]


def backward_cases() -> Iterator[tuple]:
    for seed, arguments in enumerate(cases()):
        tensors, options = arguments[:6], options_of(arguments)
        _, _, n_pos, match, _ = plain.multibox_loss(*arguments)
        # Any priors, and not those with the largest losses, which a rounding may decide; once in a while all.
        losses = torch.rand(match.shape, generator=adv.generator(seed))
        least = match.shape[1] if seed % 5 == 0 else options.min_negatives
        selected = plain.select_hard_negatives(losses, match >= 0, options.neg_pos_ratio, least)
        grads = torch.tensor([(1.0, 1.0), (-3e-3, 64.0), (0.0, adv.INF)][seed % 3]).to(tensors[2].dtype)
        results = [adv.sliced(x) if seed % 2 else x for x in (match, selected)]
        yield *grads, *tensors, *results, n_pos, *options


def full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    return *inputs(counts, n_priors, 21, 0), *LossOptions(0.4, loc_loss="smooth_l1")


def backward_full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    arguments = full_size(counts, n_priors, n_boxes)
    _, _, n_pos, match, selected = torch.ops.ssd_ext.multibox_loss(*arguments)
    grads, options = (torch.tensor(1.5), torch.tensor(-0.5)), options_of(arguments)
    return *grads, *arguments[:6], match, selected, n_pos, *options


OPS = [
    Op(
        "multibox_loss",
        cases,
        full_size,
        golden="5eba01ab3fa7b113f9932dd0bb3db4352356190a5e7f7e0b26d574f0f3585ec7",
        sample=lambda: (*inputs((3, 2), 40, 4, 0), LossOptions()),
        oracle=oracle,
        differentiable=(0, 1),
        has_exp_or_log=True,
    ),
    Op(
        "multibox_loss_backward",
        backward_cases,
        backward_full_size,
        golden="a45ba2326d0e1c9595fab6f1a31ffa16965c5ad6349cc000c7282e0aea5d8335",
        sample=None,
        has_exp_or_log=True,
    ),
]
