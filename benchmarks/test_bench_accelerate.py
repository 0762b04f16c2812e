"""Loss and detection of torchvision's SSD300, accelerated and plain, on predictions like those of a trained network.

.venv/bin/python -m pytest benchmarks/test_bench_accelerate.py -k 32-images-21

The work after the network in `forward`, with torchvision's anchors in pixels: matching and `compute_loss`, without and
with gradients, and `postprocess_detections`.
"""

from functools import partial

import peers
import torch
from harness import Case, close, each
from inputs import Inputs, objects, trained_like
from test_bench_detection import check as same_detections
from test_bench_loss import with_gradients

from ssd import accelerate
from ssd.boxes import cxcy_to_xy
from ssd.networks.priors import make_priors

PRIORS = make_priors("torchvision")
ANCHORS = cxcy_to_xy(PRIORS) * peers.SIDE


def predictions(x):
    return {"bbox_regression": x.pred_offsets, "cls_logits": x.pred_logits}


def loss(model, x):
    targets = [{"boxes": b, "labels": n} for b, n in zip(x.box_lists, x.label_lists, strict=True)]
    losses = model.compute_loss(targets, predictions(x), [x.priors_xyxy] * len(targets))
    return losses["classification"], losses["bbox_regression"]


def detect(model, x):
    size, images = int(peers.SIDE), len(x.pred_logits)
    found = model.postprocess_detections(predictions(x), [x.priors_xyxy] * images, [(size, size)] * images)
    return [(d["boxes"] / size, d["labels"], d["scores"]) for d in found]


def case(op: str, images: int, classes: int) -> Case:
    def inputs():
        x = objects(images, classes, 1, 20)
        offsets, logits = (p.requires_grad_("backward" in op) for p in trained_like(images, classes, PRIORS))
        boxes = [b * peers.SIDE for b in x.box_lists]
        return Inputs(
            pred_offsets=offsets, pred_logits=logits, priors_xyxy=ANCHORS, box_lists=boxes, label_lists=x.label_lists
        )

    plain, ours = peers.ssd(classes), accelerate(peers.ssd(classes))
    if op == "detection":
        pair = partial(detect, ours), partial(detect, plain)
    else:
        form = with_gradients if "backward" in op else torch.no_grad()
        pair = form(partial(loss, ours)), form(partial(peers.loss, plain))
    contenders = dict(zip(("ssd_ext", "torchvision"), pair, strict=True))
    check = same_detections if op == "detection" else close(1e-5)
    return Case("accelerate", op, {"images": images, "classes": classes}, inputs, contenders, check, graphs=())


CASES = [
    case(op, images, classes)
    for op, classes in (("loss", 21), ("loss, forward and backward", 21), ("detection", 21), ("detection", 91))
    for images in (1, 32)
]
test_accelerate = each(CASES)
