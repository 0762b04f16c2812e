"""The report of `ssd info --report-bug`: this installation, as text for an issue, without paths and names of people."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import ssd_ext

OURS = "SSD_EXT_"
# Variables that others read. Only whether they are set is shown: their values are paths, or say what a machine is for.
OTHERS = (
    *("CC", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CXX", "LD_LIBRARY_PATH", "LD_PRELOAD", "MAX_JOBS", "MKL_NUM_THREADS"),
    *("OMP_NUM_THREADS", "PYTHONPATH", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDA_ARCH_LIST"),
    *("TORCH_LOGS", "TORCHINDUCTOR_CACHE_DIR"),
)
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")  # as in /proc/cpuinfo
LIBRARY = re.compile(r"[\w.+-]+\.(?:so|dylib|dll|pyd)[\w.]*")
PATH = re.compile(r"""(?<![\w.+])(?:file://)?(?:[A-Za-z]:|~)?[/\\][^\s:'"`,;()<>]+""")
LOAD = "import sys; sys.path[:] = sys.argv[1:]; import ssd_ext; print(ssd_ext.info())"  # the same modules as here


def bug_report() -> str:
    """Describes this installation in Markdown, for an issue.

    Returns:
        A heading, and a block of text with versions, machine, kernels, build and environment variables. Paths, the name
        of the user and the name of the host are replaced.
    """
    info = ssd_ext.info()
    blocks = [str(info), *map("\n".join, (_packages(), _machine(info), _libraries(info), _environment()))]
    text = without_names("\n\n".join(blocks))
    return f"### Installation\n\n```text\n{text}\n```"


def without_names(text: str) -> str:
    """Replaces paths, the name of the user and the name of the host in a text.

    Args:
        text: for example an error of the loader of libraries.

    Returns:
        The text with `<path>` for each path; a library keeps its own name, as in `<path>/libcudart.so.13`.
    """
    # The pattern of a path ends at a blank, so folders that are known to have one are replaced first.
    folders = [*sys.path, sys.prefix, sys.base_prefix, tempfile.gettempdir(), os.getcwd(), os.path.expanduser("~")]
    folders += [str(Path(ssd_ext.__file__).parents[1]), *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]
    for folder in sorted((folder for folder in folders if " " in folder), key=len, reverse=True):
        text = text.replace(folder, "/path")
    text = PATH.sub(_library_of, text)
    for name, mark in ((_user(), "<user>"), (socket.gethostname(), "<host>")):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", mark, text) if name else text
    return text


def _library_of(path: re.Match[str]) -> str:
    name = re.split(r"[/\\]", path[0])[-1]
    return f"<path>/{name}" if LIBRARY.fullmatch(name) else "<path>"


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # the system has no names of users, or none for this one
        return ""


def _packages() -> Iterator[str]:
    """Versions of the packages that ours need or can use, apart from those of its developers."""
    try:
        requirements = importlib.metadata.requires("ssd-ext") or []
    except importlib.metadata.PackageNotFoundError:
        yield "ssd-ext is not installed, so its requirements are not known"
        return
    users = (text for text in requirements if not re.search(r"extra == .(dev|wheel)\b", text))
    names = dict.fromkeys(re.split(r"[^\w.-]", text)[0] for text in users)
    absent = []
    for name in names:
        try:
            if name not in ("torch", "torchvision"):  # which are in `ssd_ext.info()`
                yield f"{name:19} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    yield f"{'not installed':19} {', '.join(absent) or '-'}"


def _machine(info: ssd_ext.Info) -> Iterator[str]:
    """The operating system, the processor and the GPUs."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except (OSError, AttributeError):  # no Linux, or one that does not say
        system = platform.system()
    yield f"{'system':19} {system}, {platform.release()}, {' '.join(platform.libc_ver())}".rstrip(", ")
    model, flags = _processor()
    yield f"{'CPU':19} {model}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    yield f"{'instructions':19} {' '.join(name for name in INSTRUCTIONS if name in flags) or 'unknown'}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"{'cores':19} {usable} of {os.cpu_count()}, torch uses {torch.get_num_threads()}"
    for i in range(len(info.gpus)):
        gpu = torch.cuda.get_device_properties(i)
        size = gpu.total_memory / 2**30
        yield f"{f'GPU {i}':19} {gpu.name}, sm_{gpu.major}{gpu.minor}, {size:.0f} GiB"
    if torch.version.cuda:
        get_version = getattr(torch._C, "_cuda_getDriverVersion", int)  # private; for example 13010
        driver = get_version() if info.gpus else 0
        version = f"driver for {driver // 1000}.{driver % 1000 // 10}" if driver else "no GPU is visible"
        yield f"{'CUDA':19} {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {version}"


def _processor() -> tuple[str, set[str]]:
    """The model of the processor and its instruction sets, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown model", set()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", "unknown model"), set((fields.get("flags") or fields.get("Features", "")).split())


def _libraries(info: ssd_ext.Info) -> Iterator[str]:
    """How the compiled libraries were built, and why they cannot be loaded if SSD_EXT_BACKEND keeps them away."""
    folder = Path(ssd_ext.__file__).parent
    for file in sorted(file for file in folder.iterdir() if LIBRARY.fullmatch(file.name)):
        content = file.read_bytes()
        compilers = re.findall(rb"GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+|release \d+\.\d+, V[\d.]+", content)
        made_with = ", ".join(sorted({found.decode().replace("release", "nvcc") for found in compilers}))
        targets = sorted({found.decode() for found in re.findall(rb"sm_\d+", content)})
        yield f"{file.name:19} {len(content):,} bytes; {'; '.join(filter(None, [made_with, ' '.join(targets)]))}"
    if info.backend == "python":
        environment = {**os.environ, "SSD_EXT_BACKEND": "auto"}
        command = [sys.executable, "-c", LOAD, *sys.path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        last = done.stderr.strip().splitlines()[-1:]
        found = [line for line in done.stdout.splitlines() if re.match(r"\w+ library", line)]
        yield "with SSD_EXT_BACKEND=auto:"
        yield from (f"  {line}" for line in (last if done.returncode else found))


def _environment() -> Iterator[str]:
    """Our environment variables with their values, and the names of others that change what torch and ours do."""
    ours = sorted(name for name in os.environ if name.startswith(OURS))
    yield from (f"{name:19} {os.environ[name]}" for name in ours)
    yield f"{'also set':19} {', '.join(name for name in OTHERS if name in os.environ) or '-'}"
