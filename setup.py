"""Builds `ssd_ext._cpu` with torch and a C++ compiler, and with a CUDA toolkit also `ssd_ext._cuda`.

Environment variables:
    SSD_EXT_BUILD: `auto` (default) builds what this machine can build, and prints why a library is left out; the
        package works without it. `cpu` and `cuda` (CPU and CUDA) fail if a library cannot be built. `none` builds none.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, as for torch. Default: all that the toolkit has from sm_75 on, and PTX of
        the newest.
    SSD_EXT_GLIBC: for wheels; 2.28 links for glibc 2.28 and newer. Needs ziglang.
    MAX_JOBS: the number of compilers that run at the same time. Default: as many as cores and memory allow.
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

# All flags, also for the tests that compile the sources (tests/cuda_on_cpu and others).
COMMON = [
    "-std=c++17",  # the standard of torch 2.11
    # Shows only the stable C interface of torch 2.11 to the sources, so that one library works with 2.11 and newer.
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    f"-I{CSRC}",
]
HOST = [
    "-ffp-contract=off",  # a fused multiply-add rounds once instead of twice, and gives other bits than plain PyTorch
    "-fvisibility=hidden",
]
CXX = [
    *COMMON,
    *HOST,
    "-O3",
    "-g0",
    "-fno-math-errno",  # allows loops with sqrt and similar functions to be vectorised; changes no value
    "-fno-trapping-math",  # allows guarded divisions to be vectorised; changes no value
]
CUDA_INTERFACE = "-DUSE_CUDA"  # makes the stream functions of the stable interface visible
NVCC = [
    *COMMON,
    CUDA_INTERFACE,
    "-O3",
    "-fmad=false",  # as -ffp-contract=off, for device code
    f"-Xcompiler={','.join(HOST)}",
]
OLDEST_ARCH = 75  # Turing, the oldest architecture that CUDA 13 supports
COMPILER_BYTES = 1 << 29  # memory for one source and one architecture; CUDA 13 took 0.41 GB


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
    """The packages that an isolated build needs if it can compile; any torch from 2.11 on builds the same library."""
    if choice == "none" or why_no_compiler() or importlib.util.find_spec("torch"):
        return []
    return ["torch>=2.11", "ninja"]


def find_cuda_home():
    """Sets CUDA_HOME to the toolkit that nvcc reports: an nvcc on PATH may be a script outside of its toolkit."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    if top := re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE):
        os.environ["CUDA_HOME"] = str(Path(top[1].strip()).resolve())


def why_no_cuda():
    """The reason why the CUDA library cannot be built, or None. The build needs no GPU."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return "no CUDA toolkit (nvcc) found; set CUDA_HOME"
    return None


def cuda_arch_flags():
    """-gencode flags for every architecture of the toolkit; empty if TORCH_CUDA_ARCH_LIST is set."""
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
    """Free memory of the machine or of the control group, in bytes, whichever is less; None if unknown."""
    limits = []
    with contextlib.suppress(OSError):
        available = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
        limits.append(int(available[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max", so there is none
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        limits.append(int(limit) - int(used))
    return min(limits, default=None)


def compilers_at_once():
    """The number of compilers that may run at the same time, each for one architecture."""
    if os.environ.get("MAX_JOBS", "").isdigit():
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = free_memory()
    return cores if memory is None else max(1, min(cores, memory // COMPILER_BYTES))


def link_runtime_statically(extension):
    """Links the CUDA runtime statically, so that the library loads together with a torch of any CUDA version.

    The name of the shared runtime contains its major version. Streams and memory of torch can be used with another
    runtime: they belong to the context of the driver, which all runtimes of a process share.
    """
    for folder in extension.library_dirs:
        if (Path(folder) / "libcudart_static.a").exists():
            extension.libraries.remove("cudart")
            extension.extra_link_args += ["-l:libcudart_static.a", "-ldl", "-lrt", "-lpthread"]
            return


def link_for_glibc(version, compiler, extension):
    """Links with zig, which has the symbols of every glibc version; the compiler would use those of this machine.

    The compiler still compiles, since zig's compiler lacks `target_clones`. old_libraries.cc replaces the remaining
    symbols of newer libraries.
    """
    target = f"{platform.machine()}-linux-gnu.{version}"
    compiler.set_executable("linker_so", [sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared"])
    extension.language = "c"  # otherwise the C++ compiler links
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
        # Exports nothing else: the symbols of the CUDA runtime must not mix with those of the runtime that torch loads.
        exports = f"-Wl,--version-script={CSRC / 'core' / 'exports.map'}"
        link = ["-Wl,--as-needed", exports] if sys.platform.startswith("linux") else []
        paths = [str(path.relative_to(CSRC.parent)) for path in sources]  # relative, as setuptools requires
        return kind(name, paths, extra_compile_args=flags, extra_link_args=link, py_limited_api=True)

    modules = [extension(CppExtension, "ssd_ext._cpu", CPU_SOURCES, cxx=CXX)]

    reason = "SSD_EXT_BUILD=cpu" if choice == "cpu" else why_no_cuda()
    if reason is not None:
        if choice == "cuda":
            sys.exit(f"SSD_EXT_BUILD=cuda: {reason}")
        print(f"ssd_ext: no CUDA kernels: {reason}", file=sys.stderr)
        return modules

    threads = f"--threads={compilers // jobs}"  # architectures that nvcc compiles at the same time
    nvcc = [*NVCC, threads, *cuda_arch_flags()]
    cuda = extension(CUDAExtension, "ssd_ext._cuda", CUDA_SOURCES, nvcc=nvcc)
    link_runtime_statically(cuda)
    return [*modules, cuda]


def build_command(choice):
    """torch's build_ext, which with `auto` leaves out a library that cannot be built.

    That happens if the compiler fails, or if torch rejects the compiler or the toolkit: one is too new, or the toolkit
    has another CUDA version than torch.
    """
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extension(self, extension):
            if glibc := os.environ.get("SSD_EXT_GLIBC"):
                link_for_glibc(glibc, self.compiler, extension)
            # One folder for each library: box_iou.cpp and box_iou.cu both become box_iou.o.
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
                    name = self.extensions.pop().name  # the last one has the most requirements
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
        setup(setup_requires=needed)  # pip asks before an isolated build, and installs them
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


if __name__ == "__main__":  # the tests import the flags
    main()
