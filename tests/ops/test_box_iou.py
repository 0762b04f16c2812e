import adversarial as adv
import pytest
import torch
from torch.testing import assert_close

import ssd_ext
from ops.box_iou import oracle
from ssd_ext._op import plain

IMPLEMENTATIONS = pytest.mark.parametrize("box_iou", [plain.box_iou, ssd_ext.box_iou], ids=["plain", "public"])
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def gradients(a, b, grad=None):
    """Of the public function, in both boxes; of a sum where no gradient is given."""
    a, b = (x.detach().requires_grad_() for x in (a, b))
    iou = ssd_ext.box_iou(a, b)
    return torch.autograd.grad(iou, (a, b), torch.ones_like(iou) if grad is None else grad)


def same(actual, expected):
    assert_close(actual.cpu(), expected, rtol=0, atol=0)


@IMPLEMENTATIONS
@pytest.mark.parametrize("n", adv.SIZES)
def test_equals_the_oracle(box_iou, n, device):
    for seed, m in enumerate((0, 1, 33, 65)):
        for boxes in (adv.grid_boxes, adv.random_boxes, adv.hostile_boxes):
            a, b = boxes(n, seed), boxes(m, seed + 100)
            same(box_iou(a.to(device), b.to(device)), oracle(a, b))
            same(box_iou(adv.sliced(a.to(device)), adv.sliced(b.to(device))), oracle(a, b))


@IMPLEMENTATIONS
def test_all_priors_of_ssd300(box_iou, device):
    a, b = adv.grid_boxes(2), adv.random_boxes(adv.N_PRIORS)
    same(box_iou(a.to(device), b.to(device)), oracle(a, b))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(box_iou, dtype, device):
    a, b = adv.hostile_boxes(40, 1).to(dtype), adv.random_boxes(33, 2).to(dtype)
    result = box_iou(a.to(device), b.to(device))
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    same(result, oracle(a, b))
    mixed = b.to(torch.float32)  # the other argument in float32
    same(box_iou(a.to(device), mixed.to(device)), oracle(a, mixed))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_are_computed_in_float32(box_iou, dtype, device):
    boxes = (adv.grid_boxes(40) * 112).to(dtype)  # areas overflow 8 bits
    result = box_iou(boxes.to(device), boxes.to(device))
    assert result.dtype == torch.float32
    same(result, oracle(boxes, boxes))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_quotients(box_iou, dtype, device):
    for a, b, expected in adv.AT_THRESHOLD:
        a, b = (torch.tensor([x], dtype=dtype, device=device) for x in (a, b))
        assert box_iou(a, b).item() == box_iou(b, a).item() == expected


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_no_box_overlaps_nothing(box_iou, dtype, device):
    bad = torch.tensor(adv.NOT_BOXES, dtype=dtype, device=device)
    if dtype == torch.float64:
        bad = bad[:-1]  # its area is finite there
    good = torch.tensor(adv.ODD_BOXES, dtype=dtype, device=device)
    for result in (box_iou(bad, good), box_iou(good, bad), box_iou(bad, bad)):
        assert not result.any()
        assert not result.signbit().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_of_overlapping_boxes(dtype, device):
    """The closed form against autograd through the formula; on the 1/4 grid sides coincide."""
    for boxes in (lambda n, seed: adv.grid_boxes(n, seed, cells=4), adv.random_boxes):
        a, b = (boxes(n, n).to(device, dtype).requires_grad_() for n in (20, 31))
        grad = torch.randn(20, 31, dtype=dtype, generator=adv.generator(0)).to(device)
        iou = plain.box_iou(a, b)
        expected = torch.autograd.grad(iou, (a, b), torch.where(iou > 0, grad, 0))
        # sums of 20 to 31 terms in another order
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
        assert_close(gradients(a, b, grad), expected, **tolerance)


def test_gradcheck(device):
    # Off the grid and overlapping: differentiable.
    a, b = (adv.random_boxes(n, n).to(device, torch.float64).requires_grad_() for n in (5, 7))
    assert torch.autograd.gradcheck(ssd_ext.box_iou, (a, b))


def test_gradients_in_parts(monkeypatch, device):
    boxes = [adv.random_boxes(n, n).double().to(device).requires_grad_() for n in (17, 9)]
    weights = torch.rand(17, 9, generator=adv.generator(0), dtype=torch.float64).to(device)
    whole = torch.autograd.grad((ssd_ext.box_iou(*boxes) * weights).sum(), boxes)
    monkeypatch.setattr("ssd_ext.ops.box_iou.BACKWARD_PAIRS", 40)  # 4 rows
    parts = torch.autograd.grad((ssd_ext.box_iou(*boxes) * weights).sum(), boxes)
    assert_close(parts, whole)
    for n, m in ((0, 3), (3, 0)):
        none = [adv.random_boxes(k).to(device).requires_grad_() for k in (n, m)]
        assert [g.shape for g in torch.autograd.grad(ssd_ext.box_iou(*none).sum(), none)] == [(n, 4), (m, 4)]


def test_gradient_is_zero_where_nothing_overlaps(device):
    bad = torch.tensor([*adv.NOT_BOXES, (5.0, 5.0, 6.0, 6.0)], device=device)
    good = torch.tensor([(0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0)], device=device)  # they share a side
    for a, b in ((bad, good), (good, bad), (good[:1], good[1:])):
        for grad in gradients(a, b):
            assert not grad.any()


def test_a_bad_box_leaves_the_gradients_of_others_alone(device):
    a, b = adv.random_boxes(6, 1).to(device), adv.random_boxes(9, 2).to(device)
    bad = torch.tensor(adv.NOT_BOXES, device=device)
    expected = gradients(a, b)
    ours = gradients(torch.cat([a, bad]), torch.cat([b, bad]))
    assert_close([ours[0][:6], ours[1][:9]], list(expected))  # sums over more terms
    assert not ours[0][6:].any()
    assert not ours[1][9:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_has_the_dtype_of_the_boxes(dtype, device):
    a, b = (adv.random_boxes(n, n).to(device, dtype) for n in (5, 7))
    expected = gradients(a.float(), b.float())
    assert_close(gradients(a, b), tuple(x.to(dtype) for x in expected), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 5)])
def test_bad_shapes_are_named(shape):
    good = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="boxes1"):
        ssd_ext.box_iou(torch.zeros(shape), good)
    with pytest.raises(ValueError, match="boxes2"):
        ssd_ext.box_iou(good, torch.zeros(shape))


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize(
    "shapes", [((3, 4), (5, 4)), ((2, 3, 4), (2, 5, 4)), ((2, 1, 3, 4), (6, 5, 4)), ((0, 3, 4), (5, 4))], ids=str
)
def test_forms_and_batches_as_in_torchvision(fmt, shapes, device):
    ops = pytest.importorskip("torchvision").ops
    boxes1, boxes2 = (torch.rand(shape, generator=adv.generator(i)).to(device) for i, shape in enumerate(shapes))
    for boxes in (boxes1, boxes2):
        boxes[..., 2:] += 1 if fmt == "xyxy" else 0.1
    corners = (ops.box_convert(boxes, fmt, "xyxy") for boxes in (boxes1, boxes2))
    expected = ops.box_iou(*corners)
    actual = ssd_ext.box_iou(boxes1, boxes2, fmt)
    assert actual.shape == expected.shape
    assert_close(actual, expected)


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="fmt must be one of xyxy, xywh, cxcywh, got 'cxcywhr'"):
        ssd_ext.box_iou(torch.zeros(1, 4), torch.zeros(1, 4), fmt="cxcywhr")


def test_batches_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"boxes1 is \(2, 3, 4\) float32, boxes2 is \(5, 1, 4\) float32"):
        ssd_ext.box_iou(torch.zeros(2, 3, 4), torch.zeros(5, 1, 4))


# Above and below the limits up to which the formula is applied to all images at once.
BATCHES = [(12, 9, 7), (12, 40, 40), (9, 9, 7), (3, 9, 7), (12, 0, 7), (2, 100, 90)]


def hostile_batches(b, n, m, dtype):
    """With boxes that touch, coincide, are infinite, NaN or inverted."""
    first = torch.stack([(adv.grid_boxes, adv.hostile_boxes)[i % 2](n, i) for i in range(b)])
    second = torch.stack([(adv.grid_boxes, adv.hostile_boxes)[i // 2 % 2](m, 100 + i) for i in range(b)])
    return first.to(dtype), second.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_a_batch_equals_its_images(sizes, dtype, monkeypatch, device):
    monkeypatch.setattr("ssd_ext.ops.box_iou.SMALL_PAIRS", 5 * 9 * 7)  # in parts of 5 images
    a, b = (x.to(device) for x in hostile_batches(*sizes, dtype))
    single = torch.stack([ssd_ext.box_iou(*pair) for pair in zip(a, b, strict=True)])
    result = ssd_ext.box_iou(a, b)
    assert result.dtype == single.dtype
    same(result, single.cpu())
    same(ssd_ext.box_iou(a.clone().requires_grad_(), b).detach(), single.cpu())
    same(ssd_ext.box_iou(a[:, None], b)[1, -1], ssd_ext.box_iou(a[1], b[-1]).cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_gradients_of_a_batch_equal_those_of_its_images(sizes, dtype, monkeypatch, device):
    monkeypatch.setattr("ssd_ext.ops.box_iou.SMALL_PAIRS", 5 * 9 * 7)
    a, b = (x.to(device) for x in hostile_batches(*sizes, dtype))
    grad = torch.randn(sizes, generator=adv.generator(0)).to(device, torch.promote_types(dtype, torch.float32))
    single = [gradients(*image) for image in zip(a, b, grad, strict=True)]
    for ours, theirs in zip(gradients(a, b, grad), map(torch.stack, zip(*single, strict=True)), strict=True):
        close(ours, theirs)
    # One image for all: its gradient is the sum.
    ours = gradients(a[:1], b, grad)[0]
    theirs = sum(gradients(a[0], *image)[0].double() for image in zip(b, grad, strict=True))[None]
    close(ours, theirs.to(dtype))


def close(ours, theirs):
    """The same sums of up to 100 terms, perhaps in another order: apart by some roundings of the largest.

    NaN is equal to NaN: a box whose area is a subnormal number has an infinite gradient.
    """
    largest = max(theirs[theirs.isfinite()].abs().tolist(), default=0)
    assert_close(ours, theirs, rtol=0, atol=10 * largest * torch.finfo(ours.dtype).eps, equal_nan=True)


def test_gradients_of_a_batch_are_zero_where_nothing_overlaps(device):
    bad = torch.tensor([*adv.NOT_BOXES, (5.0, 5.0, 6.0, 6.0)], device=device)
    good = torch.tensor([(0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0)], device=device)
    for pair in ((bad, good), (good, bad), (good[:1], good[1:])):
        for grad in gradients(*(boxes.expand(20, *boxes.shape).clone() for boxes in pair)):
            assert not grad.any()


def test_many_small_images_need_no_call_for_each(monkeypatch):
    def fail(*_):
        raise AssertionError("the op was called")

    monkeypatch.setattr("ssd_ext.ops.box_iou.call", fail)
    boxes = adv.random_boxes(5)
    assert ssd_ext.box_iou(boxes.expand(1000, 5, 4), boxes).shape == (1000, 5, 5)
    few = boxes.expand(2, 5, 4).clone().requires_grad_()
    assert ssd_ext.box_iou(few, boxes).requires_grad
    large = adv.random_boxes(100).expand(20, 100, 4).clone()
    for arguments in ((few.detach(), boxes), (large, large), (large.requires_grad_(), large)):
        with pytest.raises(AssertionError, match="the op was called"):
            ssd_ext.box_iou(*arguments)


def test_gradcheck_of_a_batch(device):
    a, b = (torch.stack([adv.random_boxes(n, i) for i in range(3)]) for n in (4, 5))
    a, b = (x.to(device, torch.float64).requires_grad_() for x in (a, b + 0.001))
    assert torch.autograd.gradcheck(ssd_ext.box_iou, (a, b))
    assert torch.autograd.gradgradcheck(ssd_ext.box_iou, (a, b))


@pytest.mark.parametrize("shapes", [((0, 3, 4), (5, 4)), ((2, 0, 3, 4), (1, 5, 4))], ids=str)
def test_an_empty_batch_has_gradients(shapes, device):
    boxes = [torch.rand(shape, device=device).requires_grad_() for shape in shapes]
    grads = torch.autograd.grad(ssd_ext.box_iou(*boxes).sum(), boxes)
    assert [grad.shape for grad in grads] == [x.shape for x in boxes]
    assert not any(grad.any() for grad in grads)


def test_a_graph_gets_the_op(device):
    """Only the op is sure to keep its bits in a graph."""
    a, b = (x.to(device) for x in hostile_batches(12, 9, 7, torch.float32))
    traced = torch.compile(ssd_ext.box_iou, backend="aot_eager", fullgraph=True)
    same(traced(a, b), ssd_ext.box_iou(a, b).cpu())

    class Pairs(torch.nn.Module):
        def forward(self, a, b):
            return ssd_ext.box_iou(a, b)

    graph = torch.export.export(Pairs(), (a, b)).graph
    assert sum(node.target is torch.ops.ssd_ext.box_iou.default for node in graph.nodes) == 12
