"""The bits that were written down on one machine come out on this one, see golden.py."""

import json

import golden
import pytest
from cuda_cases import OnGPU, needs_gpu
from cuda_on_cpu import cases

import ssd_ext

KEPT = json.loads(golden.FILE.read_text())


def test_every_op_with_a_kernel_is_there():
    assert KEPT.keys() == cases.CASES.keys()


@pytest.mark.skipif(ssd_ext._load.missing["cpu"] is not None, reason="no compiled CPU kernels")
@pytest.mark.parametrize("op", cases.CASES)
def test_cpu(op):
    assert golden.hashed(op) == KEPT[op]


@needs_gpu
@pytest.mark.parametrize("op", cases.CASES)
def test_gpu(op):
    assert golden.hashed(op, OnGPU()) == KEPT[op]
