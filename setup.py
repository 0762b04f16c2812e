"""Builds `ssd_ext._cpu` with torch and a C++ compiler, and `ssd_ext._cuda` where there is a CUDA toolkit too.

SSD_EXT_BUILD chooses: `auto` (the default: what this machine can build), `cpu`, `cuda` (CPU and CUDA) or `none`.
`cpu` and `cuda` fail loudly where something is missing; after `auto` and `none` the package runs on plain PyTorch.
TORCH_CUDA_ARCH_LIST is honoured; by default all architectures the toolkit knows from sm_75 on, plus PTX of the newest.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

CHOICES = ("auto", "cpu", "cuda", "none")
# One library for torch 2.11 and newer: only what its stable C interface offers is visible to our sources.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
OLDEST_ARCH = 75  # Turing: the oldest architecture that CUDA 13 compiles for


def why_no_cpu():
    """The reason why the CPU library cannot be built, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed where setup.py runs (use: pip install --no-build-isolation .)"
    if tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", torch.__version__).groups()) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11"
    candidates = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(shutil.which(c) for c in candidates):
        return f"no C++ compiler ({', '.join(candidates)}) on PATH"
    return None


def find_cuda_home():
    """Sets CUDA_HOME from nvcc's own word: an nvcc on PATH may be a script that lies outside its toolkit."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    if top := re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE):
        os.environ["CUDA_HOME"] = str(Path(top[1].strip()).resolve())


def why_no_cuda():
    """The reason why the CUDA library cannot be built, or None. A GPU is not needed to build for one."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return "no CUDA toolkit (nvcc) found; set CUDA_HOME"
    return None


def cuda_arch_flags():
    """-gencode flags for every architecture of the toolkit; empty where the user chose with TORCH_CUDA_ARCH_LIST."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return []
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = Path(CUDA_HOME) / "bin" / "nvcc"
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    archs = sorted({int(n) for n in re.findall(r"compute_(\d+)$", listed, re.MULTILINE)})
    archs = [a for a in archs if a >= OLDEST_ARCH]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def extensions(choice):
    """The list of extension modules to build under this choice."""
    reason = "SSD_EXT_BUILD=none" if choice == "none" else why_no_cpu()
    if reason is not None:
        if choice in ("cpu", "cuda"):
            sys.exit(f"SSD_EXT_BUILD={choice}: {reason}")
        print(f"ssd_ext: no compiled kernels, the package will run on plain PyTorch: {reason}", file=sys.stderr)
        return []

    find_cuda_home()
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    csrc = Path("csrc")
    include = [str(Path(__file__).resolve().parent / "csrc")]
    cxx = [
        "-O3",
        "-g0",
        "-std=c++17",  # torch 2.11 compiles with it
        TORCH_TARGET,
        "-ffp-contract=off",  # a fused multiply-add rounds once instead of twice: other bits than plain PyTorch
        "-fno-math-errno",  # lets loops with sqrt and the like vectorise; changes no value
        "-fno-trapping-math",  # lets guarded divisions vectorise; changes no value
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
    ]
    link = ["-Wl,--as-needed"] if sys.platform.startswith("linux") else []
    modules = [
        CppExtension(
            "ssd_ext._cpu",
            sorted(str(p) for p in (csrc / "cpu").glob("*.cpp")),
            include_dirs=include,
            extra_compile_args={"cxx": cxx},
            extra_link_args=link,
            py_limited_api=True,
        )
    ]

    reason = "SSD_EXT_BUILD=cpu" if choice == "cpu" else why_no_cuda()
    if reason is not None:
        if choice == "cuda":
            sys.exit(f"SSD_EXT_BUILD=cuda: {reason}")
        print(f"ssd_ext: no CUDA kernels: {reason}", file=sys.stderr)
        return modules

    nvcc = [
        "-O3",
        "-std=c++17",
        TORCH_TARGET,
        "-DUSE_CUDA",  # shows the stream functions of the stable interface
        "-fmad=false",  # the device's -ffp-contract=off
        "-Werror=all-warnings",
        "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror",
        "-Xcompiler=-fvisibility=hidden,-ffp-contract=off",
        "--threads=0",  # one thread per architecture
        *cuda_arch_flags(),
    ]
    modules.append(
        CUDAExtension(
            "ssd_ext._cuda",
            sorted(str(p) for p in (csrc / "cuda").glob("*.cu")),
            include_dirs=include,
            extra_compile_args={"cxx": cxx, "nvcc": nvcc},
            extra_link_args=link,
            py_limited_api=True,
        )
    )
    return modules


def main():
    choice = os.environ.get("SSD_EXT_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"SSD_EXT_BUILD={choice!r}: expected one of {', '.join(CHOICES)}")
    modules = extensions(choice)
    if not modules:
        setup()
        return
    from torch.utils.cpp_extension import BuildExtension

    setup(
        ext_modules=modules,
        cmdclass={"build_ext": BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


main()
