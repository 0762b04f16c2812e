"""Where and how the network runs: the device, the precision, the memory layout, compiled or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssd.runtime.processes import local_rank


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or by default the first GPU (under torchrun that of this process), or else the CPU.

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


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; elsewhere autocast would only be slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    # Before get_capabilities became public (torch 2.13) only these told.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, enabled: bool | None = None, fp16: bool = False) -> torch.autocast:
    """A bfloat16 autocast context, by default enabled where `has_fast_bfloat16`; or a float16 one."""
    if fp16:
        return torch.autocast(device.type, dtype=torch.float16)
    if enabled is None:
        enabled = has_fast_bfloat16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def place(module_or_images: nn.Module | Tensor, device: torch.device) -> nn.Module | Tensor:
    """On the device, in channels_last, the layout in which convolutions run fastest on CPU and tensor cores."""
    return module_or_images.to(device=device, memory_format=torch.channels_last, non_blocking=True)


def compile_network(network: nn.Module, **how: bool) -> None:
    """Has a network compiled at its first call; `how` goes to `torch.compile`.

    Raises:
        ValueError: nothing can be compiled here, as for want of a C++ compiler: one op is tried, before the long work.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=next(network.parameters()).device))
    except Exception as error:  # of torch._inductor.exc, in which versions differ
        raise ValueError(f"compile: {str(error).strip().splitlines()[0]}") from None
    network.compile(**how)
