"""The installation: versions, which kernels exist for which device, and why a library is missing."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from ssd_ext import _load
from ssd_ext._op import SCHEMAS


@dataclass(frozen=True, repr=False)
class Info:
    """Versions, devices and kernels of this installation; prints as a table.

    Attributes:
        versions: package name -> version.
        backend: the value of SSD_EXT_BACKEND.
        gpus: names of the GPUs that torch sees.
        kernels: op name -> the devices ("cpu", "cuda") that have a compiled kernel for it.
        missing: device -> why its library is not in use; None where it is loaded.

    Examples:
        >>> from ssd_ext import info
        >>> installed = info()
        >>> list(installed.versions)
        ['ssd-ext', 'torch', 'torchvision', 'python']
        >>> "nms" in installed.kernels, list(installed.missing)
        (True, ['cpu', 'cuda'])
    """

    versions: dict[str, str]
    backend: str
    gpus: list[str]
    kernels: dict[str, list[str]]
    missing: dict[str, str | None]

    def __repr__(self) -> str:
        lines = [f"{name:12} {version}" for name, version in self.versions.items()]
        lines.append(f"{'backend':12} {self.backend} (SSD_EXT_BACKEND)")
        lines.append(f"{'GPUs':12} {', '.join(self.gpus) or 'none visible'}")
        unused = "" if self.gpus else ", but not used without a GPU"
        for device, reason in self.missing.items():
            lines.append(f"{device + ' library':12} {reason or 'loaded' + unused * (device == 'cuda')}")
        lines += ["", f"{'op':24} {'cpu':16} {'cuda' if self.gpus else 'cuda (no GPU here)'}"]
        for name, devices in self.kernels.items():
            row = ("C++" if d == "cpu" else "CUDA" for d in ("cpu", "cuda"))
            cells = (kind if d in devices else "plain PyTorch" for kind, d in zip(row, ("cpu", "cuda"), strict=True))
            lines.append(f"{name:24} " + " ".join(f"{cell:16}" for cell in cells).rstrip())
        return "\n".join(lines)


def version_of(package: str) -> str:
    """The version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def info() -> Info:
    """Describes this installation: versions, the kernels of each device, and why a library is missing.

    Returns:
        An `Info`, which `print` shows as a table.

    Examples:
        >>> import ssd_ext
        >>> print(ssd_ext.info())  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        ssd-ext ...
        torch ...
        torchvision ...
        python ...
        backend ... (SSD_EXT_BACKEND)
        ...
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return Info(
        versions={
            "ssd-ext": version_of("ssd-ext"),
            "torch": torch.__version__ + (f" (CUDA {torch.version.cuda})" if torch.version.cuda else ""),
            "torchvision": version_of("torchvision"),
            "python": platform.python_version(),
        },
        backend=_load.backend(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        kernels={name: [d for d in ("cpu", "cuda") if has_kernel(f"ssd_ext::{name}", d.upper())] for name in SCHEMAS},
        missing=dict(_load.missing),
    )
