"""postprocess_detections."""

from __future__ import annotations

from collections.abc import Iterator

import adversarial as adv
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ops import Op, Undecided
from ops.box_iou import iou, numbers
from ssd_ext import DetectionOptions
from ssd_ext._op import plain


def _of_image(boxes: Tensor, scores: Tensor, options: DetectionOptions) -> list[tuple[int, int]]:
    """(prior, class) of one image's detections, best first, from boxes (P, 4) and probabilities (P, C)."""
    boxes, scores = numbers(boxes, scores)
    found = []
    for label in range(1, scores.shape[1]):
        passing = [p for p in range(len(boxes)) if scores[p, label] > np.float32(options.min_score)]
        kept = []
        for prior in sorted(passing, key=lambda p: (-scores[p, label], p))[: options.pre_nms_top_k]:
            if not any(float(iou(boxes[k], boxes[prior])) > options.max_overlap for k in kept):
                kept.append(prior)
        found += [(-scores[p, label], label, p) for p in kept]
    return [(prior, label) for _, label, prior in sorted(found)[: options.top_k]]


def padded(found: list[list[tuple[int, int]]], boxes: Tensor, scores: Tensor, top_k: int) -> tuple[Tensor, ...]:
    """The outputs, from the (prior, class) of each image's detections."""
    n = len(found)
    out_boxes, out_scores = torch.zeros(n, top_k, 4), torch.zeros(n, top_k)
    out_labels, counts = torch.zeros(n, top_k, dtype=torch.int64), torch.zeros(n, dtype=torch.int32)
    for i, pairs in enumerate(found):
        counts[i] = len(pairs)
        for k, (prior, label) in enumerate(pairs):
            out_boxes[i, k], out_labels[i, k], out_scores[i, k] = boxes[i, prior], label, scores[i, prior, label]
    return out_boxes, out_labels, out_scores, counts


def oracle(pred_offsets: Tensor, pred_logits: Tensor, priors: Tensor, *options: float | None) -> tuple[Tensor, ...]:
    options = DetectionOptions(*options)
    variances = options.center_variance, options.size_variance
    boxes = plain.decode_boxes(pred_offsets.float(), priors.float(), *variances, options.max_log_scale)
    if options.clip:
        boxes = torch.where(boxes < 0, 0, torch.where(boxes > 1, 1, boxes))
    logits = pred_logits.float()
    scores = logits.softmax(dim=-1) if options.score == "softmax" else 1 / (1 + torch.exp(-logits))
    found = [_of_image(b, s, options) for b, s in zip(boxes, scores, strict=True)]
    return padded(found, boxes, scores, options.top_k)


def inputs(n_images: int, n_priors: int, n_classes: int, seed: int = 0, kind: str = "random") -> tuple:
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


def cases() -> Iterator[tuple]:
    limits = [  # min_score, max_overlap, top_k, pre_nms_top_k
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

    def case(kind: str, tensors: tuple, limits: tuple, **others) -> tuple:
        options = DetectionOptions(*limits, **others)
        arguments = *tensors, *options
        # Separated logits have equal scores below 1e-6, equal but for a rounding.
        decided = kind in ("exact", "tied") or (kind == "separated" and options.min_score > 1e-6)
        return arguments if decided else Undecided(arguments)

    seed = 0
    for n_priors in (0, 1, 31, 33, 64, 65):
        for n_classes in (1, 2, 3, 21, 33, 81):
            for kind in ("exact", "hostile") if n_classes == 1 else ("exact", "separated", "hostile", "random"):
                seed += 1
                tensors = inputs((2, 1, 0, 1, 3)[seed % 5], n_priors, n_classes, seed, kind)
                yield case(kind, tensors, limits[seed % len(limits)])
                if seed % 2:
                    others = {"score": ("softmax", "sigmoid")[seed // 2 % 2], "clip": seed // 4 % 2 == 0}
                    others["max_log_scale"] = (None, 0.4, -0.1)[seed % 3]
                    yield case(kind, tensors, limits[seed % len(limits)], **others)
    # Several bands: few of many candidates are kept, or all; classes have more candidates than their limit.
    for kind, n_priors, n_classes, *rest in (
        ("exact", 1025, 5, 0.01, 0.3, 1000, None),
        ("exact", 1025, 21, 0.01, 0.3, 1000, 20),
        ("separated", 1025, 3, 1e-4, 0.5, 200, None),
        ("separated", 1500, 2, 1e-4, 1.0, 3000, None),
        ("hostile", 300, 33, -1.0, 0.5, 1000, None),
        ("random", 1025, 81, 0.001, 0.1, 1000, 400),
    ):
        yield case(kind, inputs(1, n_priors, n_classes, 1, kind), rest)
    crowded = torch.zeros(2, 700, 4), torch.zeros(2, 700, 3), torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(700, 4)
    yield case("tied", crowded, (0.1, 0.5, 5, None))
    for kind, *rest in (
        ("separated", 0.01, 0.45, 200, None),
        ("tied", 0.01, 0.45, 200, None),
        ("tied", 0.01, 0.45, 200, 20),
        ("random", 0.01, 0.45, 200, None),
    ):
        yield case(kind, inputs(1, adv.N_PRIORS, 21, 2, kind), rest)
    # The CUDA kernel guesses where a band ends from 4 candidates of 68 and from the best one of each of 512
    # threads: these say nothing where the best lie in between, or where few threads have them all.
    at = torch.arange(12_000)
    scores = torch.linspace(0.05, 0.14, 12_000)
    scores += 0.3 * (at % 68 >= 4) + 0.2 * (at % 512 < 200) + 0.1 * (at % 512 < 3)
    logits = torch.stack([torch.zeros(12_000), torch.logit(scores.double()).float()], dim=1)[None]
    yield case("exact", (torch.zeros(1, 12_000, 4), logits, torch.zeros(12_000, 4)), (0.01, 0.5, 300, None))
    # Rows of too many classes for a tile of the CUDA kernel; images without candidates among others.
    yield case("separated", inputs(2, 40, 800, 3, "separated"), (0.1, 0.4, 20, None))
    yield case("exact", inputs(2, 9, 600, 3, "exact"), (-1.0, 0.4, 1000, 1))
    tensors = inputs(4, 40, 21, 4, "exact")
    tensors[1][1:3] = torch.tensor([0.0] + [-50.0] * 20)
    yield case("exact", tensors, (0.01, 0.4, 20, None))

    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for i, dtype in enumerate(dtypes):
        for kind, n_classes in (("exact", 5), ("random", 32)):
            pred_offsets, logits, priors = inputs(2, 65, n_classes, i, kind)
            tensors = pred_offsets.to(dtypes[i - 1]), logits.to(dtype), priors.to(dtypes[i - 2])
            yield case(kind, tensors, (0.1, 0.3, 40, None))
            yield case(kind, tuple(map(adv.sliced, tensors)), (0.1, 0.3, 40, 7))
            # Views that start in the middle of a 16-byte unit.
            tensors = tuple(F.pad(x.flatten(), (1, 0))[1:].view(x.shape) for x in tensors)
            yield case(kind, tensors, (0.1, 0.3, 40, None))


def full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    return *inputs(len(counts), n_priors, 21, 0, "random"), *DetectionOptions()


OPS = [
    Op(
        "postprocess_detections",
        cases,
        full_size,
        golden="b524a027a624f514b243d5746d3d2ba2d35360e5b198cdc104015d8e4a21e186",
        sample=lambda: (*inputs(2, 40, 4, 0, "separated"), DetectionOptions(0.2, top_k=7)),
        oracle=oracle,
        has_exp_or_log=True,
        only_float32=True,
    )
]
