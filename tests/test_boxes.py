from __future__ import annotations

import pytest
import torch

import ssd_ext
from ssd import boxes
from ssd.boxes import decimate
from ssd.networks.priors import make_priors


def random_boxes(n: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values
    return corners.reshape(n, 4)


def test_known_conversions() -> None:
    xy = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    cxcy = torch.tensor([[0.5, 0.75, 0.5, 0.5]])
    assert torch.equal(boxes.xy_to_cxcy(xy), cxcy)
    assert torch.equal(boxes.cxcy_to_xy(cxcy), xy)
    assert torch.equal(boxes.xy_to_cxcy(xy[0]), cxcy[0])


def test_known_offsets() -> None:
    prior = torch.tensor([[0.5, 0.5, 0.25, 0.5]])
    box = torch.tensor([[0.75, 0.25, 0.25, 1.0]])
    # (0.75 - 0.5) / 0.25 * 10, (0.25 - 0.5) / 0.5 * 10, log(1) * 5, log(2) * 5
    expected = torch.tensor([[10.0, -5.0, 0.0, 3.4657359]])
    torch.testing.assert_close(boxes.cxcy_to_gcxgcy(box, prior), expected)
    torch.testing.assert_close(boxes.gcxgcy_to_cxcy(expected, prior), box)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_offsets_invert_and_agree_with_the_ops(batch: tuple[int, ...]) -> None:
    priors = make_priors()
    xy = random_boxes(8732).expand(*batch, 8732, 4)
    cxcy = boxes.xy_to_cxcy(xy)
    offsets = boxes.cxcy_to_gcxgcy(cxcy, priors)
    assert offsets.shape == (*batch, 8732, 4)
    torch.testing.assert_close(offsets, ssd_ext.encode_boxes(xy, priors), rtol=1e-5, atol=1e-5)
    decoded = boxes.gcxgcy_to_cxcy(offsets, priors)
    torch.testing.assert_close(decoded, cxcy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(boxes.cxcy_to_xy(decoded), ssd_ext.decode_boxes(offsets, priors), rtol=1e-5, atol=1e-6)


def test_intersection_and_overlap() -> None:
    set_1 = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.25, 0.5]])
    set_2 = torch.tensor([[0.25, 0.25, 0.75, 0.5], [0.0, 0.0, 0.5, 0.5]])
    # The last box has no area; the second of set_1 touches both boxes of set_2 at an edge or a corner only.
    assert torch.equal(boxes.find_intersection(set_1, set_2), torch.tensor([[0.0625, 0.25], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(
        boxes.find_jaccard_overlap(set_1, set_2),
        torch.tensor([[0.0625 / 0.3125, 1.0], [0.0, 0.0], [0.0, 0.0]]),
    )


def test_overlap_is_box_iou() -> None:
    set_1, set_2 = random_boxes(50, 1), random_boxes(70, 2)
    overlap = boxes.find_jaccard_overlap(set_1, set_2)
    assert torch.equal(overlap, ssd_ext.box_iou(set_1, set_2))
    intersection = boxes.find_intersection(set_1, set_2)
    area_1, area_2 = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (set_1, set_2))
    torch.testing.assert_close(overlap, intersection / (area_1[:, None] + area_2 - intersection))


def test_empty_sets() -> None:
    none, some = torch.zeros(0, 4), random_boxes(3)
    assert boxes.xy_to_cxcy(none).shape == (0, 4)
    assert boxes.cxcy_to_xy(none).shape == (0, 4)
    assert boxes.cxcy_to_gcxgcy(none, none).shape == (0, 4)
    assert boxes.gcxgcy_to_cxcy(none, none).shape == (0, 4)
    assert boxes.find_intersection(none, some).shape == (0, 3)
    assert boxes.find_jaccard_overlap(some, none).shape == (3, 0)


def test_decimate() -> None:
    tensor = torch.arange(2 * 7 * 5).view(2, 7, 5)
    assert torch.equal(decimate(tensor, [None, 3, 2]), tensor[:, [0, 3, 6]][:, :, [0, 2, 4]])
    assert decimate(tensor, [None, 3, 2]).is_contiguous()
    assert torch.equal(decimate(tensor, (None, 1, None)), tensor)
    with pytest.raises(ValueError, match=r"3 dimensions, got \[2, 2\]"):
        decimate(tensor, [2, 2])
    with pytest.raises(ValueError, match=r"got \[1, 0, 1\]"):
        decimate(tensor, [1, 0, 1])
