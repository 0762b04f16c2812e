"""Builds `ssd_ext._cpu` with torch and a C++ compiler, and `ssd_ext._cuda` where there is a CUDA toolkit too.

SSD_EXT_BUILD chooses: `auto` (the default: what this machine can build), `cpu`, `cuda` (CPU and CUDA) or `none`.
`cpu` and `cuda` fail loudly; `auto` leaves out what cannot be built and says why: the package works without.
TORCH_CUDA_ARCH_LIST is honoured; by default all architectures the toolkit knows from sm_75 on, plus PTX of the newest.
SSD_EXT_GLIBC=2.28 links for that glibc and newer (wants ziglang): for wheels.
MAX_JOBS is the number of compilers at once; by default what cores and memory allow.
"""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CHOICES = ("auto", "cpu", "cuda", "none")
CSRC = Path(__file__).resolve().parent / "csrc"
CPU_SOURCES = sorted(CSRC.rglob("*.cpp"))
CUDA_SOURCES = sorted(CSRC.rglob("*.cu"))

# Every flag, for all that compile our sources: the build below, tests/cuda_on_cpu and the other tests.
COMMON = [
    "-std=c++17",  # torch 2.11 compiles with it
    # One library for torch 2.11 and newer: only what its stable C interface offers is visible to our sources.
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    f"-I{CSRC}",
]
HOST = [
    "-ffp-contract=off",  # a fused multiply-add rounds once instead of twice: other bits than plain PyTorch
    "-fvisibility=hidden",
]
CXX = [
    *COMMON,
    *HOST,
    "-O3",
    "-g0",
    "-fno-math-errno",  # lets loops with sqrt and the like vectorise; changes no value
    "-fno-trapping-math",  # lets guarded divisions vectorise; changes no value
]
CUDA_INTERFACE = "-DUSE_CUDA"  # shows the stream functions of the stable interface
NVCC = [
    *COMMON,
    CUDA_INTERFACE,
    "-O3",
    "-fmad=false",  # the device's -ffp-contract=off
    f"-Xcompiler={','.join(HOST)}",
]
OLDEST_ARCH = 75  # Turing: the oldest architecture that CUDA 13 compiles for
COMPILER_BYTES = 1 << 29  # of one source for one architecture; measured with CUDA 13: 0.41 GB


def why_no_cpu():
    """The reason why the CPU library cannot be built, or None."""
    if why_no_compiler():
        return why_no_compiler()
    try:
        import torch
    except ImportError:
        return "torch is not installed where setup.py runs"
    if tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", torch.__version__).groups()) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11"
    return None


def why_no_compiler():
    """The reason why nothing can be compiled, or None."""
    candidates = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(shutil.which(c) for c in candidates):
        return f"no C++ compiler ({', '.join(candidates)}) on PATH"
    return None


def needed_to_build(choice):
    """What an isolated build has to bring, if it can compile: any new enough torch, for the library serves them all."""
    if choice == "none" or why_no_compiler() or importlib.util.find_spec("torch"):
        return []
    return ["torch>=2.11", "ninja"]


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


def free_memory():
    """Bytes that Linux has for this process, of the machine and of its control group; None if it does not tell."""
    limits = []
    with contextlib.suppress(OSError):
        available = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
        limits.append(int(available[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", there is no limit
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        limits.append(int(limit) - int(used))
    return min(limits, default=None)


def compilers_at_once():
    """How many compilers may run at once, each for one architecture."""
    if os.environ.get("MAX_JOBS", "").isdigit():
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = free_memory()
    return cores if memory is None else max(1, min(cores, memory // COMPILER_BYTES))


def link_runtime_statically(extension):
    """Puts the CUDA runtime into the library, which then loads beside a torch of any CUDA version.

    The shared runtime has its major version in its name. The stream and the memory that torch gives belong to the
    driver's context, which all runtimes of a process share.
    """
    for folder in extension.library_dirs:
        if (Path(folder) / "libcudart_static.a").exists():
            extension.libraries.remove("cudart")
            extension.extra_link_args += ["-l:libcudart_static.a", "-ldl", "-lrt", "-lpthread"]
            return


def link_for_glibc(version, compiler, extension):
    """Has zig link, which knows the symbols of every version of glibc: the compiler would take those of this machine.

    It goes on compiling, for zig's own lacks `target_clones`; what is left of newer libraries is in old_libraries.cc.
    """
    target = f"{platform.machine()}-linux-gnu.{version}"
    compiler.set_executable("linker_so", [sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared"])
    extension.language = "c"  # else the C++ compiler would link
    extension.sources.append(str((CSRC / "core" / "old_libraries.cc").relative_to(CSRC.parent)))
    find = [compiler.compiler_cxx[0], "-print-file-name=libstdc++.so"]
    extension.extra_objects.append(subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip())


def extensions(choice):
    """The list of extension modules to build under this choice."""
    reason = "SSD_EXT_BUILD=none" if choice == "none" else why_no_cpu()
    if reason is not None:
        if choice in ("cpu", "cuda"):
            sys.exit(f"SSD_EXT_BUILD={choice}: {reason}")
        print(f"ssd_ext: no compiled kernels, the package will run on plain PyTorch: {reason}", file=sys.stderr)
        return []

    find_cuda_home()
    from torch.utils.cpp_extension import CppExtension, CUDAExtension, is_ninja_available

    compilers = compilers_at_once()
    jobs = min(compilers, len(CUDA_SOURCES)) if is_ninja_available() else 1
    os.environ["MAX_JOBS"] = str(jobs)  # read by torch

    def extension(kind, name, sources, **flags):
        # No other name leaves: those of the CUDA runtime must not mix with those of the one that torch has loaded.
        exports = f"-Wl,--version-script={CSRC / 'core' / 'exports.map'}"
        link = ["-Wl,--as-needed", exports] if sys.platform.startswith("linux") else []
        paths = [str(path.relative_to(CSRC.parent)) for path in sources]  # as setuptools wants them
        return kind(name, paths, extra_compile_args=flags, extra_link_args=link, py_limited_api=True)

    modules = [extension(CppExtension, "ssd_ext._cpu", CPU_SOURCES, cxx=CXX)]

    reason = "SSD_EXT_BUILD=cpu" if choice == "cpu" else why_no_cuda()
    if reason is not None:
        if choice == "cuda":
            sys.exit(f"SSD_EXT_BUILD=cuda: {reason}")
        print(f"ssd_ext: no CUDA kernels: {reason}", file=sys.stderr)
        return modules

    threads = f"--threads={compilers // jobs}"  # architectures at once
    nvcc = [*NVCC, threads, *cuda_arch_flags()]
    cuda = extension(CUDAExtension, "ssd_ext._cuda", CUDA_SOURCES, nvcc=nvcc)
    link_runtime_statically(cuda)
    return [*modules, cuda]


def build_command(choice):
    """torch's build_ext. After `auto`, a library that cannot be built is left out, be it torch that refuses the toolkit
    or the compiler (of another CUDA version than torch's, too new), or the compiler that fails.
    """
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extension(self, extension):
            if glibc := os.environ.get("SSD_EXT_GLIBC"):
                link_for_glibc(glibc, self.compiler, extension)
            # An object file is named after its source without the suffix: box_iou.o of .cpp or of .cu.
            shared, self.build_temp = self.build_temp, str(Path(self.build_temp, extension.name))
            try:
                super().build_extension(extension)
            finally:
                self.build_temp = shared

        def build_extensions(self):
            while self.extensions:
                try:
                    return super().build_extensions()
                except Exception as error:
                    if choice != "auto":
                        raise
                    name = self.extensions.pop().name  # the last one needs most
                    message, *values = map(str, error.args or [repr(error)])
                    reason = " ".join((message % tuple(values) if values else message).split())
                    print(f"ssd_ext: {name} is left out, it cannot be built: {reason}", file=sys.stderr)

    return Build


def main():
    from setuptools import setup

    choice = os.environ.get("SSD_EXT_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"SSD_EXT_BUILD={choice!r}: expected one of {', '.join(CHOICES)}")
    if "egg_info" in sys.argv and (needed := needed_to_build(choice)):
        setup(setup_requires=needed)  # asked before an isolated build, which will have them
        return
    modules = extensions(choice)
    if not modules:
        setup()
        return
    setup(
        ext_modules=modules,
        cmdclass={"build_ext": build_command(choice)},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":  # the tests read the flags from here
    main()
