"""IoU with the priors of SSD300: plain PyTorch, torchvision, the tutorial's code.

.venv/bin/python -m pytest benchmarks -k box_iou-1024
"""

import torch
import torchvision
import tutorial
from harness import Case, close, each, ours
from inputs import PRIORS_XYXY, Inputs, P, generator, random_boxes

AS_TORCHVISION = "the same operations as torchvision's, which take seconds and gigabytes for 8732 boxes"


def box_iou(n: int, n_priors: int = P) -> Case:
    def inputs():
        if n_priors != P:
            return Inputs(random_boxes(n, 0), priors_xyxy=random_boxes(n_priors, 1))
        return Inputs(PRIORS_XYXY[torch.randperm(P, generator=generator(0))[:n]], priors_xyxy=PRIORS_XYXY)

    def by(iou):
        return lambda x: iou(x.boxes, x.priors_xyxy)

    contenders = {
        **ours("box_iou", by),
        "torchvision": by(torchvision.ops.box_iou) if n_priors == P else "takes over 10 GB",
        "tutorial": by(tutorial.iou) if n < P else AS_TORCHVISION,
    }
    everywhere = ("ssd_ext", "plain_pytorch", "torchvision")
    return Case("ops", "box_iou", {"boxes": n, "priors": n_priors}, inputs, contenders, close(1e-5), graphs=everywhere)


CASES = [box_iou(n) for n in (20, 1024, P)]
test_op = each(CASES, charts=[box_iou(n) for n in (64, 256, 2048)], huge=[box_iou(40_000, 10_000)])
