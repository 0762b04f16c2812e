"""Each op against what a user would take instead: plain PyTorch, torchvision, the tutorial's code.

.venv/bin/python -m pytest benchmarks/test_bench_ops.py -k nms-1000
"""

import peers
import torch
import torchvision
import tutorial
from harness import Case, close, compiled, each, measure
from inputs import PRIORS, PRIORS_XYXY, P, clustered_boxes, generator, objects, random_boxes

import ssd_ext
from ssd.loss import pack_targets
from ssd_ext import reference

CPU = torch.device("cpu")
COMPILE_TIME = "compiled only for 32 images with 1-20 objects: each shape is compiled anew"
AS_TORCHVISION = "the same operations as torchvision's, for which 8732 boxes take seconds and gigabytes"
MATRIX = "its matrix of all pairs would take 1.6 GB, several times over"


def box_iou(n: int, **options) -> Case:
    def inputs():
        return PRIORS_XYXY[torch.randperm(P, generator=generator(0))[:n]], PRIORS_XYXY

    contenders = {
        "ssd_ext": ssd_ext.box_iou,
        "plain_pytorch": reference.box_iou,
        "torchvision": torchvision.ops.box_iou,
        "tutorial": tutorial.iou if n < P else AS_TORCHVISION,
        "compiled_fallback": compiled(reference.box_iou),
    }
    everywhere = ("ssd_ext", "plain_pytorch", "torchvision")
    return Case("ops", "box_iou", {"boxes": n, "priors": P}, inputs, contenders, close(1e-5), everywhere, **options)


def match_priors(images: int, most: int, fewest: int = 1, **options) -> Case:
    """Peers work image by image."""

    def inputs():
        boxes, labels = objects(images, 21, fewest, most)
        packed, _, offsets = pack_targets(boxes, labels, CPU)
        return packed, offsets, PRIORS_XYXY, boxes

    def check(name, got, expected):
        # On a GPU torchvision and the tutorial leave open which of two objects gets a prior that both force, and
        # compiled code rounds once where others round twice, which decides ties.
        wrong = float((got != expected).float().mean())
        limit = 1e-3 if got.is_cuda and name != "plain_pytorch" else 0
        assert wrong <= limit, f"{wrong:.2%} of the priors got another object"

    def plain(packed, offsets, priors, boxes=None):
        return reference.match_priors(packed, offsets, priors, 0.5, "per_prior")

    compiling = compiled(lambda packed, offsets, priors, boxes: plain(packed, offsets, priors))
    contenders = {
        "ssd_ext": lambda packed, offsets, priors, boxes: ssd_ext.match_priors(packed, offsets, priors),
        "plain_pytorch": plain,
        "torchvision": lambda packed, offsets, priors, boxes: peers.match(boxes, priors),
        "tutorial": lambda packed, offsets, priors, boxes: torch.stack(
            [tutorial.match(b, priors, 0.5) for b in boxes]
        ).int(),
        "compiled_fallback": compiling if images == 32 and most == 20 else COMPILE_TIME,
    }
    sizes = {"images": images, "objects each": most if fewest == most else f"{fewest}-{most}"}
    return Case("ops", "match_priors", sizes, inputs, contenders, check, **options)


def select_hard_negatives(images: int, **options) -> Case:
    def inputs():
        g = generator(2)
        return torch.rand(images, P, generator=g) * 8, torch.rand(images, P, generator=g) < 0.002

    def plain(loss, positive):
        return reference.select_hard_negatives(loss, positive, 3, 0)

    def check(name, got, expected):
        if name == "tutorial":  # it has the losses and not their places
            loss = inputs()[0].to(got.device)
            got, expected = got.sort().values, loss[expected].sort().values
        close(0)(name, got, expected)

    contenders = {
        "ssd_ext": lambda loss, positive: ssd_ext.select_hard_negatives(loss, positive),
        "plain_pytorch": plain,
        "torchvision": peers.select_hard_negatives,
        "tutorial": lambda loss, positive: tutorial.hardest(loss, positive, 3),
        "compiled_fallback": compiled(plain),
    }
    return Case("ops", "select_hard_negatives", {"images": images}, inputs, contenders, check, **options)


def coding(op: str, images: int, **options) -> Case:
    """encode_boxes and decode_boxes; torchvision starts from the priors' corners, hence the tolerance."""
    if op == "encode_boxes":
        values = random_boxes(images * P, 3).view(images, P, 4)
        ours, rest = ssd_ext.encode_boxes, (0.1, 0.2)
        single, loop = peers.CODER.encode_single, tutorial.encode
    else:
        values = torch.randn(images, P, 4, generator=generator(4))
        ours, rest = ssd_ext.decode_boxes, (0.1, 0.2, None)
        single, loop = peers.CODER.decode_single, tutorial.decode

    def plain(values, priors, corners):
        return getattr(reference, op)(values, priors, *rest)

    contenders = {
        "ssd_ext": lambda values, priors, corners: ours(values, priors),
        "plain_pytorch": plain,
        "torchvision": lambda values, priors, corners: torch.stack([single(v, corners) for v in values]),
        "tutorial": lambda values, priors, corners: torch.stack([loop(v, priors) for v in values]),
        "compiled_fallback": compiled(plain),
    }

    def inputs():
        return values, PRIORS, PRIORS_XYXY

    graphs = ("ssd_ext", "plain_pytorch")
    return Case("ops", op, {"images": images}, inputs, contenders, close(1e-3), graphs, **options)


def check_kept(name, got, expected) -> None:
    """Peers round IoUs differently, and torchvision shifts boxes by their class: 1 in 1000 may be kept or not."""
    both = torch.isin(got, expected).sum()
    wrong, total = len(got) + len(expected) - 2 * int(both), len(expected)
    assert wrong <= total / 1000, f"{name}: {wrong} of {total} kept boxes differ"
    assert name != "plain_pytorch" or torch.equal(got, expected), "plain_pytorch: another order"


def nms(n: int, **options) -> Case:
    contenders = {
        "ssd_ext": lambda boxes, scores: ssd_ext.nms(boxes, scores, 0.45),
        "plain_pytorch": lambda boxes, scores: reference.nms(boxes, scores, 0.45),
        "torchvision": lambda boxes, scores: torchvision.ops.nms(boxes, scores, 0.45),
        "tutorial": MATRIX if n > 5000 else lambda boxes, scores: tutorial.nms(boxes, scores, 0.45),
        "compiled_fallback": compiled(lambda boxes, scores: reference.nms(boxes, scores, 0.45)),
    }
    return Case("ops", "nms", {"boxes": n}, lambda: clustered_boxes(n)[:2], contenders, close(0), graphs=(), **options)


def batched_nms(n: int, **options) -> Case:
    """Boxes of 20 classes."""

    def loop(boxes, scores, idxs):
        kept = []
        for label in range(20):
            rows = (idxs == label).nonzero()[:, 0]
            kept.append(rows[tutorial.nms(boxes[rows], scores[rows], 0.45)])
        kept = torch.cat(kept)
        return kept[scores[kept].sort(descending=True).indices]

    contenders = {
        "ssd_ext": lambda boxes, scores, idxs: ssd_ext.batched_nms(boxes, scores, idxs, 0.45),
        "plain_pytorch": lambda boxes, scores, idxs: reference.batched_nms(boxes, scores, idxs, 0.45),
        "torchvision": lambda boxes, scores, idxs: torchvision.ops.batched_nms(boxes, scores, idxs, 0.45),
        "tutorial": loop,
        "compiled_fallback": compiled(lambda *inputs: reference.batched_nms(*inputs, 0.45)),
    }
    return Case("ops", "batched_nms", {"boxes": n}, lambda: clustered_boxes(n), contenders, check_kept, (), **options)


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


def only_charts(case: Case) -> Case:
    """Our op and torchvision, for more points of a scaling chart."""
    case.chart_only = True
    case.contenders = {name: case.contenders[name] for name in ("ssd_ext", "torchvision")}
    return case


CHARTS = [
    *(only_charts(box_iou(n)) for n in (64, 256, 2048)),
    *(only_charts(match_priors(images, 20)) for images in (2, 4, 16)),
    *(only_charts(match_priors(8, n, n)) for n in (1, 5, 20, 50, 200)),
    *(only_charts(select_hard_negatives(images)) for images in (1, 2, 4, 8, 16)),
    *(only_charts(coding(op, images)) for op in ("encode_boxes", "decode_boxes") for images in (1, 2, 4, 8, 16)),
    *(only_charts(nms(n)) for n in (500, 2000, 10000)),
    *(only_charts(batched_nms(n)) for n in (500, 2000, 10000)),
]


@each(CASES + CHARTS)
def test_op(benchmark, case, contender, place):
    measure(benchmark, case, contender, place)
