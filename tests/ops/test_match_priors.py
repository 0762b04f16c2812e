from functools import partial

import adversarial as adv
import pytest
import torch

import ssd_ext
from ops import box_iou
from ops.match_priors import oracle
from ssd_ext._op import plain

IMPLEMENTATIONS = pytest.mark.parametrize(
    "match_priors", [plain.match_priors, ssd_ext.match_priors], ids=["plain", "public"]
)
UNIT, LEFT, FAR = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (5.0, 5.0, 6.0, 6.0)
MODES = pytest.mark.parametrize("mode", ["per_prior", "bipartite"])


def check(match_priors, boxes, row_splits, priors, threshold, mode, device):
    expected = oracle(boxes, row_splits, priors, threshold, mode)
    inputs = [x.to(device) for x in (boxes, row_splits, priors)]
    actual = match_priors(*inputs, threshold, mode)
    assert actual.dtype == torch.int32
    assert torch.equal(actual.cpu(), expected)
    assert torch.equal(match_priors(*map(adv.sliced, inputs), threshold, mode).cpu(), expected)
    return expected


@IMPLEMENTATIONS
@MODES
@pytest.mark.parametrize("counts", adv.BATCHES.values(), ids=adv.BATCHES)
def test_ragged_batches(match_priors, mode, counts, device):
    row_splits = adv.pack(counts)
    for seed, n_priors in enumerate((0, 1, 33, 65)):
        for make in (partial(adv.grid_boxes, cells=4), adv.grid_boxes, adv.random_boxes, adv.hostile_boxes):
            boxes, priors = make(sum(counts), seed), make(n_priors, seed + 50)
            check(match_priors, boxes, row_splits, priors, 0.5, mode, device)


@IMPLEMENTATIONS
@MODES
@pytest.mark.parametrize("n_priors", adv.SIZES)
def test_sizes(match_priors, mode, n_priors, device):
    for n_objects in (0, 1, 33):
        boxes, priors = adv.grid_boxes(n_objects, cells=8), adv.grid_boxes(n_priors, 1, cells=8)
        check(match_priors, boxes, adv.pack((n_objects,)), priors, 0.5, mode, device)


@IMPLEMENTATIONS
@MODES
def test_all_priors_of_ssd300(match_priors, mode, device):
    boxes, priors = adv.grid_boxes(4), adv.grid_boxes(adv.N_PRIORS, 1)
    match = check(match_priors, boxes, adv.pack((1, 0, 3)), priors, 0.5, mode, device)
    assert (match >= 0).sum() > 100


@IMPLEMENTATIONS
def test_the_first_of_equal_priors_is_forced_however_far_they_lie_apart(match_priors, device):
    """One image with so many pairs that threads share its priors."""
    boxes, few = adv.random_boxes(30), adv.random_boxes(100, 1)
    once = plain.match_priors(boxes, adv.pack((30,)), few, 1.0, "per_prior")
    priors = few.repeat(90, 1)
    match = match_priors(boxes.to(device), adv.pack((30,)).to(device), priors.to(device), 1.0, "per_prior").cpu()
    assert torch.equal(match[:, :100], once)
    assert (match[:, 100:] == -1).all()


@IMPLEMENTATIONS
@MODES
def test_rows_past_the_last_split_are_ignored(match_priors, mode, device):
    boxes, priors, row_splits = adv.grid_boxes(9), adv.grid_boxes(40, 1), adv.pack((2, 0, 3))
    expected = check(match_priors, boxes[:5], row_splits, priors, 0.5, mode, device)
    boxes[5:] = priors[:4]  # they would match perfectly
    check(match_priors, boxes, row_splits, priors, 0.5, mode, device)
    assert torch.equal(oracle(boxes, row_splits, priors, 0.5, mode), expected)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("a", "b", "iou"), adv.AT_THRESHOLD)
def test_threshold_is_inclusive(match_priors, a, b, iou, device):
    # The first prior is forced; the second has the IoU of the threshold, the third nothing.
    boxes, priors = torch.tensor([a], device=device), torch.tensor([a, b, FAR], device=device)
    row_splits = adv.pack((1,)).to(device)
    assert match_priors(boxes, row_splits, priors, iou, "per_prior").tolist() == [[0, 0, -1]]
    above = float(torch.tensor(iou).nextafter(torch.tensor(2.0)))
    assert match_priors(boxes, row_splits, priors, above, "per_prior").tolist() == [[0, -1, -1]]


@IMPLEMENTATIONS
def test_threshold_is_compared_in_the_compute_dtype(match_priors, device):
    # 3/10 in float32 is above 0.3 in float64 (but not above 0.3 in float32): no rounding may decide.
    row_splits = adv.pack((1,)).to(device)
    for dtype in (torch.float32, torch.float64):
        priors = torch.tensor([[0, 0, 10, 1], [0, 0, 3, 1]], dtype=dtype, device=device)
        assert match_priors(priors[:1], row_splits, priors, 0.3, "per_prior").tolist() == [[0, 0]]


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("boxes", "priors", "per_prior", "bipartite"),
    [
        pytest.param([UNIT, UNIT], [UNIT, FAR], [1, -1], [0, -1], id="equal objects, one prior"),
        pytest.param([UNIT], [UNIT, UNIT], [0, 0], [0, 0], id="equal priors are both over the threshold"),
        pytest.param([LEFT], [(0.0, 0.0, 1.0, 4.0), (0.0, 0.0, 4.0, 1.0)], [0, -1], [0, -1], id="lowest prior forced"),
        pytest.param([UNIT, UNIT], [UNIT, UNIT], [1, 0], [0, 1], id="rule 1 takes the lowest object"),
        pytest.param([UNIT, UNIT], [UNIT, LEFT, FAR], [1, 0, -1], [0, 1, -1], id="bipartite gives each its own"),
        pytest.param([FAR, UNIT], [UNIT, UNIT], [1, 1], [1, 1], id="an object without overlap claims nothing"),
        pytest.param([adv.NOT_BOXES[0], UNIT], [adv.NOT_BOXES[0], UNIT], [-1, 1], [-1, 1], id="degenerate"),
    ],
)
def test_rules(match_priors, boxes, priors, per_prior, bipartite, device):
    boxes, priors = torch.tensor(boxes, device=device), torch.tensor(priors, device=device)
    row_splits = adv.pack((len(boxes),)).to(device)
    assert match_priors(boxes, row_splits, priors, 0.5, "per_prior").tolist() == [per_prior]
    assert match_priors(boxes, row_splits, priors, 0.5, "bipartite").tolist() == [bipartite]


@IMPLEMENTATIONS
@MODES
@pytest.mark.parametrize("threshold", [0.0, 0.05, 1.0])
def test_a_match_always_overlaps(match_priors, mode, threshold, device):
    boxes, priors, row_splits = adv.hostile_boxes(12, 3), adv.hostile_boxes(65, 4), adv.pack((5, 0, 7))
    match = check(match_priors, boxes, row_splits, priors, threshold, mode, device)
    iou = box_iou.oracle(boxes, priors)
    for image, start in enumerate((0, 5, 5)):
        for prior in (match[image] >= 0).nonzero()[:, 0].tolist():
            assert iou[start + int(match[image, prior]), prior] > 0


@IMPLEMENTATIONS
@pytest.mark.parametrize("seed", range(5))
def test_bipartite_chains(match_priors, seed, device):
    """Few priors for many alike objects: every round moves objects on to their next best prior."""
    boxes, priors = adv.grid_boxes(50, seed, cells=3), adv.grid_boxes(64, seed + 9, cells=3)
    match = check(match_priors, boxes, adv.pack((20, 30)), priors, 1.0, "bipartite", device)
    owners = [match[i][match[i] >= 0] for i in (0, 1)]
    assert [len(x.unique()) for x in owners] == [20, 30]


@IMPLEMENTATIONS
def test_equal_priors_are_taken_from_the_lowest_on(match_priors, device):
    """However many of them a kernel looks at together."""
    boxes, priors = torch.tensor([LEFT] * 70, device=device), torch.tensor([FAR] + [UNIT] * 600, device=device)
    row_splits = adv.pack((70,)).to(device)
    per_prior = match_priors(boxes, row_splits, priors, 0.75, "per_prior")
    assert per_prior.tolist() == [[-1, 69] + [-1] * 599]
    bipartite = match_priors(boxes, row_splits, priors, 0.75, "bipartite")
    assert bipartite.tolist() == [[-1, *range(70)] + [-1] * 530]


@IMPLEMENTATIONS
def test_equal_objects_take_their_best_priors(match_priors, device):
    box, priors = adv.random_boxes(1), adv.random_boxes(600, 1)
    match = check(match_priors, box.repeat(20, 1), adv.pack((20,)), priors, 1.0, "bipartite", device)
    best = box_iou.oracle(box, priors)[0].topk(20).indices
    assert match[0, best].tolist() == list(range(20))


@IMPLEMENTATIONS
@MODES
def test_many_images(match_priors, mode, device):
    boxes, priors = adv.grid_boxes(200, 1, cells=8), adv.grid_boxes(130, 2, cells=8)
    check(match_priors, boxes, adv.pack((1, 0, 3, 4) * 25), priors, 0.5, mode, device)


@IMPLEMENTATIONS
@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64], ids=str)
def test_dtypes(match_priors, mode, dtype, device):
    boxes, priors = adv.random_boxes(9, 1) * 64, adv.random_boxes(65, 2) * 64
    boxes = boxes.to(dtype)
    for priors_dtype in {dtype, torch.float32, torch.float64}:
        check(match_priors, boxes, adv.pack((4, 5)), priors.to(priors_dtype), 0.3, mode, device)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("boxes", {"boxes": torch.zeros(3, 5)}),
        ("priors_xyxy", {"priors_xyxy": torch.zeros(4)}),
        ("row_splits", {"row_splits": torch.tensor([0, 9], dtype=torch.int32)}),
        ("row_splits", {"row_splits": torch.tensor([0, 2, 1, 3], dtype=torch.int32)}),
        ("row_splits", {"row_splits": torch.tensor([0, 3])}),
        ("mode", {"mode": "best"}),
    ],
)
def test_bad_input_is_named(name, change):
    good = {"boxes": adv.grid_boxes(3), "row_splits": adv.pack((1, 2)), "priors_xyxy": adv.grid_boxes(5)}
    with pytest.raises(ValueError, match=name):
        ssd_ext.match_priors(**{**good, **change})
