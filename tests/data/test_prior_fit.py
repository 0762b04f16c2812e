"""Which objects no prior fits."""

import pytest
import torch
from small_datasets import NAMES

from ssd.data import VOCDataset
from ssd.data import prior_fit as fit
from ssd.networks.ssd300 import SSD300

pytestmark = pytest.mark.usefixtures("one_thread")


def test_which_objects_no_prior_fits():
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]])
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.51], [0.4, 0.4, 0.6, 0.49], [0.0, 0.0, 0.01, 0.01]])
    assert fit.without_prior(boxes, priors).tolist() == [False, False, True, True]
    assert fit.without_prior(boxes[:0], priors).shape == (0,)


def test_the_fit_of_a_data_set(voc):
    lines = list(fit.describe_fit(VOCDataset(voc, classes=(*NAMES, "bird")), SSD300(2, width=0.01)))
    side = 300 * (40 / 60 * 10 / 40) ** 0.5  # of the apple tree
    assert f"  apple tree: {side:.0f}, {side:.0f} to {side:.0f}" in lines
    assert sum(line.startswith("  tutorial: ") for line in lines) == 1
    assert not any("bird" in line for line in lines)


def test_many_objects_are_a_sample(voc, monkeypatch):
    monkeypatch.setattr(fit, "SAMPLE", 3)
    assert next(iter(fit.describe_fit(VOCDataset(voc), SSD300(2, width=0.01)))).startswith(
        "of 3 objects, drawn at random from "
    )
