"""box_iou against torchvision's and against our own fallback, in one process, on equal inputs.

    .venv/bin/python -m pytest benchmarks/test_bench_box_iou.py

Every contender is checked against the fallback before it is timed. Compare medians of one run with each other, not
with those of another machine or another day.
"""

import pytest
import torch
import torchvision

import ssd_ext
from ssd.boxes import cxcy_to_xy
from ssd.priors import make_priors
from ssd_ext import reference

CONTENDERS = {"ssd_ext": ssd_ext.box_iou, "plain_pytorch": reference.box_iou, "torchvision": torchvision.ops.box_iou}


@pytest.mark.parametrize("threads", sorted({1, torch.get_num_threads()}))
@pytest.mark.parametrize("n", [20, 1024, 8732])
@pytest.mark.parametrize("contender", CONTENDERS)
def test_box_iou(benchmark, contender, n, threads):
    priors = cxcy_to_xy(make_priors())  # (8732, 4)
    boxes = priors[torch.randperm(len(priors), generator=torch.Generator().manual_seed(0))[:n]]
    function = CONTENDERS[contender]
    torch.testing.assert_close(function(boxes, priors), reference.box_iou(boxes, priors), rtol=1e-6, atol=0)
    benchmark.group = f"box_iou {n} x 8732, {threads} thread(s)"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark.pedantic(function, (boxes, priors), rounds=15 if n == 8732 else 100, warmup_rounds=3)
    finally:
        torch.set_num_threads(before)
