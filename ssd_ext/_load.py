"""Loads the compiled libraries.

If a library is not built, its ops run on plain PyTorch, and one warning says so. If the CPU library is built but
broken, that is an error with the reason. If the CUDA library is broken, that is a warning with the reason: it depends
on more than torch, and the CPU library works without it.

SSD_EXT_BACKEND chooses: `auto` (the default: compiled kernels where they are built), `python` (plain PyTorch only,
to compare it with the kernels or to rule them out) or `cpp` (the CPU library must be there, and no library may be
broken).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

BACKENDS = ("auto", "python", "cpp")
_REBUILD = "rebuild it (pip install --no-build-isolation --force-reinstall --no-deps .) or set SSD_EXT_BACKEND=python"
_HOW_TO_BUILD = "build it with `SSD_EXT_BUILD={0} pip install --no-build-isolation .` (the build shows what is missing)"

#: Why the library of a device ("cpu", "cuda") is not in use; None where it is loaded.
missing: dict[str, str | None] = {}


def backend() -> str:
    """The value of the environment variable SSD_EXT_BACKEND, `auto` by default.

    Raises ImportError for a value that is not in `BACKENDS`.
    """
    name = os.environ.get("SSD_EXT_BACKEND", "auto")
    if name not in BACKENDS:
        raise ImportError(f"SSD_EXT_BACKEND={name!r}: expected one of {', '.join(BACKENDS)}")
    return name


class BrokenLibrary(ImportError):
    """A library is built, but cannot be loaded or belongs to another version."""


def _load(device: str) -> str | None:
    """Loads the library of one device; returns why it is not in use, or None. Raises BrokenLibrary."""
    if backend() == "python":
        return "SSD_EXT_BACKEND=python"
    if device == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    folder = Path(__file__).parent
    found = sorted(p for suffix in (".so", ".pyd", ".dylib") for p in folder.glob(f"_{device}*{suffix}"))
    if not found:
        return f"not built; {_HOW_TO_BUILD.format(device)}"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        raise BrokenLibrary(
            f"{found[0].name} is built but cannot be loaded with torch {torch.__version__}: {error}; {_REBUILD}"
        ) from error
    return None


def is_defined(name: str, schema: str) -> bool:
    """Whether a loaded library has defined this op. Raises BrokenLibrary if it belongs to another version."""
    defined = getattr(torch.ops.ssd_ext, name, None)
    if defined is not None:
        its, ours = str(defined.default._schema), str(torch._C.parse_schema(f"ssd_ext::{schema}"))
    elif torch._C._dispatch_has_kernel(f"ssd_ext::{name}"):  # kernels, but no schema
        its, ours = "no schema", schema
    else:
        return False
    if its != ours:
        raise BrokenLibrary(f"the CPU library is from another version: it has {its}, expected: {ours}; {_REBUILD}")
    return True


def load_libraries() -> None:
    """Loads the libraries that exist; called once, when `ssd_ext` is imported."""
    missing["cpu"] = _load("cpu")
    broken = False
    try:
        missing["cuda"] = _load("cuda")
    except BrokenLibrary as error:
        if backend() == "cpp":
            raise
        broken = True
        missing["cuda"] = f"broken: {error}"
    if backend() == "cpp" and missing["cpu"]:
        raise ImportError(f"SSD_EXT_BACKEND=cpp, but the CPU library is missing: {missing['cpu']}")
    if backend() == "python":
        return
    if missing["cpu"]:
        warnings.warn(f"ssd_ext runs on plain PyTorch: the CPU library is {missing['cpu']}.", stacklevel=3)
    elif missing["cuda"] and (broken or (torch.version.cuda and torch.cuda.device_count())):
        warnings.warn(f"ssd_ext runs on plain PyTorch on GPUs: the CUDA library is {missing['cuda']}.", stacklevel=3)
