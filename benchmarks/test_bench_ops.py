"""Each op against what a user would take instead: plain PyTorch, torchvision, the tutorial's code.

.venv/bin/python -m pytest benchmarks/test_bench_ops.py -k nms-1000
"""

from typing import NamedTuple

import peers
import torch
import torchvision
import tutorial
from harness import Case, close, each, ours
from inputs import PRIORS, PRIORS_XYXY, VARIANCES, Inputs, P, clustered_boxes, generator, objects, random_boxes

from ssd_ext import DetectionOptions, LossOptions

OPTIONS = LossOptions()
MAX_OVERLAP = DetectionOptions().max_overlap
COMPILE_TIME = "compiled only for 32 images with 1-20 objects: each shape is compiled anew"
AS_TORCHVISION = "the same operations as torchvision's, for which 8732 boxes take seconds and gigabytes"
MATRIX = "its matrix of all pairs would take 1.6 GB, several times over"


class Losses(NamedTuple):
    loss: torch.Tensor  # (B, P)
    positive: torch.Tensor  # (B, P)


def box_iou(n: int) -> Case:
    def inputs():
        return Inputs(PRIORS_XYXY[torch.randperm(P, generator=generator(0))[:n]], priors_xyxy=PRIORS_XYXY)

    def by(iou):
        return lambda x: iou(x.boxes, x.priors_xyxy)

    contenders = {
        **ours("box_iou", by),
        "torchvision": by(torchvision.ops.box_iou),
        "tutorial": by(tutorial.iou) if n < P else AS_TORCHVISION,
    }
    everywhere = ("ssd_ext", "plain_pytorch", "torchvision")
    return Case("ops", "box_iou", {"boxes": n, "priors": P}, inputs, contenders, close(1e-5), graphs=everywhere)


def match_priors(images: int, most: int, fewest: int = 1) -> Case:
    """Peers work image by image."""

    def inputs():
        return objects(images, 21, fewest, most)._replace(labels=None, label_lists=None, priors_xyxy=PRIORS_XYXY)

    def check(name, got, expected):
        # On a GPU torchvision and the tutorial leave open which of two objects gets a prior that both force, and
        # compiled code rounds once where others round twice, which decides ties.
        wrong = float((got != expected).float().mean())
        limit = 1e-3 if got.is_cuda and name != "plain_pytorch" else 0
        assert wrong <= limit, f"{wrong:.2%} of the priors got another object"

    def by(match):
        return lambda x: match(x.boxes, x.row_splits, x.priors_xyxy, OPTIONS.threshold, OPTIONS.matching)

    contenders = {
        **ours("match_priors", by),
        "torchvision": lambda x: peers.match(x.box_lists, x.priors_xyxy),
        "tutorial": lambda x: torch.stack([tutorial.match(boxes, x.priors_xyxy) for boxes in x.box_lists]).int(),
    }
    if (images, most) != (32, 20):
        contenders["compiled_fallback"] = COMPILE_TIME
    sizes = {"images": images, "objects each": most if fewest == most else f"{fewest}-{most}"}
    return Case("ops", "match_priors", sizes, inputs, contenders, check)


def select_hard_negatives(images: int) -> Case:
    def inputs():
        g = generator(2)
        return Losses(torch.rand(images, P, generator=g) * 8, torch.rand(images, P, generator=g) < 0.002)

    def check(name, got, expected):
        if name == "tutorial":  # it has the losses and not their places
            loss = inputs().loss.to(got.device)
            got, expected = got.sort().values, loss[expected].sort().values
        close(0)(name, got, expected)

    def by(select):
        return lambda x: select(x.loss, x.positive, OPTIONS.neg_pos_ratio, OPTIONS.min_negatives)

    contenders = {
        **ours("select_hard_negatives", by),
        "torchvision": lambda x: peers.select_hard_negatives(x.loss, x.positive),
        "tutorial": lambda x: tutorial.hardest(x.loss, x.positive),
    }
    return Case("ops", "select_hard_negatives", {"images": images}, inputs, contenders, check)


def coding(op: str, images: int) -> Case:
    """encode_boxes and decode_boxes; torchvision starts from the priors' corners, hence the tolerance."""
    encode = op == "encode_boxes"
    options = VARIANCES if encode else (*VARIANCES, None)
    single = peers.CODER.encode_single if encode else peers.CODER.decode_single
    loop = tutorial.encode if encode else tutorial.decode

    def inputs():
        values = random_boxes(images * P, 3) if encode else torch.randn(images * P, 4, generator=generator(4))
        return Inputs(values.view(images, P, 4), priors_cxcywh=PRIORS, priors_xyxy=PRIORS_XYXY)

    def by(code):
        return lambda x: code(x.boxes, x.priors_cxcywh, *options)

    contenders = {
        **ours(op, by),
        "torchvision": lambda x: torch.stack([single(v, x.priors_xyxy) for v in x.boxes]),
        "tutorial": lambda x: torch.stack([loop(v, x.priors_cxcywh) for v in x.boxes]),
    }
    return Case("ops", op, {"images": images}, inputs, contenders, close(1e-3), graphs=("ssd_ext", "plain_pytorch"))


def check_kept(name, got, expected) -> None:
    """Peers round IoUs differently, and torchvision shifts boxes by their class: 1 in 1000 may be kept or not."""
    both = torch.isin(got, expected).sum()
    wrong, total = len(got) + len(expected) - 2 * int(both), len(expected)
    assert wrong <= total / 1000, f"{name}: {wrong} of {total} kept boxes differ"
    assert name != "plain_pytorch" or torch.equal(got, expected), "plain_pytorch: another order"


def nms(n: int) -> Case:
    def by(nms):
        return lambda x: nms(x.boxes, x.scores, MAX_OVERLAP)

    contenders = {
        **ours("nms", by),
        "torchvision": by(torchvision.ops.nms),
        "tutorial": MATRIX if n > 5000 else by(tutorial.nms),
    }
    return Case("ops", "nms", {"boxes": n}, lambda: clustered_boxes(n, None), contenders, close(0), graphs=())


def batched_nms(n: int) -> Case:
    """Boxes of 20 classes."""

    def by(nms):
        return lambda x: nms(x.boxes, x.scores, x.idxs, MAX_OVERLAP)

    def loop(boxes, scores, idxs, max_overlap):
        kept = []
        for label in range(20):
            rows = (idxs == label).nonzero()[:, 0]
            kept.append(rows[tutorial.nms(boxes[rows], scores[rows], max_overlap)])
        kept = torch.cat(kept)
        return kept[scores[kept].sort(descending=True).indices]

    contenders = {
        **ours("batched_nms", by),
        "torchvision": by(torchvision.ops.batched_nms),
        "tutorial": by(loop),
    }
    return Case("ops", "batched_nms", {"boxes": n}, lambda: clustered_boxes(n, 20), contenders, check_kept, graphs=())


CASES = [
    *(box_iou(n) for n in (20, 1024, P)),
    *(match_priors(images, 20) for images in (1, 8, 32)),
    *(match_priors(images, 100, 100) for images in (1, 8, 32)),
    select_hard_negatives(32),
    coding("encode_boxes", 32),
    coding("decode_boxes", 32),
    *(nms(n) for n in (200, 1000, 5000, 20000)),
    *(batched_nms(n) for n in (200, 1000, 5000, 20000)),
]
CHARTS = [
    *(box_iou(n) for n in (64, 256, 2048)),
    *(match_priors(images, 20) for images in (2, 4, 16)),
    *(match_priors(8, n, n) for n in (1, 5, 20, 50, 200)),
    *(select_hard_negatives(images) for images in (1, 2, 4, 8, 16)),
    *(coding(op, images) for op in ("encode_boxes", "decode_boxes") for images in (1, 2, 4, 8, 16)),
    *(nms(n) for n in (500, 2000, 10000)),
    *(batched_nms(n) for n in (500, 2000, 10000)),
]
test_op = each(CASES + [case.for_chart() for case in CHARTS])
