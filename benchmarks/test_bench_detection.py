"""From a network's predictions to detections: softmax, decoding, NMS in each class, the best 200 of each image.

.venv/bin/python -m pytest benchmarks/test_bench_detection.py -k untrained-1-image-21

Three kinds of predictions: like those of a trained network (min_score 0.01, max_overlap 0.45, as for mAP), the same
with the thresholds of a demonstration (0.2, 0.5), and those of an untrained network, in which every class of every
prior passes 0.01. torchvision keeps at most 400 candidates of a class before NMS; `torchvision_no_cap` keeps all, as
the tutorial and ssd_ext do.
"""

import peers
import torch
import tutorial
from harness import Case, compiled, each, measure
from inputs import PRIORS, PRIORS_XYXY, P, candidates, trained_like, untrained

import ssd_ext
from ssd_ext import reference

TOP_K = 200
KINDS = {  # kind -> predictions, min_score, max_overlap
    "trained": (trained_like, 0.01, 0.45),
    "demo thresholds": (trained_like, 0.2, 0.5),
    "untrained": (untrained, 0.01, 0.45),
}


def as_lists(padded) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    boxes, scores, labels, counts = padded
    return [(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]


def unmatched(got, expected) -> int:
    """How many detections of two images' results have no partner of equal label, score (1e-4) and box (1e-3)."""
    (boxes_a, scores_a, labels_a), (boxes_b, scores_b, labels_b) = (
        [x.cpu() for x in image] for image in (got, expected)
    )
    same = labels_a[:, None] == labels_b
    same &= (scores_a[:, None] - scores_b).abs() < 1e-4
    same &= ((boxes_a[:, None] - boxes_b).abs() < 1e-3).all(dim=2)
    return int((~same.any(dim=1)).sum() + (~same.any(dim=0)).sum())


def check(name, got, expected) -> None:
    """Sets of detections agree but for 1 in 100: rounding may decide otherwise where an IoU or two scores are so close.

    torchvision's class offset alone costs an IoU four digits.
    """
    got, expected = (x if isinstance(x, list) else as_lists(x) for x in (got, expected))
    wrong = sum(unmatched(a, b) for a, b in zip(got, expected, strict=True))
    total = sum(len(a[1]) + len(b[1]) for a, b in zip(got, expected, strict=True))
    assert wrong <= total / 100, f"{name}: {wrong} of {total} detections have no partner"


def detection(kind: str, images: int, classes: int, **options) -> Case:
    make, min_score, max_overlap = KINDS[kind]
    numbers = min_score, max_overlap, TOP_K
    its = {"score_thresh": min_score, "nms_thresh": max_overlap, "detections_per_img": TOP_K}
    capped, uncapped = peers.ssd(classes, **its), peers.ssd(classes, **its, topk_candidates=P)

    def inputs():
        locs, logits = make(images, classes)
        case.extra["candidates"] = round(candidates(logits, min_score))
        return locs, logits, PRIORS, PRIORS_XYXY

    def plain(locs, logits, priors, corners):
        return reference.postprocess_detections(locs, logits, priors, *numbers, None, 0.1, 0.2)

    contenders = {
        "ssd_ext": lambda locs, logits, priors, corners: ssd_ext.postprocess_detections(locs, logits, priors, *numbers),
        "plain_pytorch": plain,
        "torchvision": lambda locs, logits, priors, corners: peers.detect(capped, locs, logits, corners),
        "torchvision_no_cap": lambda locs, logits, priors, corners: peers.detect(uncapped, locs, logits, corners),
        "tutorial": lambda locs, logits, priors, corners: tutorial.detect(locs, logits, priors, *numbers),
        "compiled_fallback": "as for 1 image, 21 classes",
    }
    if (images, classes) == (1, 21):
        contenders["compiled_fallback"] = compiled(plain)
    if kind == "untrained" and images > 1:
        contenders["torchvision_no_cap"] = "seconds per image: see 1 image"
    if kind == "untrained" and (images, classes) != (1, 21):
        contenders["tutorial"] = "up to a minute for 20 classes of one image: see 1 image, 21 classes"
    sizes = {"images": images, "classes": classes}
    once, quick = (), True
    if kind == "untrained":
        once, quick = ("tutorial",), images < 32 and classes < 81
    case = Case("detection", kind, sizes, inputs, contenders, check, every_thread_count=quick, once=once, **options)
    return case


def only_chart(kind: str, images: int, classes: int) -> Case:
    case = detection(kind, images, classes, chart_only=True)
    case.contenders = {name: case.contenders[name] for name in ("ssd_ext", "torchvision")}
    return case


CASES = [detection(kind, images, classes) for kind in KINDS for classes in (21, 81) for images in (1, 8, 32)]
CHARTS = [
    *(only_chart("trained", images, 21) for images in (2, 4, 16)),
    *(only_chart("trained", 8, classes) for classes in (2, 6, 41, 161)),
]


@each(CASES + CHARTS)
def test_detection(benchmark, case, contender, place):
    measure(benchmark, case, contender, place)
