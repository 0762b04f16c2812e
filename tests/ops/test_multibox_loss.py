import adversarial as adv
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import ssd_ext
from ops import match_priors, select_hard_negatives
from ops.multibox_loss import inputs as random_inputs
from ops.multibox_loss import oracle
from ssd_ext import LossOptions
from ssd_ext._boxes import cxcywh_to_xyxy
from ssd_ext._op import plain
from ssd_ext.ops.multibox_loss import Batch

# The op itself has the signature of plain PyTorch, and returns match and selected too.
IMPLEMENTATIONS = pytest.mark.parametrize(
    "multibox_loss", [plain.multibox_loss, torch.ops.ssd_ext.multibox_loss], ids=["plain", "op"]
)
BACKWARD = pytest.mark.parametrize(
    "backward",
    [plain.multibox_loss_backward, torch.ops.ssd_ext.multibox_loss_backward],
    ids=["plain", "op"],
)
OPTIONS = pytest.mark.parametrize(
    "options",
    [
        LossOptions(),
        LossOptions(0.3, 1.5, "smooth_l1", "bipartite"),
        LossOptions(0.5, 2.0, "l1", "bipartite", 5, 1.0, 0.5),
        LossOptions(0.6, 0.0, "smooth_l1", min_negatives=2),
    ],
    ids=["tutorial", "paper", "min_negatives", "no ratio"],
)
TUTORIAL = LossOptions()
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 against float64


def sample(counts, n_priors=40, n_classes=5, seed=0, grid=False):
    """pred_offsets, pred_logits, boxes, labels, row_splits, priors_cxcywh."""
    tensors = list(random_inputs(counts, n_priors, n_classes, seed))
    if grid:
        tensors[2] = adv.grid_boxes(sum(counts), seed + 1)
        tensors[5] = adv.to_cxcywh(adv.grid_boxes(n_priors, seed + 2))
    return tensors


def to(device, tensors, dtype=None):
    return [x.to(device, dtype if x.is_floating_point() else None) for x in tensors]


def autograd_loss(inputs, match, selected, options):
    """Both losses from PyTorch's own functions, given the match and the selected negatives."""
    pred_offsets, pred_logits, boxes, labels, row_splits, priors = inputs
    n_pos = max(1, int((match >= 0).sum()))
    conf, loc = pred_logits.new_zeros(()), pred_offsets.new_zeros(())
    for i in range(len(match)):
        positive = match[i] >= 0
        rows = int(row_splits[i]) + match[i][positive]
        target = torch.zeros_like(match[i], dtype=torch.int64)
        target[positive] = labels[rows]
        counts = positive | selected[i]
        conf = conf + F.cross_entropy(pred_logits[i][counts], target[counts], reduction="sum") / n_pos
        wanted = plain.encode_boxes(boxes[rows], priors[positive], options.center_variance, options.size_variance)
        if options.loc_loss == "l1":
            loc = loc + F.l1_loss(pred_offsets[i][positive], wanted, reduction="sum") / (4 * n_pos)
        else:
            loc = loc + F.smooth_l1_loss(pred_offsets[i][positive], wanted, reduction="sum") / n_pos
    return conf, loc


@IMPLEMENTATIONS
@OPTIONS
@pytest.mark.parametrize("counts", adv.BATCHES.values(), ids=adv.BATCHES)
def test_equals_the_oracle(multibox_loss, options, counts, device):
    for seed, grid in enumerate((False, True)):
        inputs = sample(counts, seed=seed, grid=grid)
        conf, loc, n_pos = oracle(*inputs, *options)
        for tensors in (to(device, inputs), [adv.sliced(x) for x in to(device, inputs)]):
            actual = multibox_loss(*tensors, *options)
            assert [x.dtype for x in actual[:3]] == [torch.float32, torch.float32, torch.int64]
            assert_close(torch.stack(actual[:2]).cpu(), torch.tensor([conf, loc]), **CLOSE)
            assert actual[2].item() == n_pos


@IMPLEMENTATIONS
@pytest.mark.parametrize("n_priors", adv.SIZES)
@pytest.mark.parametrize("n_classes", [1, 2, 21])
def test_sizes(multibox_loss, n_priors, n_classes, device):
    counts = (0, 0) if n_classes == 1 else (3, 0)
    inputs = sample(counts, n_priors, n_classes) if n_classes > 1 else sample(counts, n_priors, 2)
    inputs = (inputs[0], inputs[1][..., :n_classes], *inputs[2:])
    conf, loc, n_pos = oracle(*inputs, *TUTORIAL)
    actual = multibox_loss(*to(device, inputs), *TUTORIAL)
    assert_close(torch.stack(actual[:2]).cpu(), torch.tensor([conf, loc]), **CLOSE)
    assert actual[2].item() == n_pos
    assert actual[3].shape == actual[4].shape == (2, n_priors)


@IMPLEMENTATIONS
@OPTIONS
def test_match_and_selection(multibox_loss, options, device):
    """Constant logits: every negative ties, the lowest priors are taken; the match is as in match_priors."""
    inputs = to(device, sample((3, 0, 12), n_priors=65, grid=True))
    inputs[1].fill_(0.25)
    match, selected = multibox_loss(*inputs, *options)[3:]
    assert (match.dtype, selected.dtype) == (torch.int32, torch.bool)
    _, _, boxes, _, row_splits, priors = (x.cpu() for x in inputs)
    assert torch.equal(
        match.cpu(), match_priors.oracle(boxes, row_splits, cxcywh_to_xyxy(priors), options.threshold, options.matching)
    )
    expected = select_hard_negatives.oracle(
        torch.zeros(match.shape), match.cpu() >= 0, options.neg_pos_ratio, options.min_negatives
    )
    assert torch.equal(selected.cpu(), expected)


@IMPLEMENTATIONS
def test_negatives_are_selected_by_their_loss_against_background(multibox_loss, device):
    inputs = to(device, sample((2, 2), n_priors=65, n_classes=4))
    # cross entropies against background rise with the prior, 0.05 apart
    inputs[1].zero_()[..., 0] = -torch.arange(65, device=device) * 0.1
    _, _, _, match, selected = multibox_loss(*inputs, *TUTORIAL)
    assert (match >= 0).any(dim=1).all()
    loss = torch.arange(65.0).expand(2, 65)
    assert torch.equal(selected.cpu(), select_hard_negatives.oracle(loss, match.cpu() >= 0, 3, 0))


@IMPLEMENTATIONS
@BACKWARD
@OPTIONS
def test_gradients(multibox_loss, backward, options, device):
    """The closed form against autograd through PyTorch's own loss functions, at the size of SSD300 too."""
    for n_priors, n_classes in ((adv.N_PRIORS, 21), (40, 3)):
        inputs = to(device, sample((3, 0, 8), n_priors, n_classes))
        conf, loc, n_pos, match, selected = multibox_loss(*inputs, *options)
        leaves = [x.clone().requires_grad_() for x in inputs[:2]]
        expected = autograd_loss([*leaves, *inputs[2:]], match, selected, options)
        assert_close((conf, loc), tuple(x.detach() for x in expected), **CLOSE)
        weights = torch.tensor([2.0, -3.0], device=device)
        (weights[0] * expected[0] + weights[1] * expected[1]).backward()
        rest = (*inputs, match, selected, n_pos, *options)
        ours = backward(weights[0], weights[1], *rest)
        assert ours[0].any()
        assert ours[1].any()
        assert_close(ours, tuple(x.grad for x in leaves), rtol=1e-5, atol=1e-8)
        assert not ours[1][~(selected | (match >= 0))].any()
        assert not ours[0][match < 0].any()


@OPTIONS
def test_gradcheck(options, device):
    inputs = to(device, sample((2, 0, 3), n_priors=20, n_classes=3), torch.float64)

    def loss(pred_offsets, pred_logits):
        return ssd_ext.multibox_loss(pred_offsets, pred_logits, *inputs[2:], options)[:2]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs[:2]], fast_mode=True)


def test_gradients_of_one_loss_alone(device):
    """The other one was not used: its gradient is None, and counts as 0."""
    tensors = [x.to(device) for x in sample((3, 0, 2))]
    pred = [x.requires_grad_() for x in tensors[:2]]
    losses = ssd_ext.multibox_loss(*tensors)[:2]
    for used, other in ((0, 1), (1, 0)):
        alone = torch.autograd.grad(losses[used], pred, retain_graph=True)
        both = torch.autograd.grad(losses[used] + 0 * losses[other], pred, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
        assert alone[1 - used].count_nonzero() > 0
        assert alone[used].count_nonzero() == 0


def test_public_function_passes_every_option_on(device):
    inputs = to(device, sample((3, 0, 12), n_priors=65))
    for options in (TUTORIAL, LossOptions(0.3, 1.0, "smooth_l1", "bipartite", 4, 0.3, 0.4)):
        ours = ssd_ext.multibox_loss(*inputs, options)
        assert_close(ours, torch.ops.ssd_ext.multibox_loss(*inputs, *options)[:3], rtol=0, atol=0)


@pytest.mark.parametrize("counts", [(0, 0), (0,), ()])
@pytest.mark.parametrize("value", [None, adv.NAN, adv.INF])
def test_without_positives_the_loss_is_exactly_zero(counts, value, device):
    inputs = to(device, sample(counts))
    if value is not None:
        for x in inputs[:2]:
            x.fill_(value)
    leaves = [x.requires_grad_() for x in inputs[:2]]
    conf, loc, n_pos = ssd_ext.multibox_loss(*inputs)
    assert (conf.item(), loc.item(), n_pos.item()) == (0, 0, 0)
    (conf + loc).backward()
    for x in leaves:
        assert x.grad.shape == x.shape
        assert not x.grad.any()


@IMPLEMENTATIONS
def test_a_batch_is_its_images(multibox_loss, device):
    """Many images are shared out to threads, of few the rows are."""
    counts = (3, 0, 5, 1) * 5
    inputs = to(device, sample(counts, n_priors=700))
    conf, loc, n_pos, match, selected = multibox_loss(*inputs, *TUTORIAL)
    sums = torch.zeros(2, dtype=torch.float64)
    first = 0
    for i, count in enumerate(counts):
        objects, image = slice(first, first + count), slice(i, i + 1)
        alone = *(x[image] for x in inputs[:2]), *(x[objects] for x in inputs[2:4]), adv.pack((count,)).to(device)
        *losses, n, its_match, its_selected = multibox_loss(*alone, inputs[5], *TUTORIAL)
        assert torch.equal(its_match, match[image])
        assert torch.equal(its_selected, selected[image])
        sums += torch.stack(losses).cpu() * n.cpu()
        first += count
    assert_close((sums / n_pos.cpu()).float(), torch.stack([conf, loc]).cpu(), **CLOSE)


@IMPLEMENTATIONS
def test_min_negatives_lets_empty_images_teach(multibox_loss, device):
    inputs = to(device, sample((0, 0)))
    conf, loc, n_pos, _, selected = multibox_loss(*inputs, *LossOptions(min_negatives=4))
    assert selected.sum(dim=1).tolist() == [4, 4]
    ce = F.cross_entropy(inputs[1].flatten(0, 1), torch.zeros(80, dtype=torch.int64, device=device), reduction="none")
    assert_close(conf, ce.view(2, 40).topk(4).values.sum(), **CLOSE)  # the divisor is 1
    assert (loc.item(), n_pos.item()) == (0, 0)
    leaves = [x.requires_grad_() for x in inputs[:2]]
    conf, loc, _ = ssd_ext.multibox_loss(*inputs, LossOptions(min_negatives=4))
    (conf + loc).backward()
    expected = F.cross_entropy(inputs[1][selected], torch.zeros(8, dtype=torch.int64, device=device), reduction="sum")
    assert_close(leaves[1].grad, torch.autograd.grad(expected, leaves[1])[0], **CLOSE)
    assert not leaves[0].grad.any()


@IMPLEMENTATIONS
def test_degenerate_objects_and_padding_change_nothing(multibox_loss, device):
    inputs = to(device, sample((2, 0, 3)))
    expected = multibox_loss(*inputs, *TUTORIAL)
    pred_offsets, pred_logits, boxes, labels, _, priors = inputs
    bad = torch.tensor(adv.NOT_BOXES, device=device)
    ones = torch.ones(len(bad), dtype=torch.int64, device=device)
    # after the objects of the first image, in an image of their own, and as padding with labels that do not exist
    boxes = torch.cat([boxes[:2], bad, bad, boxes[2:], bad, cxcywh_to_xyxy(priors)[:3]])
    labels = torch.cat([labels[:2], ones, ones, labels[2:], ones * 10**9, ones[:3] * -7])
    row_splits = adv.pack((2 + len(bad), len(bad), 3)).to(device)
    actual = multibox_loss(pred_offsets, pred_logits, boxes, labels, row_splits, priors, *TUTORIAL)
    assert_close(actual, expected, rtol=0, atol=0)


@IMPLEMENTATIONS
def test_a_label_out_of_range_is_no_index_out_of_range(multibox_loss, device):
    inputs = to(device, sample((5,)))
    inputs[3].copy_(torch.tensor([-1, 5, 10**12, -(10**12), 2]))
    result = multibox_loss(*inputs, *TUTORIAL)
    assert result[0].isfinite()
    rest = (*inputs, *result[3:], result[2], *TUTORIAL)
    one = torch.ones((), device=device)
    assert all(x.isfinite().all() for x in torch.ops.ssd_ext.multibox_loss_backward(one, one, *rest))


@IMPLEMENTATIONS
@pytest.mark.parametrize("where", ["positive", "hard negative"])
@pytest.mark.parametrize("value", [adv.NAN, adv.INF, -adv.INF])
def test_not_finite_logits_follow_cross_entropy(multibox_loss, where, value, device):
    inputs = to(device, sample((2, 3)))
    match = multibox_loss(*inputs, *TUTORIAL)[3]
    image, prior = ((match >= 0) if where == "positive" else (match < 0)).nonzero()[3].tolist()
    inputs[1][image, prior, 0] = value  # the logit of background: for a negative -inf is an infinite loss
    conf, _, _, match, selected = multibox_loss(*inputs, *TUTORIAL)
    leaves = [x.clone().requires_grad_() for x in inputs[:2]]
    expected, _ = autograd_loss([*leaves, *inputs[2:]], match, selected, TUTORIAL)
    assert_close(conf, expected.detach(), **CLOSE, equal_nan=True)
    if where == "hard negative":
        assert selected[image, prior]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@OPTIONS
def test_dtypes(dtype, options, device):
    """Half is computed in float32 and rounded once, in the gradients; float64 stays."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = to(device, sample((3, 0, 12), n_priors=65), wide)
    inputs[:2] = (x.to(dtype) for x in inputs[:2])
    result = torch.ops.ssd_ext.multibox_loss(*inputs, *options)
    expected = torch.ops.ssd_ext.multibox_loss(*to(device, inputs, wide), *options)
    assert_close(result, expected, rtol=0, atol=0)
    assert result[0].dtype == result[1].dtype == wide
    grads = []
    for tensors in (inputs, to(device, inputs, wide)):
        leaves = [x.clone().requires_grad_() for x in tensors[:2]]
        conf, loc, *_ = torch.ops.ssd_ext.multibox_loss(*leaves, *tensors[2:], *options)
        (conf * 64 + loc).backward()
        grads.append([x.grad for x in leaves])
    assert [x.dtype for x in grads[0]] == [dtype, dtype]
    assert_close(grads[0], [x.to(dtype) for x in grads[1]], rtol=0, atol=0)


def test_boxes_and_priors_take_the_dtype_of_the_predictions(device):
    inputs = to(device, sample((1,), n_priors=2))
    inputs[2] = torch.tensor([[0, 0, 1, 1]], dtype=torch.float64, device=device)
    # The IoU of the second prior is a little less than the threshold; in float32 it is 1/2.
    inputs[5] = torch.tensor([[0.5, 0.5, 1, 1], [0.5, 0.25, 1, 0.5 - 1e-12]], dtype=torch.float64, device=device)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    assert ssd_ext.multibox_loss(*inputs)[2].item() == 2
    assert ssd_ext.multibox_loss(*wide)[2].item() == 1


def test_predictions_of_two_dtypes(device):
    inputs = to(device, sample((3, 0, 2)))
    expected = ssd_ext.multibox_loss(inputs[0], inputs[1].bfloat16().float(), *inputs[2:])
    inputs[1] = inputs[1].bfloat16()
    leaves = [x.requires_grad_() for x in inputs[:2]]
    result = ssd_ext.multibox_loss(*inputs)
    assert_close(result, expected, rtol=0, atol=0)
    (result[0] + result[1]).backward()
    assert [x.grad.dtype for x in leaves] == [torch.float32, torch.bfloat16]


def test_autocast_changes_nothing(device):
    inputs = to(device, sample((3, 0, 2)))
    expected = ssd_ext.multibox_loss(*inputs)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert_close(ssd_ext.multibox_loss(*inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pred_offsets", {"pred_offsets": torch.zeros(2, 40, 5)}),
        ("pred_logits", {"pred_logits": torch.zeros(2, 40)}),
        ("boxes", {"boxes": torch.zeros(4, 5)}),
        ("labels", {"labels": torch.ones(3, dtype=torch.int64)}),
        ("labels must be in 1..4", {"labels": torch.tensor([1, 2, 3, 0])}),
        ("labels must be in 1..4", {"labels": torch.tensor([1, 2, 3, 5])}),
        ("row_splits", {"row_splits": adv.pack((4,))}),
        ("row_splits", {"row_splits": adv.pack((3, 2))}),
        ("priors_cxcywh", {"priors_cxcywh": torch.zeros(39, 4)}),
        ("loc_loss", {"options": LossOptions(loc_loss="l2")}),
        ("matching", {"options": LossOptions(matching="best")}),
        ("neg_pos_ratio", {"options": LossOptions(neg_pos_ratio=-1)}),
        ("priors_xyxy must be", {"priors_xyxy": torch.zeros(3, 4)}),
        ("min_negatives", {"options": LossOptions(min_negatives=-1)}),
        ("variances", {"options": LossOptions(center_variance=0.0)}),
    ],
)
def test_bad_input_is_named(name, change):
    with pytest.raises(ValueError, match=name):
        ssd_ext.multibox_loss(**{**Batch(*sample((1, 3)))._asdict(), **change})
