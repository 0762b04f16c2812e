"""Detection ops for SSD-type detectors: C++ and CUDA kernels, and plain PyTorch that gives the same answers."""

from ssd_ext._load import load_libraries

load_libraries()  # first: a library brings the schemas of its ops

from ssd_ext import ops  # noqa: E402
from ssd_ext._info import Info, info  # noqa: E402

__all__ = ["Info", "info"]
for _module in ops.MODULES:
    globals().update({name: getattr(_module, name) for name in _module.__all__})
    __all__ += _module.__all__
