"""Hard negatives of a batch; torchvision's SSD sorts twice.

.venv/bin/python -m pytest benchmarks -k select_hard_negatives-32
"""

from typing import NamedTuple

import peers
import torch
import tutorial
from harness import Case, close, each, ours
from inputs import P, generator

from ssd_ext import LossOptions


class Inputs(NamedTuple):
    loss: torch.Tensor  # (B, P)
    positive: torch.Tensor  # (B, P)


def select_hard_negatives(images: int) -> Case:
    def inputs():
        g = generator(2)
        return Inputs(torch.rand(images, P, generator=g) * 8, torch.rand(images, P, generator=g) < 0.002)

    def check(name, got, expected):
        if name == "tutorial":  # returns the losses, not their positions
            loss = inputs().loss.to(got.device)
            got, expected = got.sort().values, loss[expected].sort().values
        close(0)(name, got, expected)

    def by(select):
        options = LossOptions()
        return lambda x: select(x.loss, x.positive, options.neg_pos_ratio, options.min_negatives)

    contenders = {
        **ours("select_hard_negatives", by),
        "torchvision": lambda x: peers.select_hard_negatives(x.loss, x.positive),
        "tutorial": lambda x: tutorial.hardest(x.loss, x.positive),
    }
    return Case("ops", "select_hard_negatives", {"images": images}, inputs, contenders, check)


test_op = each([select_hard_negatives(32)], charts=[select_hard_negatives(images) for images in (1, 2, 4, 8, 16)])
