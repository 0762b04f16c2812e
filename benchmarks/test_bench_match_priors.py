"""Matching of a batch; torchvision and the tutorial work on one image at a time.

.venv/bin/python -m pytest benchmarks -k match_priors-32
"""

import peers
import torch
import tutorial
from harness import Case, each, ours
from inputs import PRIORS_XYXY, objects

from ssd_ext import LossOptions

COMPILE_TIME = "compiled only for 32 images with 1-20 objects, since each shape is compiled again"


def match_priors(images: int, most: int, fewest: int = 1) -> Case:
    def inputs():
        return objects(images, 21, fewest, most)._replace(labels=None, label_lists=None, priors_xyxy=PRIORS_XYXY)

    def check(name, got, expected):
        # On a GPU it is undefined in torchvision and the tutorial which of two objects gets a prior that both force;
        # compiled code uses fused multiply-add, which changes ties.
        wrong = float((got != expected).float().mean())
        limit = 1e-3 if got.is_cuda and name != "plain_pytorch" else 0
        assert wrong <= limit, f"{wrong:.2%} of the priors have another object"

    def by(match):
        options = LossOptions()
        return lambda x: match(x.boxes, x.row_splits, x.priors_xyxy, options.threshold, options.matching)

    contenders = {
        **ours("match_priors", by),
        "torchvision": lambda x: peers.match(x.box_lists, x.priors_xyxy),
        "tutorial": lambda x: torch.stack([tutorial.match(boxes, x.priors_xyxy) for boxes in x.box_lists]).int(),
    }
    if (images, most) != (32, 20):
        contenders["compiled_fallback"] = COMPILE_TIME
    sizes = {"images": images, "objects each": most if fewest == most else f"{fewest}-{most}"}
    return Case("ops", "match_priors", sizes, inputs, contenders, check)


CASES = [match_priors(images, *counts) for counts in ((20,), (100, 100)) for images in (1, 8, 32)]
CHARTS = [*(match_priors(images, 20) for images in (2, 4, 16)), *(match_priors(8, n, n) for n in (1, 5, 20, 50, 200))]
test_op = each(CASES, charts=CHARTS, huge=[match_priors(64, 500, 500)])
