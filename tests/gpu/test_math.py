"""exp and log of the GPU, of every float there is: the bits of the CPU, which kernels/test_exact_math.py measures."""

import math

import pytest
import torch
from compare import needs_gpu
from cuda_on_cpu import build
from torch import Tensor

import ssd_ext

pytestmark = pytest.mark.skipif(ssd_ext._load.missing["cpu"] is not None, reason="no compiled CPU kernels")

CHUNK = 1 << 20  # floats at once: what is allocated for them is still small enough to be used again


def exp_by(ops, x: Tensor, size: float = 2) -> Tensor:
    """-e^x and e^x of two floats in a row, as half the sizes of boxes from a prior of size 2; of size 1, half of it."""
    pred_offsets = torch.zeros(len(x) // 2, 2, 2, device=x.device)
    pred_offsets[:, 1] = x.view(-1, 2)
    prior = torch.tensor([0.0, 0.0, size, size], device=x.device).expand(len(pred_offsets), 4)
    return ops.decode_boxes(pred_offsets.view(-1, 4), prior, 1.0, 1.0, None)


def half_exp_by(ops, x: Tensor) -> Tensor:
    """-e^x / 2 and e^x / 2, for the floats whose e^x cannot be doubled."""
    return exp_by(ops, x, 1)


def log_by(ops, x: Tensor) -> Tensor:
    """x_i / 2 and log(x_i) of an even number of floats, two in a row, from boxes with a corner at 0."""
    boxes = torch.zeros(len(x) // 2, 2, 2, device=x.device)
    boxes[:, 1] = x.view(-1, 2)
    prior = torch.tensor([0.0, 0.0, 1.0, 1.0], device=x.device).expand(len(boxes), 4)
    return ops.encode_boxes(boxes.view(-1, 4), prior, 1.0, 1.0)


def bits(x: Tensor) -> Tensor:
    """As integers, and one for all NaN: their payloads differ between processors."""
    return x.masked_fill(x.isnan(), math.nan).view(torch.int32)


def count_differences(function, floats: Tensor, device: str, ops) -> int:
    """In how many results the kernels of the CPU and these of a device differ."""
    expected = function(torch.ops.ssd_ext, floats).to(device)
    return int((bits(function(ops, floats.to(device))) != bits(expected)).sum())


FUNCTIONS = pytest.mark.parametrize("function", [exp_by, half_exp_by, log_by])


def floats_of(bits_: range) -> Tensor:
    """The floats with these bits, read as unsigned numbers."""
    return torch.arange(bits_.start, bits_.stop, bits_.step).int().view(torch.float32)


@FUNCTIONS
def test_it_is_exp_or_log(function):
    x = torch.tensor([0.0, 1.0, -87.5, -95.0, 3.0, 7.5]) if function is not log_by else torch.rand(6)
    pair = x.double().view(-1, 2)
    if function is log_by:
        wanted = torch.cat([pair / 2, pair.log()], dim=1)
    else:
        e = pair.exp() if function is exp_by else pair.exp() / 2
        wanted = torch.cat([-e, e], dim=1)
    torch.testing.assert_close(function(torch.ops.ssd_ext, x).double(), wanted, rtol=2**-22, atol=2**-149)


@FUNCTIONS
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_some_floats_by_the_cuda_sources_on_the_cpu(function):
    assert count_differences(function, floats_of(range(0, 2**32 - 2**18, 262_142)), "cpu", build.load()) == 0


@FUNCTIONS
@needs_gpu
def test_every_float(function):
    # Below 88 e^x is less than 2^127, above 89 it is inf.
    bits_ = range(0x42B00000, 0x42B20000) if function is half_exp_by else range(2**32)
    wrong = {}
    for first in bits_[::CHUNK]:
        floats = floats_of(range(first, min(first + CHUNK, bits_.stop)))
        if n := count_differences(function, floats, "cuda", torch.ops.ssd_ext):
            wrong[hex(first)] = n
    assert not wrong
