"""Detections of a batch as lists; tests/test_drop_in.py compares them with the tutorial."""

import torch

from ssd.detection import Found
from ssd.runtime.packed import Packed


def test_what_was_found_in_pixels():
    found = Found(torch.tensor([[-0.5, 0.25, 0.5, 2.0]]), torch.tensor([1]), torch.tensor([0.5]))
    assert found.in_pixels(200, 100).boxes.tolist() == [[0, 25, 100, 100]]
    both = Packed.join([Packed(found, torch.tensor([0, 1]))] * 2).columns
    assert both.in_pixels(torch.tensor([200, 20]), torch.tensor([100, 10])).boxes[1].tolist() == [0, 2.5, 10, 10]
