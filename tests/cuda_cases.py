"""The arguments of cuda_on_cpu/cases.py on a real GPU: `python cuda_cases.py`, also under compute-sanitizer."""

import sys
from pathlib import Path

import torch

import ssd_ext

sys.path.insert(0, str(Path(__file__).parent))
from cuda_on_cpu import cases


class OnGPU:
    """torch.ops.ssd_ext on the GPU, for arguments and results on the CPU."""

    def __getattr__(self, op):
        def call(*arguments):
            moved = (x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments)
            result = getattr(torch.ops.ssd_ext, op)(*moved)
            return result.cpu() if isinstance(result, torch.Tensor) else tuple(x.cpu() for x in result)

        return call


if __name__ == "__main__":
    assert "cuda" in ssd_ext.info().kernels["box_iou"], ssd_ext.info()
    print("done,", cases.compare({"CPU": torch.ops.ssd_ext, "GPU": OnGPU()}), "calls")
