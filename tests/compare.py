"""How results of kernels are compared; and, as a program, the kernels on all cases in tests/ops.

`python compare.py gpu` compares a GPU's with the CPU's, also under compute-sanitizer. `python compare.py address|thread
[KERNEL ...]` runs the CUDA sources on the CPU under a sanitizer, in a process of its own, and then these kernels of
cuda_on_cpu/selftest.cu: see kernels/test_sanitizers.py.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parents[1]))
    if sys.argv[1] == "address":  # before ssd_ext, which would define the schemas that the library brings
        from cuda_on_cpu import build

        torch.ops.load_library(build.library(build.CPU_KERNELS, "address"))

from ops import OPS, Undecided

import ssd_ext
from ssd_ext._op import plain

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")

# exp and log: all kernels give the same bits. Plain PyTorch has other functions, which like ours are right to one unit
# in the last place: two such units (2.4e-7, 4.4e-16) of a size up to 10 remain, also where a difference is near 0.
TOLERANCE = {torch.float32: 2.4e-6, torch.float64: 4.4e-15, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def takes_library_math(op: str, arguments: tuple) -> bool:
    """Whether exp and log are those of the library, in float64: no contract makes them equal on two devices.

    Those of CUDA are right to one unit in the last place too, and so as near to plain PyTorch as those of the CPU.
    """
    doubles = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in arguments)
    return doubles and OPS[op].has_exp_or_log and not OPS[op].only_float32


def bits(tensor: Tensor) -> Tensor:
    """The bytes of the numbers, for a NaN those of one NaN: its sign and payload differ between processors."""
    tensor = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    if tensor.is_floating_point():
        tensor[tensor.isnan()] = math.nan
    return tensor.view(torch.uint8)


def as_tuple(result: Tensor | Iterable[Tensor]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def same_bits(actual, expected) -> bool:
    """Equal dtypes, shapes and bits, -0 and 0 told apart; tensors or tuples of them."""
    return not differences(actual, expected)


def differences(actual, expected, close: bool = False) -> list[str]:
    """One line for each result that has other bits, or, if `close`, is further away than TOLERANCE."""
    lines = []
    for i, (a, e) in enumerate(zip(as_tuple(actual), as_tuple(expected), strict=True)):
        if a.dtype != e.dtype or a.shape != e.shape:
            lines.append(f"result {i} is {a.dtype} {tuple(a.shape)}, not {e.dtype} {tuple(e.shape)}")
            continue
        its, expected_bits = bits(a), bits(e)
        if torch.equal(its, expected_bits):  # as nearly always; to look at each number takes ten times as long
            continue
        wrong = (its != expected_bits).view(a.numel(), a.element_size()).any(dim=1)
        if close:
            if e.dtype == torch.bool:
                # Hard negatives whose losses differ by a rounding may rank either way. Their number is the same, and
                # with it the loss, which is compared too.
                a, e = a.sum(dim=1), e.sum(dim=1)
            limit = TOLERANCE.get(e.dtype, 0)
            wrong = ~torch.isclose(a.double(), e.double(), rtol=limit, atol=limit, equal_nan=True).view(-1)
        if wrong.any():
            most = (a.double() - e.double()).abs().view(-1)[wrong].nan_to_num(math.inf, math.inf).max()
            lines.append(f"result {i}, {e.dtype}: {int(wrong.sum())} of {wrong.numel()} differ, by up to {most:.3g}")
    return lines


def check(op: str, arguments: tuple, kernels: dict[str, object], one_library: bool = True) -> None:
    """Fails unless the op of all these namespaces gives the bits of plain PyTorch.

    With exp or log: unless they all give the same bits, close to those of plain PyTorch. Not `one_library`: the
    kernels run on two devices, and where they take exp and log from their libraries each is close to plain PyTorch.
    """
    expected = getattr(plain, op)(*arguments)
    results = {name: getattr(namespace, op)(*arguments) for name, namespace in kernels.items()}
    first, bits = "plain PyTorch", expected
    near, equal = {}, results
    if OPS[op].has_exp_or_log:
        first, bits = next(iter(results.items()))
        near = {first: bits}
        if not one_library and takes_library_math(op, arguments):
            near, equal = results, {}
    lines = []
    for name, result in {} if isinstance(arguments, Undecided) else near.items():
        lines += [f"{name} and plain PyTorch: {line}" for line in differences(result, expected, close=True)]
    for name, result in equal.items():
        lines += [f"{name} and {first}: {line}" for line in differences(result, bits)]
    if lines:
        shapes = [f"{x.dtype}{list(x.shape)}" if isinstance(x, Tensor) else x for x in arguments]
        raise AssertionError("\n    ".join([f"{op}({', '.join(map(str, shapes))})", *lines]))


def compare(kernels: dict[str, object], ops: Iterable[str] = OPS, one_library: bool = True) -> int:
    """Checks these ops on all their cases, prints every mismatch and fails after the last; returns the calls."""
    calls = mismatches = 0
    for op in ops:
        for arguments in OPS[op].cases():
            try:
                check(op, arguments, kernels, one_library)
            except AssertionError as error:
                print(error, flush=True)
                mismatches += 1
            calls += len(kernels)
    if mismatches:
        raise AssertionError(f"{mismatches} cases differ, after {calls} calls")
    return calls


def same_view(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device, with its strides and at its place in the storage: a plain copy would be aligned."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return storage.to(device, copy=True).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class OnGPU:
    """torch.ops.ssd_ext on the GPU, for arguments and results on the CPU."""

    def __getattr__(self, op):
        def call(*arguments):
            moved = (same_view(x, "cuda") if isinstance(x, torch.Tensor) else x for x in arguments)
            results = as_tuple(getattr(torch.ops.ssd_ext, op)(*moved))
            return tuple(x.cpu() for x in results) if len(results) > 1 else results[0].cpu()

        return call


def compare_gpu(ops: Iterable[str] = OPS) -> int:
    """Compares the kernels of the GPU with those of the CPU, see `compare`."""
    return compare({"CPU": torch.ops.ssd_ext, "GPU": OnGPU()}, ops, one_library=False)


def without_twins(cases: Iterable[tuple]) -> Iterator[tuple]:
    """Cases with float32 alone, and two at most of the same shapes.

    What threads share, and in which order, depends neither on the dtype nor on most numbers.
    """
    seen: Counter[tuple] = Counter()
    for arguments in cases:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        key = tuple((x.dtype, x.shape) for x in tensors)
        seen[key] += 1
        if seen[key] <= 2 and all(x.dtype == torch.float32 for x in tensors if x.is_floating_point()):
            yield arguments


def compare_sanitized(sanitizer: str, selftests: Iterable[str]) -> int:
    """Runs the CUDA sources under "thread", and compares them and the C++ sources under "address"; built with it."""
    from cuda_on_cpu import build

    if sanitizer == "address":
        calls = compare({"CUDA": build.load(sanitizer), "CPU": torch.ops.ssd_ext})
    else:  # plain PyTorch, to compare with, would take longer than they do
        chosen = [(op, arguments) for op in OPS for arguments in without_twins(OPS[op].cases())]
        for op, arguments in chosen:
            getattr(build.load(sanitizer), op)(*arguments)
        calls = len(chosen)
    for kernel in selftests:
        build.load_selftest(sanitizer)(torch.arange(64, dtype=torch.int32), kernel)
    return calls


if __name__ == "__main__":
    where, *selftests = sys.argv[1:]
    if where == "gpu":
        assert "cuda" in ssd_ext.info().kernels["box_iou"], ssd_ext.info()
    print("done,", compare_gpu() if where == "gpu" else compare_sanitized(where, selftests), "calls")
