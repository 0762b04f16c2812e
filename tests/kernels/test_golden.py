"""The bits that were written down on one machine come out on this one, see golden.py."""

import golden
import pytest
from compare import OnGPU, needs_gpu
from ops import OPS

import ssd_ext


@pytest.mark.skipif(ssd_ext._load.missing["cpu"] is not None, reason="no compiled CPU kernels")
@pytest.mark.parametrize("op", OPS)
def test_cpu(op):
    assert golden.hashed(op) == OPS[op].golden


@needs_gpu
@pytest.mark.parametrize("op", OPS)
def test_gpu(op):
    assert golden.hashed(op, OnGPU()) == OPS[op].golden
