"""The ops against what a user would take instead, in one process, on equal inputs, with equal numbers of threads.

    .venv/bin/python -m pytest benchmarks/test_bench_ops.py

Contenders: `ssd_ext` (our kernel), `plain_pytorch` (our fallback) and `peer` (torchvision's function, or what its SSD
does where it has none). Every contender is checked before it is timed. Compare medians of one run with each other, not
with those of another machine or another day.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder, SSDMatcher

import ssd_ext
from ssd.boxes import cxcy_to_xy
from ssd.loss import pack_targets
from ssd.priors import make_priors
from ssd_ext import reference

PRIORS = make_priors()  # (8732, 4) cxcywh
PRIORS_XYXY = cxcy_to_xy(PRIORS)
BATCH = 32


@dataclass
class Case:
    """One comparison: contender name -> function without arguments; all give the same, up to `rtol`."""

    contenders: dict[str, Any]
    rtol: float = 0.0
    rounds: int = 50


def boxes_like_objects(n: int, seed: int, size: float = 0.3) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centre, sides = torch.rand(n, 2, generator=g), 0.05 + size * torch.rand(n, 2, generator=g)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


def box_iou(n: int, device: str) -> Case:
    boxes = PRIORS_XYXY[torch.randperm(len(PRIORS), generator=torch.Generator().manual_seed(0))[:n]]
    functions = {
        "ssd_ext": ssd_ext.box_iou,
        "plain_pytorch": reference.box_iou,
        "peer": torchvision.ops.box_iou,
    }
    boxes, priors = boxes.to(device), PRIORS_XYXY.to(device)
    calls = {name: lambda f=f: f(boxes, priors) for name, f in functions.items()}
    return Case(calls, rtol=1e-6, rounds=10 if n > 5000 else 50)


def match_priors(batch: int, most: int, device: str) -> Case:
    """1..most objects per image; the peer is box_iou and SSDMatcher of torchvision, image by image."""
    counts = torch.randint(1, most + 1, (batch,), generator=torch.Generator().manual_seed(1)).tolist()
    images = [boxes_like_objects(n, seed) for seed, n in enumerate(counts)]
    packed, _, offsets = pack_targets(images, [torch.ones(n, dtype=torch.int64) for n in counts], torch.device("cpu"))
    images, priors = [b.to(device) for b in images], PRIORS_XYXY.to(device)
    packed, offsets = packed.to(device), offsets.to(device)
    matcher = SSDMatcher(0.5)

    def peer():
        return torch.stack([matcher(torchvision.ops.box_iou(b, priors)) for b in images]).to(torch.int32)

    return Case(
        {
            "ssd_ext": lambda: ssd_ext.match_priors(packed, offsets, priors),
            "plain_pytorch": lambda: reference.match_priors(packed, offsets, priors, 0.5, "per_prior"),
            "peer": peer,
        },
        rounds=15,
    )


def select_hard_negatives(batch: int, device: str) -> Case:
    """The peer is the double sort that torchvision's SSD and the tutorial's descendants use."""
    g = torch.Generator().manual_seed(2)
    loss, positive = (
        torch.rand(batch, len(PRIORS), generator=g) * 8,
        torch.rand(batch, len(PRIORS), generator=g) < 0.002,
    )
    loss, positive = loss.to(device), positive.to(device)

    def peer():
        masked = loss.masked_fill(positive, -torch.inf)
        return masked.sort(1, descending=True).indices.sort(1).indices < 3 * positive.sum(1, keepdim=True)

    return Case(
        {
            "ssd_ext": lambda: ssd_ext.select_hard_negatives(loss, positive),
            "plain_pytorch": lambda: reference.select_hard_negatives(loss, positive, 3, 0),
            "peer": peer,
        },
        rounds=20,
    )


def encode_boxes(batch: int, device: str) -> Case:
    boxes = boxes_like_objects(batch * len(PRIORS), 3).view(batch, -1, 4).to(device)
    priors, corners = PRIORS.to(device), PRIORS_XYXY.to(device)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    return Case(
        {
            "ssd_ext": lambda: ssd_ext.encode_boxes(boxes, priors),
            "plain_pytorch": lambda: reference.encode_boxes(boxes, priors, 0.1, 0.2),
            "peer": lambda: torch.stack([coder.encode_single(b, corners) for b in boxes]),
        },
        rtol=1e-3,  # torchvision starts from the priors' corners
        rounds=20,
    )


def decode_boxes(batch: int, device: str) -> Case:
    pred = torch.randn(batch, len(PRIORS), 4, generator=torch.Generator().manual_seed(4)).to(device)
    priors, corners = PRIORS.to(device), PRIORS_XYXY.to(device)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    return Case(
        {
            "ssd_ext": lambda: ssd_ext.decode_boxes(pred, priors),
            "plain_pytorch": lambda: reference.decode_boxes(pred, priors, 0.1, 0.2, None),
            "peer": lambda: torch.stack([coder.decode_single(p, corners) for p in pred]),
        },
        rtol=1e-3,
        rounds=20,
    )


def _scored(n: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes in clusters, as a detector gives them, with scores that all differ."""
    g = torch.Generator().manual_seed(n)
    centres = boxes_like_objects(max(1, n // 20), n)
    boxes = centres[torch.randint(len(centres), (n,), generator=g)] + 0.02 * torch.randn(n, 4, generator=g)
    scores, idxs = torch.randperm(n, generator=g) / n, torch.randint(20, (n,), generator=g)
    return boxes.to(device), scores.to(device), idxs.to(device)


def nms(n: int, device: str) -> Case:
    boxes, scores, _ = _scored(n, device)
    return Case(
        {
            "ssd_ext": lambda: ssd_ext.nms(boxes, scores, 0.45),
            "plain_pytorch": lambda: reference.nms(boxes, scores, 0.45),
            "peer": lambda: torchvision.ops.nms(boxes, scores, 0.45),
        },
        rounds=10,
    )


def batched_nms(n: int, device: str) -> Case:
    boxes, scores, idxs = _scored(n, device)
    return Case(
        {
            "ssd_ext": lambda: ssd_ext.batched_nms(boxes, scores, idxs, 0.45),
            "plain_pytorch": lambda: reference.batched_nms(boxes, scores, idxs, 0.45),
            "peer": lambda: torchvision.ops.batched_nms(boxes, scores, idxs, 0.45),
        },
        rounds=10,
    )


CASES = {
    "box_iou 20 x 8732": (box_iou, 20),
    "box_iou 8732 x 8732": (box_iou, 8732),
    "match_priors 1 image": (match_priors, 1, 20),
    "match_priors 32 images": (match_priors, BATCH, 20),
    "select_hard_negatives 32 x 8732": (select_hard_negatives, BATCH),
    "encode_boxes 32 x 8732": (encode_boxes, BATCH),
    "decode_boxes 32 x 8732": (decode_boxes, BATCH),
    **{f"nms {n}": (nms, n) for n in (1000, 5000, 20000)},
    **{f"batched_nms {n}, 20 classes": (batched_nms, n) for n in (1000, 5000, 20000)},
}


ALL = torch.get_num_threads()
PLACES = sorted({("cpu", 1), ("cpu", ALL)}) + ([("cuda", ALL)] if torch.cuda.is_available() else [])


@pytest.mark.parametrize(("device", "threads"), PLACES)
@pytest.mark.parametrize("contender", ["ssd_ext", "plain_pytorch", "peer"])
@pytest.mark.parametrize("name", CASES)
def test_op(benchmark, name, contender, device, threads):
    make, *sizes = CASES[name]
    case = make(*sizes, device)
    function, ours = case.contenders[contender], case.contenders["ssd_ext"]()
    torch.testing.assert_close(function(), ours, rtol=case.rtol, atol=case.rtol)
    benchmark.group = f"{name}, {device}, {threads} thread(s)"
    benchmark.extra_info.update(case=name, contender=contender, device=device, threads=threads)

    def finished():
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark.pedantic(finished, rounds=case.rounds, warmup_rounds=2)
    finally:
        torch.set_num_threads(before)
