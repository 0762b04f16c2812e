from functools import partial

import adversarial as adv
import pytest
import torch
from torch.testing import assert_close

import ssd_ext
from ops.box_coding import decode_oracle, encode_oracle
from ssd_ext._boxes import CENTER_VARIANCE, SIZE_VARIANCE, compute_dtype
from ssd_ext._op import plain

VARIANCES = CENTER_VARIANCE, SIZE_VARIANCE
DEFAULTS = {"center_variance": CENTER_VARIANCE, "size_variance": SIZE_VARIANCE}
plain_encode = partial(plain.encode_boxes, **DEFAULTS)
plain_decode = partial(plain.decode_boxes, **DEFAULTS, max_log_scale=None)
ENCODE = pytest.mark.parametrize("encode", [plain_encode, ssd_ext.encode_boxes], ids=["plain", "public"])
DECODE = pytest.mark.parametrize("decode", [plain_decode, ssd_ext.decode_boxes], ids=["plain", "public"])
BOTH = pytest.mark.parametrize(
    ("encode", "decode"),
    [(plain_encode, plain_decode), (ssd_ext.encode_boxes, ssd_ext.decode_boxes)],
    ids=["plain", "public"],
)
# exp and log of PyTorch, of numpy and of the kernels are each right to one unit in the last place of float32, so at
# most 2.4e-7 apart; measured on the data here: 1.8e-7 in encode_boxes, 0.8e-7 in decode_boxes, of 1 + |value|.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@ENCODE
@pytest.mark.parametrize("n", adv.SIZES)
def test_encode_equals_the_oracle(encode, n, device):
    for seed, boxes in enumerate((adv.grid_boxes(3 * n), adv.random_boxes(3 * n), adv.hostile_boxes(3 * n))):
        boxes = boxes.view(3, n, 4)
        priors = adv.to_cxcywh(adv.random_boxes(n, seed))
        expected = encode_oracle(boxes, priors, *VARIANCES)
        actual = encode(boxes.to(device), priors.to(device)).cpu()
        assert_close(actual[..., :2], expected[..., :2], rtol=0, atol=0, equal_nan=True)  # no log there: the same bits
        assert_close(actual, expected, **CLOSE, equal_nan=True)
        again = encode(adv.sliced(boxes.to(device)), adv.sliced(priors.to(device))).cpu()
        assert_close(again, actual, rtol=0, atol=0, equal_nan=True)


@DECODE
@pytest.mark.parametrize("n", adv.SIZES)
def test_decode_equals_the_oracle(decode, n, device):
    for seed in range(3):
        pred_offsets = torch.randn(2, n, 4, generator=adv.generator(seed)) * 3
        priors = adv.to_cxcywh(adv.random_boxes(n, seed))
        actual = decode(pred_offsets.to(device), priors.to(device)).cpu()
        assert_close(actual, decode_oracle(pred_offsets, priors, *VARIANCES, None), **CLOSE)
        assert torch.equal(decode(adv.sliced(pred_offsets.to(device)), adv.sliced(priors.to(device))).cpu(), actual)
        pred_offsets[..., 2:] = 0  # exp(0) is 1: the rest has to be the same bits
        actual = decode(pred_offsets.to(device), priors.to(device)).cpu()
        assert torch.equal(actual, decode_oracle(pred_offsets, priors, *VARIANCES, None))


@BOTH
@pytest.mark.parametrize(("center", "size"), [VARIANCES, (1.0, 1.0), (0.3, 0.05)])
def test_decode_undoes_encode(encode, decode, center, size, device):
    variances = {"center_variance": center, "size_variance": size}
    boxes, priors = adv.random_boxes(adv.N_PRIORS, 1), adv.to_cxcywh(adv.random_boxes(adv.N_PRIORS, 2))
    boxes, priors = boxes.to(device), priors.to(device)
    assert_close(decode(encode(boxes, priors, **variances), priors, **variances), boxes, rtol=1e-5, atol=1e-5)


@BOTH
def test_a_prior_is_its_own_box(encode, decode, device):
    boxes = adv.grid_boxes(65).to(device)
    priors = adv.to_cxcywh(boxes)
    assert not encode(boxes, priors).any()
    assert torch.equal(decode(torch.zeros_like(boxes), priors), boxes)


@BOTH
def test_known_numbers(encode, decode, device):
    prior = torch.tensor([[0.5, 0.5, 0.25, 0.5]], device=device)
    box = torch.tensor([[0.5, 0.25, 1.0, 1.25]], device=device)  # centre (0.75, 0.75), size (0.5, 1)
    log2 = 0.6931471805599453 / 0.2
    wanted = torch.tensor([[0.25 / 0.025, 0.25 / 0.05, log2, log2]], device=device)
    assert_close(encode(box, prior), wanted)
    assert_close(decode(wanted, prior), box)


@BOTH
def test_any_leading_dimensions(encode, decode, device):
    priors = adv.to_cxcywh(adv.random_boxes(33, 1)).to(device)
    boxes = adv.random_boxes(6 * 33, 2).view(2, 3, 33, 4).to(device)
    for op in (encode, decode):
        whole = op(boxes, priors)
        assert whole.shape == boxes.shape
        for i in range(2):
            for j in range(3):
                assert torch.equal(whole[i, j], op(boxes[i, j], priors))
        assert op(boxes[:, :0], priors).shape == (2, 0, 33, 4)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(encode, decode, dtype, device):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    close = {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else CLOSE
    boxes = adv.grid_boxes(65).to(device, dtype)
    priors = adv.to_cxcywh(adv.grid_boxes(65, 1)).to(device, dtype)
    for actual, oracle in (
        (encode(boxes, priors), encode_oracle(boxes, priors, *VARIANCES)),
        (decode(boxes, priors), decode_oracle(boxes, priors, *VARIANCES, None)),
        (decode(boxes, priors.float()), decode_oracle(boxes, priors.float(), *VARIANCES, None)),
    ):
        assert actual.dtype == wide
        assert_close(actual.cpu(), oracle, **close)


@ENCODE
def test_integer_boxes(encode, device):
    boxes, priors = (adv.grid_boxes(33) * 300).long(), adv.to_cxcywh(adv.random_boxes(33, 1) * 300)
    expected = encode_oracle(boxes, priors, *VARIANCES)
    assert_close(encode(boxes.to(device), priors.to(device)).cpu(), expected, **CLOSE)


@DECODE
def test_not_finite_offsets(decode, device):
    values = torch.tensor([adv.NAN, adv.INF, -adv.INF, 1e4, -1e4])
    pred_offsets = torch.cartesian_prod(values, values, values, values)
    priors = adv.to_cxcywh(adv.grid_boxes(1)).expand(len(pred_offsets), 4)
    for limit in (None, 4.0):
        expected = decode_oracle(pred_offsets, priors, *VARIANCES, limit)
        actual = decode(pred_offsets.to(device), priors.to(device), max_log_scale=limit)
        assert_close(actual.cpu(), expected, **CLOSE, equal_nan=True)


@DECODE
def test_max_log_scale(decode, device):
    prior = torch.tensor([[0.5, 0.5, 1.0, 1.0]], device=device)
    pred_offsets = torch.tensor([[0.0, 0.0, 1000.0, 5.0]], device=device)  # log scales 200 and 1
    assert decode(pred_offsets, prior).isinf().any()
    box = adv.to_cxcywh(decode(pred_offsets, prior, max_log_scale=4.0))
    assert_close(box, torch.tensor([[0.5, 0.5, 54.598150033, 2.718281828]], device=device))


@DECODE
def test_limits_that_are_hardly_numbers(decode, device):
    offsets, priors = torch.randn(9, 4, generator=adv.generator(0)).to(device), adv.random_boxes(9).to(device)
    unlimited = decode(offsets, priors)
    assert torch.equal(decode(offsets, priors, max_log_scale=1e300), unlimited)
    low = decode(offsets, priors, max_log_scale=-1e300)
    assert torch.equal(low[:, :2], low[:, 2:])  # exp gives 0
    with pytest.raises(ValueError, match="max_log_scale must be a number or None, got nan"):
        ssd_ext.decode_boxes(offsets, priors, max_log_scale=float("nan"))
    options = ssd_ext.DetectionOptions(max_log_scale=float("nan"))
    with pytest.raises(ValueError, match="max_log_scale must be"):
        ssd_ext.postprocess_detections(offsets[None], offsets[None, :, :3], priors, options)


def test_gradcheck(device):
    priors = adv.to_cxcywh(adv.random_boxes(5, 1)).to(device, torch.float64)
    boxes = adv.random_boxes(10, 2).view(2, 5, 4).to(device, torch.float64).requires_grad_()
    pred_offsets = torch.randn(2, 5, 4, dtype=torch.float64, generator=adv.generator(0)).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ssd_ext.encode_boxes(x, priors, 0.3, 0.4), boxes)
    assert torch.autograd.gradcheck(lambda x: ssd_ext.decode_boxes(x, priors, 0.3, 0.4), pred_offsets)
    # 0.1 limits some of the log scales and not others
    assert (pred_offsets[..., 2:] * 0.2 > 0.1).any()
    assert (pred_offsets[..., 2:] * 0.2 < 0.1).any()
    assert torch.autograd.gradcheck(lambda x: ssd_ext.decode_boxes(x, priors, max_log_scale=0.1), pred_offsets)


@pytest.mark.parametrize("limit", [None, 0.25])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_closed_form_gradients(dtype, limit, device):
    """The closed forms against autograd through the formulas."""
    priors = adv.to_cxcywh(adv.random_boxes(33, 1)).to(device, dtype)
    boxes = adv.random_boxes(66, 2).view(2, 33, 4).to(device, dtype).requires_grad_()
    pred_offsets = torch.randn(2, 33, 4, generator=adv.generator(0)).to(device, dtype).requires_grad_()
    grad = torch.randn(2, 33, 4, generator=adv.generator(1)).to(device, compute_dtype(boxes))
    for name, x, rest in (("encode_boxes", boxes, VARIANCES), ("decode_boxes", pred_offsets, (*VARIANCES, limit))):
        (expected,) = torch.autograd.grad(getattr(plain, name)(x, priors, *rest), x, grad)
        (ours,) = torch.autograd.grad(getattr(torch.ops.ssd_ext, name)(x, priors, *rest), x, grad)
        assert ours.dtype == dtype
        assert_close(ours, expected)


@pytest.mark.parametrize("op", [ssd_ext.encode_boxes, ssd_ext.decode_boxes])
def test_bad_input_is_named(op):
    priors = torch.rand(5, 4)
    with pytest.raises(ValueError, match=r"(boxes|pred_offsets) must be"):
        op(torch.zeros(4, 4), priors)
    with pytest.raises(ValueError, match="priors_cxcywh"):
        op(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="variances"):
        op(torch.zeros(5, 4), priors, size_variance=0.0)
