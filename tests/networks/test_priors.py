from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from ssd.networks.priors import PRESETS, PriorSpec, find_spec, make_priors

MAPS = (38, 19, 10, 5, 3, 1)
COUNTS = (5776, 2166, 600, 150, 36, 4)
STRIDES = (8, 16, 32, 64, 100, 300)


def tutorial_loop(clamp: bool = True) -> torch.Tensor:
    """The tutorial's rule as one loop over aspect ratios, where ratio 1 brings the extra square along."""
    scales = [0.1, 0.2, 0.375, 0.55, 0.725, 0.9]
    few, many = [1.0, 2.0, 0.5], [1.0, 2.0, 3.0, 0.5, 0.333]
    numbers = []
    for k, cells in enumerate(MAPS):
        extra = sqrt(scales[k] * scales[k + 1]) if k < 5 else 1.0
        for cell in range(cells * cells):
            row, column = divmod(cell, cells)
            centre = [(column + 0.5) / cells, (row + 0.5) / cells]
            for ratio in few if k in (0, 4, 5) else many:
                numbers.append([*centre, scales[k] * sqrt(ratio), scales[k] / sqrt(ratio)])
                if ratio == 1.0:
                    numbers.append([*centre, extra, extra])
    priors = torch.FloatTensor(numbers)
    return priors.clamp_(0, 1) if clamp else priors


def caffe_loop(min_sizes: list[int], max_sizes: list[int]) -> torch.Tensor:
    """Caffe's rule in pixels: each ratio is followed by its inverse."""
    numbers = []
    for k, cells in enumerate(MAPS):
        small, extra = min_sizes[k] / 300, sqrt(min_sizes[k] / 300 * (max_sizes[k] / 300))
        for row in range(cells):
            for column in range(cells):
                centre = [(column + 0.5) * STRIDES[k] / 300, (row + 0.5) * STRIDES[k] / 300]
                numbers += [[*centre, small, small], [*centre, extra, extra]]
                for ratio in (2,) if k in (0, 4, 5) else (2, 3):
                    wide, narrow = small * sqrt(ratio), small / sqrt(ratio)
                    numbers += [[*centre, wide, narrow], [*centre, narrow, wide]]
    return torch.tensor(numbers, dtype=torch.float64).clamp(0, 1).float()


def test_tutorial_has_the_bits_of_the_tutorial() -> None:
    assert torch.equal(make_priors("tutorial"), tutorial_loop())
    assert torch.equal(make_priors(), tutorial_loop())


def test_clamp_changes_twenty_tutorial_priors() -> None:
    changed = (make_priors() != tutorial_loop(clamp=False)).any(1)
    assert changed.sum() == 20
    # Sizes only: the centres of the tutorial's cells lie inside the image.
    assert torch.equal(make_priors()[:, :2], tutorial_loop(clamp=False)[:, :2])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("caffe_voc", [30, 60, 111, 162, 213, 264, 315]), ("caffe_coco", [21, 45, 99, 153, 207, 261, 315])],
)
def test_caffe(name: str, sizes: list[int]) -> None:
    priors = make_priors(name)
    # One rounding of the centre more or less in float64: at most the last bit of float32.
    torch.testing.assert_close(priors, caffe_loop(sizes[:-1], sizes[1:]), rtol=1.2e-7, atol=0)
    assert torch.equal(priors[:, 2:], caffe_loop(sizes[:-1], sizes[1:])[:, 2:])
    # The ninth stride of 32 pixels ends at 304 of 300 pixels, and the clamp takes its centre along.
    assert priors[5776 + 2166 : 5776 + 2166 + 600, 0].max() == 1


def test_torchvision_has_the_bits_of_torchvision() -> None:
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=list(STRIDES),
    )
    expected = generator._grid_default_boxes([[n, n] for n in MAPS], [300, 300])
    assert torch.equal(make_priors("torchvision"), expected)
    assert make_priors("torchvision")[:, :2].max() > 1  # centres are not clamped there


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name: str) -> None:
    priors, spec = make_priors(name), PRESETS[name]
    assert priors.shape == (8732, 4)
    assert priors.dtype == torch.float32
    assert priors.is_contiguous()
    assert priors[:, 2:].min() > 0
    assert priors[:, 2:].max() <= 1
    assert tuple(n * n * b for n, b in zip(spec.maps, spec.boxes_per_cell, strict=True)) == COUNTS
    start = 0
    for cells, boxes, count in zip(spec.maps, spec.boxes_per_cell, COUNTS, strict=True):
        of_map = priors[start : start + count].view(cells, cells, boxes, 4)
        assert (of_map == of_map[:, :1, :1])[..., 1].all()  # the row gives y
        assert (of_map == of_map[:1, :, :1])[..., 0].all()  # the column gives x
        assert (of_map == of_map[:1, :1])[..., 2:].all()  # all cells hold the same shapes
        start += count


def test_layout_of_your_own() -> None:
    spec = PriorSpec(scales=(0.5,), extra_scales=(0.7,), ratios=((4.0,),), cells=(2.0,), maps=(2,), clamp="none")
    shapes = [[0.5, 0.5], [0.7, 0.7], [1.0, 0.25]]
    centres = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert torch.equal(make_priors(spec), torch.tensor([c + s for c in centres for s in shapes]))
    assert find_spec(spec) is spec


def test_clamp_none_keeps_what_reaches_beyond_the_image() -> None:
    assert torch.equal(make_priors(replace(PRESETS["tutorial"], clamp="none")), tutorial_loop(clamp=False))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="'voc'"):
        make_priors("voc")
    with pytest.raises(ValueError, match=r"clamp.*'xyxy'"):
        replace(PRESETS["tutorial"], clamp="xyxy")
    with pytest.raises(ValueError, match="scales has 2 entries for 6 maps"):
        replace(PRESETS["tutorial"], scales=(0.1, 0.2))
