import adversarial as adv
import pytest
import torch

import ssd_ext
from ops.select_hard_negatives import oracle
from ssd_ext._op import plain

IMPLEMENTATIONS = pytest.mark.parametrize(
    "select", [plain.select_hard_negatives, ssd_ext.select_hard_negatives], ids=["plain", "public"]
)


def check(select, loss, positive, ratio, min_negatives, device):
    expected = oracle(loss, positive, ratio, min_negatives)
    loss, positive = loss.to(device), positive.to(device)
    actual = select(loss, positive, ratio, min_negatives)
    assert actual.dtype == torch.bool
    assert torch.equal(actual.cpu(), expected)
    assert torch.equal(select(adv.sliced(loss), adv.sliced(positive), ratio, min_negatives).cpu(), expected)
    return expected


def positives(shape, share, seed=0):
    return torch.rand(shape, generator=adv.generator(seed)) < share


@IMPLEMENTATIONS
@pytest.mark.parametrize("n", adv.SIZES)
@pytest.mark.parametrize("n_images", [0, 1, 5])
def test_equals_the_oracle(select, n_images, n, device):
    for seed, share in enumerate((0.0, 0.05, 0.2, 0.6, 1.1)):
        positive = positives((n_images, n), share, seed)
        for loss in (
            adv.hostile_values((n_images, n), seed),
            torch.rand(n_images, n, generator=adv.generator(seed)),
            torch.zeros(n_images, n),
        ):
            for ratio, min_negatives in ((3, 0), (0, 0), (1, 7), (1e9, 0), (0.5, 1000)):
                check(select, loss, positive, ratio, min_negatives, device)


@IMPLEMENTATIONS
def test_all_priors_of_ssd300(select, device):
    shape = (3, adv.N_PRIORS)
    for loss in (adv.hostile_values(shape), torch.rand(shape, generator=adv.generator(1)), torch.full(shape, 3.0)):
        selected = check(select, loss, positives(shape, 0.01), 3, 0, device)
        assert selected.sum() > 100


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        pytest.param([1, 5, 5, 5, 0, 2], [0, 1, 1, 0, 0, 0], id="ties go to the lowest prior"),
        pytest.param([1, 5, adv.NAN, 5, 0, adv.NAN], [0, 0, 1, 0, 0, 1], id="NaN is the largest"),
        pytest.param([adv.INF, adv.NAN, 5, 5, 0, -adv.NAN], [0, 1, 0, 0, 0, 1], id="NaN of either sign"),
        pytest.param([adv.INF, 9, 5, adv.INF, 0, 7], [1, 0, 0, 1, 0, 0], id="infinity"),
        pytest.param([-0.0, 0.0, -0.0, 0.0, 0.0, -1], [1, 1, 0, 0, 0, 0], id="-0 equals 0"),
        pytest.param([-adv.INF, -3, -adv.INF, -2, -adv.INF, -adv.INF], [0, 1, 0, 1, 0, 0], id="negative losses"),
    ],
)
def test_order(select, loss, expected, device):
    loss = torch.tensor([[*loss, 100.0]], device=device)  # the last is the one positive, and the largest
    positive = torch.tensor([[False] * 6 + [True]], device=device)
    assert select(loss, positive, 2, 0).int().tolist() == [[*expected, 0]]


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("n_pos", "ratio", "min_negatives", "n_selected"),
    [
        *[(0, 3, 0, 0), (0, 3, 4, 4), (2, 3, 0, 6), (2, 3, 8, 8), (5, 3, 0, 5), (10, 3, 5, 0), (2, 3, 100, 8)],
        *[(1, 0, 0, 0), (3, 0.5, 0, 2), (3, 0.34, 0, 2), (3, 0.33, 0, 1), (1, 2.999999999, 0, 3), (7, 1 / 7, 0, 1)],
        *[(3, 0.1, 0, 1), (5, 0.2, 0, 1), (5, 0.6, 0, 3), (5, 1e39, 0, 5), (0, 1e39, 0, 0)],
    ],
)
def test_how_many(select, n_pos, ratio, min_negatives, n_selected, device):
    loss = torch.rand(1, 10, generator=adv.generator(0)).to(device)
    positive = (torch.arange(10, device=device) < n_pos)[None]
    selected = select(loss, positive, ratio, min_negatives)
    assert int(selected.sum()) == n_selected
    as_torchvision = torch.arange(len(loss[0])) < ratio * torch.tensor(
        n_pos
    )  # the ranks that its SSD takes, and the tutorial
    assert n_selected == max(min(int(as_torchvision.sum()), 10 - n_pos), min(min_negatives, 10 - n_pos))
    assert not (selected & positive).any()


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(select, dtype, device):
    loss = torch.randn(3, 100, dtype=torch.float64, generator=adv.generator(0))
    loss[:, :50] = 1 + loss[:, :50] * 1e-12  # float64 tells them apart
    check(select, loss.to(dtype), positives((3, 100), 0.1), 3, 0, device)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_neighbouring_numbers_are_told_apart(select, dtype, device):
    step = torch.finfo(dtype).eps
    for sign in (1, -1):
        steps = torch.randperm(100, generator=adv.generator(0)) // 2  # each number twice
        loss = (sign * (1 + steps.double() * step)).to(dtype)[None]
        for n_pos in range(1, 20):
            check(select, loss, torch.arange(100)[None] < n_pos, 1, 0, device)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss", {"loss": torch.zeros(4)}),
        ("loss", {"loss": torch.zeros(2, 4, dtype=torch.int64)}),
        ("positive", {"positive": torch.zeros(2, 3, dtype=torch.bool)}),
        ("positive", {"positive": torch.zeros(2, 4)}),
        ("ratio", {"ratio": -1.0}),
        ("min_negatives", {"min_negatives": -1}),
    ],
)
def test_bad_input_is_named(name, change):
    good = {"loss": torch.zeros(2, 4), "positive": torch.zeros(2, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=name):
        ssd_ext.select_hard_negatives(**{**good, **change})
