"""From the predictions of a network to detections: softmax, decoding, NMS in each class, the best 200 of each image.

.venv/bin/python -m pytest benchmarks/test_bench_detection.py -k untrained-1-image-21

There are three kinds of predictions: like those of a trained network, with the thresholds for mAP; the same, with the
thresholds of a demonstration; and those of an untrained network, in which nearly every class of every prior is a
candidate. Before NMS torchvision keeps at most 400 candidates of each class; `torchvision_no_cap` keeps all, like the
tutorial and ssd_ext.
"""

from functools import partial

import peers
import torch
import tutorial
from harness import Case, compiled, each
from inputs import PRIORS, PRIORS_XYXY, Inputs, P, candidates, random_boxes, trained_like, untrained

import ssd_ext
from ssd.boxes import xy_to_cxcy
from ssd_ext import DetectionOptions
from ssd_ext._op import plain

KINDS = {
    "trained": (trained_like, DetectionOptions()),
    "demo thresholds": (trained_like, DetectionOptions(min_score=0.2, max_overlap=0.5)),
    "untrained": (untrained, DetectionOptions()),
}


def as_lists(found) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Boxes, labels and scores of each image, from such a list or from padded tensors and counts."""
    if isinstance(found, list):
        return found
    *padded, counts = found
    return [tuple(x[i, :n] for x in padded) for i, n in enumerate(counts.tolist())]


def unmatched(got, expected) -> int:
    """The number of detections of two results that have no partner with the same label, score (1e-4) and box (1e-3)."""
    (boxes_a, labels_a, scores_a), (boxes_b, labels_b, scores_b) = ([x.cpu() for x in y] for y in (got, expected))
    same = labels_a[:, None] == labels_b
    same &= (scores_a[:, None] - scores_b).abs() < 1e-4
    same &= ((boxes_a[:, None] - boxes_b).abs() < 1e-3).all(dim=2)
    return int((~same.any(dim=1)).sum() + (~same.any(dim=0)).sum())


def check(name, got, expected) -> None:
    """At most 1 in 100 detections may differ: rounding decides near the threshold, or between close scores.

    The offset that torchvision adds to the boxes of each class alone costs an IoU four digits.
    """
    pairs = list(zip(as_lists(got), as_lists(expected), strict=True))
    wrong, total = sum(unmatched(a, b) for a, b in pairs), sum(len(a[1]) + len(b[1]) for a, b in pairs)
    assert wrong <= total / 100, f"{name}: {wrong} of {total} detections have no partner"


def detection(kind: str, images: int, classes: int, n_priors: int = P) -> Case:
    make, options = KINDS[kind]
    priors_xyxy = PRIORS_XYXY if n_priors == P else random_boxes(n_priors, 0)
    priors = PRIORS if n_priors == P else xy_to_cxcy(priors_xyxy)
    small = (images, classes) == (1, 21)

    def inputs():
        pred_offsets, pred_logits = make(images, classes, priors)
        return Inputs(pred_offsets=pred_offsets, pred_logits=pred_logits, priors_cxcywh=priors, priors_xyxy=priors_xyxy)

    def predictions(x):
        return x.pred_offsets, x.pred_logits, x.priors_cxcywh

    def fallback(x):
        return plain.postprocess_detections(*predictions(x), *options)

    contenders = {
        "ssd_ext": lambda x: ssd_ext.postprocess_detections(*predictions(x), options),
        "plain_pytorch": fallback,
        "torchvision": partial(peers.detect, peers.ssd(classes, options)),
        "torchvision_no_cap": partial(peers.detect, peers.ssd(classes, options, P)),
        "tutorial": partial(tutorial.detect, options=options),
        "compiled_fallback": compiled(fallback) if small else "compiled only for 1 image with 21 classes",
    }
    if n_priors != P:
        contenders["torchvision"] = "keeps only 400 of the candidates of a class; with all of them it takes minutes"
    if kind == "untrained" and images > 1:
        contenders["torchvision_no_cap"] = "takes seconds per image, measured only for 1 image"
    if kind == "untrained" and not small:
        contenders["tutorial"] = "takes up to a minute per image, measured only for 1 image with 21 classes"
    return Case(
        "detection",
        kind,
        {"images": images, "classes": classes} | ({} if n_priors == P else {"priors": n_priors}),
        inputs,
        contenders,
        check,
        once=("tutorial",) if kind == "untrained" else (),
        one_thread=kind != "untrained" or (images < 32 and classes < 81),
        facts=lambda x: {"candidates": round(candidates(x.pred_logits, options.min_score))},
    )


CASES = [detection(kind, images, classes) for kind in KINDS for classes in (21, 81) for images in (1, 8, 32)]
CHARTS = [(2, 21), (4, 21), (16, 21), (8, 2), (8, 6), (8, 41), (8, 161)]  # images, classes
HUGE = [detection("trained", 8, 91, 100_000), detection("untrained", 256, 21)]
test_detection = each(CASES, charts=[detection("trained", *sizes) for sizes in CHARTS], huge=HUGE)
