"""How the network runs: on which device, in which precision and memory layout, and whether it is compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssd.runtime.processes import local_rank

Placed = TypeVar("Placed", bound=nn.Module | Tensor)


def pick_device(name: str | None = None) -> torch.device:
    """Finds the device to run on.

    Args:
        name: such as "cpu" or "cuda:1". None: the first GPU (under torchrun, the GPU of this process), or the CPU if
            there is no GPU.

    Raises:
        ValueError: torch does not know the name or cannot use the device.
    """
    if name is None:
        name = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without that backend
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("device 'meta' cannot be used: it holds no data")
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch's operations run on one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def same_bits(enabled: bool) -> Iterator[None]:
    """Lets torch use only algorithms that give the same bits in every run, if enabled.

    An operation of which torch has no such algorithm warns and runs all the same. cuBLAS reads its setting from the
    environment when it is first used in the process.

    Source: PyTorch's notes on reproducibility.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # every element is written before it is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tells whether the device multiplies bfloat16 matrices in hardware. On other devices autocast is slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    # torch before 2.13 has no public get_capabilities.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, enabled: bool | None = None, fp16: bool = False) -> torch.autocast:
    """Makes an autocast context for a device.

    Args:
        device: the device of the forward pass.
        enabled: whether to use bfloat16. None: if `has_fast_bfloat16(device)`.
        fp16: use float16 instead, whatever `enabled` is.
    """
    if fp16:
        return torch.autocast(device.type, dtype=torch.float16)
    if enabled is None:
        enabled = has_fast_bfloat16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def place(module_or_images: Placed, device: torch.device) -> Placed:
    """Moves a network or images to a device in channels_last, the fastest layout for convolutions.

    Args:
        module_or_images: a module, which is changed in place; or a tensor (B, 3, H, W).
        device: the target. The copy of a tensor in pinned memory is asynchronous.

    Returns:
        The module, or the tensor on the device.
    """
    how = {"device": device, "memory_format": torch.channels_last, "non_blocking": True}
    return module_or_images.to(**how)  # type: ignore[call-overload]  # torch does not declare this call of Module.to


def compile_network(network: nn.Module, **how: bool) -> None:
    """Sets up a network in place to be compiled at its first call.

    One op is compiled right away, so that a missing compiler is reported before the long work.

    Args:
        network: any module with parameters.
        how: options of `torch.compile`.

    Raises:
        ValueError: nothing can be compiled here, for example because there is no C++ compiler.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=next(network.parameters()).device))
    except Exception as error:  # a class of torch._inductor.exc, which depends on the version of torch
        raise ValueError(f"compile: {str(error).strip().splitlines()[0]}") from None
    network.compile(**how)
