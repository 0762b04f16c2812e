"""Builds the CUDA sources for the CPU with g++ and loads them as torch ops.

`load()` returns a namespace with every op that has a .cu file: `load().box_iou(a, b)` runs the CUDA kernel on
CPU tensors. Objects and libraries are kept in build/cuda_on_cpu/ under a hash of all their inputs.
"""

from __future__ import annotations

import functools
import hashlib
import os
import runpy
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).parent
ROOT = HERE.parent.parent
SETUP = SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))
CSRC = SETUP.CSRC
CPU_KERNELS = SETUP.CPU_SOURCES
CUDA_KERNELS = SETUP.CUDA_SOURCES
SELFTEST = [HERE / "selftest.cu"]

READABLE = ["-O1", "-g1", "-fno-omit-frame-pointer"]  # reports name every function
SANITIZERS = {
    None: ["-O2"],
    # Errors end the program, so that a test cannot overlook them.
    "address": [*READABLE, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": [*READABLE, "-DCUDA_ON_CPU_TSAN"],
}
HOST = [*SETUP.COMMON, *SETUP.HOST, "-fPIC", f"-isystem{TORCH / 'include'}"]
FLAGS = [*HOST, "-Wall", "-Wextra", "-Werror", SETUP.CUDA_INTERFACE, "-DCUDA_ON_CPU", f"-I{HERE / 'include'}"]


def compiler() -> str | None:
    """The path of the C++ compiler, or None."""
    return next(filter(None, (shutil.which(c) for c in [os.environ.get("CXX", ""), "g++", "c++"])), None)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


@functools.cache
def _environment_hash() -> str:
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    hash_ = hashlib.sha256((version + torch.__version__).encode())
    for folder in (CSRC, HERE):
        for header in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cuh")):
            hash_.update(f"{header.relative_to(ROOT)}\0".encode() + header.read_bytes())
    return hash_.hexdigest()


def _cached(name: str, inputs: list[bytes], flags: list[str], make) -> Path:
    """The file that make(path) writes; an existing file from the same inputs and flags is reused."""
    hash_ = hashlib.sha256("\0".join([_environment_hash(), compiler(), *flags]).encode())
    for data in inputs:
        hash_.update(hashlib.sha256(data).digest())
    path = ROOT / "build" / "cuda_on_cpu" / f"{hash_.hexdigest()[:16]}-{name}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / name
            make(made)
            os.replace(made, path)
    return path


def _object(source: Path, sanitizer: str | None) -> Path:
    flags = [*FLAGS, *SANITIZERS[sanitizer]]
    if source.suffix == ".cu":
        flags += ["-x", "c++", "-include", str(HERE / "registration.h")]
        if sanitizer == "thread":  # only kernels are checked, not the runner
            flags += ["-fsanitize=thread"]
    command = [compiler(), *flags, "-c", str(source), "-o"]
    inputs = [source.read_bytes()]
    return _cached(f"{source.stem}.o", inputs, flags, lambda path: _run([*command, str(path)]))


def library(sources: list[Path], sanitizer: str | None = None) -> Path:
    """Compiles .cu files (with the runner) or .cpp files to one library.

    Args:
        sources: the files to compile.
        sanitizer: None, "address" (and undefined behaviour) or "thread" (races between CUDA threads).
    """
    if any(source.suffix == ".cu" for source in sources):
        sources = [*sources, HERE / "runner.cpp", HERE / "torch_cuda.cpp"]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda source: _object(source, sanitizer), sources))
    flags = ["-shared", "-Wl,-Bsymbolic", "-Wl,--no-as-needed"]
    flags += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    flags += [flag for flag in SANITIZERS[sanitizer] if flag.startswith("-fsanitize")]
    flags += ["-fsanitize=thread"] if sanitizer == "thread" else []
    command = [compiler(), *map(str, objects), *flags, "-o"]
    inputs = [path.read_bytes() for path in objects]
    return _cached("ops.so", inputs, flags, lambda path: _run([*command, str(path)]))


_libraries: list[torch.library.Library] = []  # an op lives as long as the object that defined it


def _define_and_load(namespace: str, schemas: list[str], path: Path):
    definitions = torch.library.Library(namespace, "DEF")
    for schema in schemas:
        definitions.define(schema)
    _libraries.append(definitions)
    torch.ops.load_library(path)
    return getattr(torch.ops, namespace)


@functools.cache
def load(sanitizer: str | None = None, kernels: tuple[Path, ...] = tuple(CUDA_KERNELS)):
    """The namespace torch.ops.ssd_ext_cuda_on_cpu with these CUDA sources, for CPU tensors; loads once in a process."""
    from ssd_ext._op import SCHEMAS

    return _define_and_load("ssd_ext_cuda_on_cpu", list(SCHEMAS.values()), library(list(kernels), sanitizer))


@functools.cache
def load_selftest(sanitizer: str | None = None):
    """The runner's own test: run(x (n) int32, kernel name) -> int32, see selftest.cu."""
    schemas = ["run(Tensor x, str kernel) -> Tensor"]
    return _define_and_load("selftest_cuda_on_cpu", schemas, library(SELFTEST, sanitizer)).run
