"""How kernels are compared (compare.py): what passes, what fails, and what is then said."""

import re

import adversarial as adv
import compare
import pytest
import torch
from ops import OPS

from ssd_ext._op import plain


class Off:
    """Plain PyTorch, with the number in the middle of every floating result some roundings too large."""

    def __init__(self, roundings):
        self.roundings = roundings

    def __getattr__(self, op):
        def call(*arguments):
            results = [x.clone() for x in compare.as_tuple(getattr(plain, op)(*arguments))]
            for x in results:
                if x.is_floating_point() and x.numel():
                    flat = x.view(-1)
                    for _ in range(self.roundings):
                        middle = flat[len(flat) // 2]
                        middle.copy_(middle.nextafter(torch.full_like(middle, torch.inf)))
            return tuple(results) if len(results) > 1 else results[0]

        return call


def kernels(roundings):
    return {"CPU": plain, "GPU": Off(roundings)}


def arguments(op, dtype):
    boxes, priors = adv.random_boxes(40).to(dtype), adv.to_cxcywh(adv.random_boxes(40, 1)).to(dtype)
    return (boxes, priors) if op == "box_iou" else (boxes, priors, 0.1, 0.2)


@pytest.mark.parametrize("one_library", [True, False])
@pytest.mark.parametrize(
    ("op", "dtype"),
    [("box_iou", torch.float32), ("box_iou", torch.float64), ("encode_boxes", torch.float32)],
)
def test_one_changed_bit_fails(op, dtype, one_library):
    compare.check(op, arguments(op, dtype), kernels(0), one_library)
    message = rf"{op}\({dtype}\[40, 4\].*\n    GPU and .*: result 0, {dtype}: 1 of \d+ differ, by up to \d"
    with pytest.raises(AssertionError, match=message):
        compare.check(op, arguments(op, dtype), kernels(1), one_library)


def test_in_float64_exp_and_log_of_two_libraries_may_differ_by_some_roundings():
    two = arguments("encode_boxes", torch.float64)
    compare.check("encode_boxes", two, kernels(4), one_library=False)
    for roundings, one_library in ((4, True), (100, False)):
        with pytest.raises(AssertionError, match=r"result 0, torch\.float64: 1 of 160 differ"):
            compare.check("encode_boxes", two, kernels(roundings), one_library)


def test_nan_in_the_place_of_a_number_fails():
    number, nan = torch.zeros(3), torch.tensor([0.0, torch.nan, 0.0])
    for close in (True, False):
        assert compare.differences(nan, number, close) == ["result 0, torch.float32: 1 of 3 differ, by up to inf"]
        assert bool(compare.differences(nan, -nan.abs(), close)) != close  # -0 is near 0, with other bits
    assert compare.differences(number.double(), number) == ["result 0 is torch.float64 (3,), not torch.float32 (3,)"]


def test_all_mismatches_are_listed(capsys, monkeypatch):
    same = [arguments("box_iou", torch.float32)] * 3
    monkeypatch.setitem(OPS, "box_iou", OPS["box_iou"]._replace(cases=lambda: same))
    assert compare.compare(kernels(0), ["box_iou"]) == 6
    with pytest.raises(AssertionError, match="3 cases differ, after 6 calls"):
        compare.compare(kernels(1), ["box_iou"])
    assert len(re.findall("1 of 1600 differ", capsys.readouterr().out)) == 3


def test_same_view():
    for x in (adv.sliced(torch.rand(3, 4)), torch.rand(9)[1:5], torch.rand(1).expand(6), torch.rand(0, 4)):
        y = compare.same_view(x, "cpu")
        assert torch.equal(x, y)
        assert (x.stride(), x.storage_offset()) == (y.stride(), y.storage_offset())
        assert x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr() or not x.numel()
