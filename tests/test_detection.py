"""Detections of a batch as lists; tests/test_drop_in.py compares them with the tutorial."""

import pytest
import torch

from ssd.detection import Found, bounded, detect, unpad
from ssd.runtime.packed import Packed
from ssd_ext import DetectionOptions


def test_what_was_found_in_pixels():
    found = Found(torch.tensor([[-0.5, 0.25, 0.5, 2.0]]), torch.tensor([1]), torch.tensor([0.5]))
    assert found.in_pixels(200, 100).boxes.tolist() == [[0, 25, 100, 100]]
    both = Packed.join([Packed(found, torch.tensor([0, 1]))] * 2).columns
    assert both.in_pixels(torch.tensor([200, 20]), torch.tensor([100, 10])).boxes[1].tolist() == [0, 2.5, 10, 10]


def test_an_image_without_detections_has_one_row_of_background():
    """And is no longer than there are candidates, however many are asked for."""
    logits = torch.full((2, 3, 4), -20.0)
    logits[..., 0] = 20
    logits[1, 2] = torch.tensor([0.0, 0, 9, 0])
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.4, 0.4]])
    boxes, labels, scores = detect(torch.zeros(2, 3, 4), logits, priors, 0.5, 0.45, top_k=10**9)
    assert (boxes[0].tolist(), labels[0].tolist(), scores[0].tolist()) == ([[0, 0, 1, 1]], [0], [0])
    assert labels[1].tolist() == [2]
    torch.testing.assert_close(boxes[1], torch.tensor([[0.3, 0.3, 0.7, 0.7]]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nms_thresh": 0.5}, TypeError, "no option nms_thresh; there are min_score, .*max_log_scale"),
        ({"min_score": 50}, ValueError, "min_score must be from 0 to 1, got 50"),
        ({"top_k": None}, ValueError, "top_k must not be None"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        detect(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.full((3, 4), 0.5), pre_nms_top_k=None, **options)


def test_padding_and_boxes_that_are_nan_are_left_out():
    boxes = torch.arange(24.0).view(2, 3, 4)
    boxes[0, 0, 1] = torch.nan
    labels, scores = torch.arange(6).view(2, 3), torch.rand(2, 3)
    first, second = unpad((boxes, labels, scores, torch.tensor([2, 0])))
    assert first.boxes.tolist() == [[4, 5, 6, 7]]
    assert first.labels.tolist() == [1]
    assert first.scores.tolist() == [scores[0, 1]]
    assert len(second.labels) == 0


def test_top_k_is_bounded_by_the_candidates():
    assert bounded(DetectionOptions(top_k=10), 8732, 21).top_k == 10
    assert bounded(DetectionOptions(top_k=10**9), 8732, 21).top_k == 8732 * 20
