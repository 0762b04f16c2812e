"""NMS of boxes in clusters of about 20, in one class and in 20 classes.

.venv/bin/python -m pytest benchmarks -k nms-1000
"""

import pytest
import torch
import torchvision
import tutorial
from harness import Case, close, each, ours
from inputs import clustered_boxes
from peers import nms_peers

from ssd_ext import DetectionOptions

MAX_OVERLAP = DetectionOptions().max_overlap
MATRIX = "its matrix of all pairs takes 1.6 GB, and it needs several copies"


def same_up_to_rounding(name, got, expected):
    """1 in 1000 boxes may differ: peers round IoUs differently, and torchvision shifts boxes by their class."""
    both = torch.isin(got, expected).sum()
    wrong, total = len(got) + len(expected) - 2 * int(both), len(expected)
    assert wrong <= total / 1000, f"{name}: {wrong} of {total} kept boxes differ"


def nms(n: int) -> Case:
    def by(nms):
        return lambda x: nms(x.boxes, x.scores, MAX_OVERLAP)

    def of_arrays(nms):
        def call(x):
            if x.boxes.is_cuda:
                pytest.skip("takes only arrays of the CPU")
            try:
                return nms(x.boxes, x.scores, MAX_OVERLAP)
            except ValueError:  # of lsnms
                pytest.skip("refuses the few boxes of the input that are inverted (measured in NMS of many boxes)")

        return call if callable(nms) else nms

    def check(name, got, expected):
        same_up_to_rounding(name, got, expected) if name in others else close(0)(name, got, expected)

    others = {name: of_arrays(peer) for name, peer in nms_peers().items() if name in ("lsnms", "powerboxes")}
    contenders = {
        **ours("nms", by),
        "torchvision": by(torchvision.ops.nms) if n <= 100_000 else "takes minutes",
        "tutorial": MATRIX if n > 5000 else by(tutorial.nms),
        **others,
    }
    return Case("ops", "nms", {"boxes": n}, lambda: clustered_boxes(n, None), contenders, check, graphs=())


def batched_nms(n: int, classes: int = 20) -> Case:
    def by(nms):
        return lambda x: nms(x.boxes, x.scores, x.idxs, MAX_OVERLAP)

    def loop(boxes, scores, idxs, max_overlap):
        kept = []
        for label in range(classes):
            rows = (idxs == label).nonzero()[:, 0]
            kept.append(rows[tutorial.nms(boxes[rows], scores[rows], max_overlap)])
        kept = torch.cat(kept)
        return kept[scores[kept].sort(descending=True).indices]

    def check(name, got, expected):
        same_up_to_rounding(name, got, expected)
        assert name != "plain_pytorch" or torch.equal(got, expected), "plain_pytorch: another order"

    contenders = {
        **ours("batched_nms", by),
        "torchvision": by(torchvision.ops.batched_nms),
        "tutorial": by(loop),
    }
    sizes = {"boxes": n} if classes == 20 else {"boxes": n, "classes": classes}
    return Case("ops", "batched_nms", sizes, lambda: clustered_boxes(n, classes), contenders, check, graphs=())


CASES = [make(n) for make in (nms, batched_nms) for n in (200, 1000, 5000, 20000)]
CHARTS = [make(n) for make in (nms, batched_nms) for n in (500, 2000, 10000)]
test_op = each(CASES, charts=CHARTS, huge=[nms(100_000), nms(1_000_000), batched_nms(1_000_000, 1000)])
