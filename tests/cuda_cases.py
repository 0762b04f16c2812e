"""The arguments of cuda_on_cpu/cases.py on a real GPU: `python cuda_cases.py`, also under compute-sanitizer."""

import sys
from pathlib import Path

import pytest
import torch

import ssd_ext

sys.path.insert(0, str(Path(__file__).parent))
from cuda_on_cpu import cases

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def same_view(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device, with its strides and at its place in the storage: a plain copy would be aligned."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return storage.to(device, copy=True).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class OnGPU:
    """torch.ops.ssd_ext on the GPU, for arguments and results on the CPU."""

    def __getattr__(self, op):
        def call(*arguments):
            moved = (same_view(x, "cuda") if isinstance(x, torch.Tensor) else x for x in arguments)
            result = getattr(torch.ops.ssd_ext, op)(*moved)
            return result.cpu() if isinstance(result, torch.Tensor) else tuple(x.cpu() for x in result)

        return call


def compare(ops=cases.CASES) -> int:
    """Compares the kernels of the GPU with those of the CPU, see `cases.compare`."""
    return cases.compare({"CPU": torch.ops.ssd_ext, "GPU": OnGPU()}, ops, one_library=False)


if __name__ == "__main__":
    assert "cuda" in ssd_ext.info().kernels["box_iou"], ssd_ext.info()
    print("done,", compare(), "calls")
