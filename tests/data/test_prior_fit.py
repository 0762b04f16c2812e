"""Which objects no prior fits."""

from dataclasses import replace

import pytest
import torch
from small_datasets import NAMES

from ssd.boxes import cxcy_to_xy
from ssd.data import VOCDataset
from ssd.data import prior_fit as fit
from ssd.networks.priors import PRESETS, linear_layout, make_priors
from ssd.networks.ssd300 import SSD300
from ssd_ext import box_iou

pytestmark = pytest.mark.usefixtures("one_thread")


def test_which_objects_no_prior_fits():
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]])
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.51], [0.4, 0.4, 0.6, 0.49], [0.0, 0.0, 0.01, 0.01]])
    assert fit.without_prior(boxes, priors).tolist() == [False, False, True, True]
    assert fit.without_prior(boxes[:0], priors).shape == (0,)


def test_the_share_of_objects_with_a_prior():
    layout = PRESETS["tutorial"]
    boxes = cxcy_to_xy(make_priors(layout)[:4].repeat(3, 1))
    boxes[9:] = 0.001 * boxes[9:]
    assert fit.share_with_prior(boxes, layout) == 0.75
    assert fit.share_with_prior(boxes, layout, 0.0) == 1
    assert fit.share_with_prior(boxes[:0], layout) == 1


def drawn(n, low, high, seed=0):
    """(n, 4) xyxy: boxes with sides of low to high, anywhere in the image."""
    g = torch.Generator().manual_seed(seed)
    sides = low + (high - low) * torch.rand(n, 2, generator=g)
    corner = torch.rand(n, 2, generator=g) * (1 - sides)
    return torch.cat([corner, corner + sides], 1)


@pytest.mark.parametrize("layout", [*PRESETS.values(), linear_layout((7, 3, 2), 0.1, 0.9, (2.0, 0.5))], ids=str)
def test_the_search_measures_the_best_iou_with_all_priors(layout):
    boxes = torch.cat([drawn(300, 0.02, 1), drawn(300, 0.02, 0.2)])
    best = box_iou(boxes, cxcy_to_xy(make_priors(replace(layout, clamp="wh")))).amax(1)
    expected = best.mean() + (best >= 0.6).float().mean()
    assert fit._Search(boxes, layout, 0.6).value == pytest.approx(float(expected), abs=1e-5)


def test_fitted_priors_reach_objects_that_no_layout_reaches():
    boxes = drawn(2000, 0.03, 0.06)
    boxes[:, 3] += 2 * (boxes[:, 3] - boxes[:, 1])  # three times as high
    layouts = [PRESETS["tutorial"], PRESETS["caffe_coco"]]
    fitted = fit.fit_priors(boxes, layouts)
    shares = [fit.without_prior(boxes, make_priors(layout)).float().mean() for layout in (*layouts, fitted)]
    assert shares[0] > 0.4
    assert shares[1] > 0.3
    assert shares[2] < 0.06
    assert fitted.boxes_per_cell == layouts[1].boxes_per_cell
    assert fit.fit_priors(boxes, layouts) == fitted


def test_no_fitted_prior_is_much_smaller_than_its_cell():
    fitted = fit.fit_priors(drawn(500, 0.02, 0.05), [linear_layout((7, 3, 2), 0.2, 0.9, (2.0, 0.5))])
    assert fitted.scales[0] == pytest.approx(fit.LEAST_CELLS / 7, rel=0.05)
    assert min(fitted.extra_scales[0], fitted.scales[0]) >= fit.LEAST_CELLS / 7


def test_priors_that_fit_already_stay_and_no_objects_give_the_first_layout():
    layout = PRESETS["torchvision"]
    exact = cxcy_to_xy(make_priors(layout))
    assert fit.fit_priors(exact[(exact.min(1).values >= 0) & (exact.max(1).values <= 1)], [layout]) == layout
    assert fit.fit_priors(torch.zeros(0, 4), [layout, PRESETS["tutorial"]]) == layout


def described(dataset):
    return fit.describe_fit(fit.measure_fit(dataset, SSD300(2, width=0.01)), dataset.classes)


def test_the_fit_of_a_data_set(voc):
    lines = list(described(VOCDataset(voc, classes=(*NAMES, "bird"))))
    side = 300 * (40 / 60 * 10 / 40) ** 0.5  # of the apple tree
    assert f"  apple tree: {side:.0f}, {side:.0f} to {side:.0f}" in lines
    assert [line.split(":")[0].strip() for line in lines[-5:]] == [*PRESETS, "auto"]
    assert not any("bird" in line for line in lines)


def test_many_objects_are_a_sample(voc, monkeypatch):
    monkeypatch.setattr(fit, "SAMPLE", 3)
    assert next(iter(described(VOCDataset(voc)))).startswith("of 3 objects, drawn at random from ")
