"""Where and how the network runs."""

import pytest
import torch
from torch import nn

from ssd.runtime.device import autocast, compile_network, has_fast_bfloat16, pick_device, place


def test_a_device_that_cannot_be_used_is_named():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("toaster", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"'{name}'"):
            pick_device(name)


def test_precision_of_autocast():
    cpu = torch.device("cpu")
    for options, dtype in (
        ({"enabled": True}, torch.bfloat16),
        ({"enabled": False}, torch.float32),
        ({}, torch.bfloat16 if has_fast_bfloat16(cpu) else torch.float32),
        ({"fp16": True}, torch.float16),
    ):
        with autocast(cpu, **options):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert not has_fast_bfloat16(torch.device("meta"))


def test_weights_and_pictures_are_placed_in_channels_last():
    cpu = torch.device("cpu")
    assert place(torch.zeros(2, 3, 4, 4), cpu).is_contiguous(memory_format=torch.channels_last)
    assert place(nn.Conv2d(3, 4, 3), cpu).weight.is_contiguous(memory_format=torch.channels_last)


def test_where_nothing_can_be_compiled_one_line_says_why(monkeypatch):
    def compile(function):
        def fails(*inputs):
            raise RuntimeError("no C++ compiler\nand more")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(ValueError, match=r"no C\+\+ compiler$"):
        compile_network(nn.Linear(2, 2))
