"""Arguments for every op that has a kernel: what the CPU and the CUDA kernels are compared on.

`python cases.py SANITIZER [KERNEL ...]` compares them under a sanitizer, in a process of its own, and then
runs these kernels of selftest.cu: see test_sanitizers.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import adversarial as adv
import torch
from torch import Tensor


def box_iou() -> Iterator[tuple[Tensor, Tensor]]:
    for n in adv.SIZES:
        for seed, m in enumerate((0, 1, 2, 3, 33, 64, 65)):
            for boxes in (adv.grid_boxes, adv.hostile_boxes):
                a, b = boxes(n, seed), boxes(m, seed + 100)
                yield a, b
                yield adv.sliced(a), adv.sliced(b)
    for m in (4, 5, 8, 127, 511, 512, 513, 1030):  # around the tiles of both kernels
        for dtype in (torch.float32, torch.float64):
            yield adv.hostile_boxes(33, m).to(dtype), adv.hostile_boxes(m, 1).to(dtype)
    for dtype in (torch.float16, torch.bfloat16):
        yield adv.hostile_boxes(40, 1).to(dtype), adv.random_boxes(130, 2).to(dtype)
    yield adv.random_boxes(2), adv.random_boxes(adv.N_PRIORS, 1)
    yield adv.random_boxes(adv.N_PRIORS, 1), adv.random_boxes(2)
    # A view that starts in the middle of a 16-byte unit.
    yield adv.random_boxes(9).flatten()[1:33].view(8, 4), adv.random_boxes(5).flatten()[3:19].view(4, 4)


CASES = {"box_iou": box_iou}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def same_bits(actual, expected) -> bool:
    """Equal dtypes, shapes and bits, -0 and 0 told apart; tensors or tuples of them."""
    if isinstance(expected, Tensor):
        actual, expected = [actual], [expected]
    return len(actual) == len(expected) and all(
        a.dtype == e.dtype and a.shape == e.shape and torch.equal(_bits(a), _bits(e))
        for a, e in zip(actual, expected, strict=True)
    )


def compare(kernels: dict[str, object]) -> int:
    """Compares all ops of these namespaces with plain PyTorch; returns the number of calls."""
    from ssd_ext import reference

    calls = 0
    for op, cases in CASES.items():
        for arguments in cases():
            expected = getattr(reference, op)(*arguments)
            for name, namespace in kernels.items():
                if not same_bits(getattr(namespace, op)(*arguments), expected):
                    shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in arguments]
                    raise AssertionError(f"{op}: {name} differs from plain PyTorch for {shapes}")
                calls += 1
    return calls


def main(sanitizer: str, *selftests: str) -> None:
    from cuda_on_cpu import build

    kernels = {"CUDA": build.load(sanitizer)}
    if sanitizer == "address":
        torch.ops.load_library(build.library(build.CPU_KERNELS, sanitizer))
        kernels["CPU"] = torch.ops.ssd_ext
    calls = compare(kernels)
    for kernel in selftests:
        build.load_selftest(sanitizer)(torch.arange(64, dtype=torch.int32), kernel)
    print("done,", calls, "calls")


if __name__ == "__main__":
    main(*sys.argv[1:])
