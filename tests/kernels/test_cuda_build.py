"""Every CUDA source compiles without warnings or spills, and rounds as PyTorch does.

For the oldest and the newest architecture, the one from which on the sources take other instructions, and Hopper; or
for those of TORCH_CUDA_ARCH_LIST ("9.0 12.0") where it is set. `make wheel` compiles for all.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from cuda_on_cpu import build

OLDEST_ARCH = build.SETUP.OLDEST_ARCH
FLAGS = [
    *build.SETUP.NVCC,
    "-Werror=all-warnings",
    "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror",
    "-Xcompiler=-fPIC",
    "--threads=0",
    f"-I{build.TORCH / 'include'}",
]

# fma rounds once where PyTorch rounds twice, ftz drops subnormal numbers, these divisions are not correctly
# rounded.
INEXACT = re.compile(r"\b(?:fma\.r[nzmp]|mad\.r[nzmp]|div\.approx|div\.full|\w+(?:\.\w+)*\.ftz)\b[\w.]*")


# CUDA's exp and log of double are made of these; the same operations in float would be a mistake.
DOUBLE_EXP_AND_LOG = {"fma.rn.f64", "rcp.approx.ftz.f64"}
WITH_DOUBLE_EXP_AND_LOG = {"box_coding", "multibox_loss"}


def nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=Path(home) / "bin")


pytestmark = pytest.mark.skipif(nvcc() is None, reason="no CUDA toolkit (nvcc)")


@functools.cache
def architectures():
    listed = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = {int(n) for n in re.findall(r"compute_(\d+)$", listed, re.MULTILINE)}
    chosen = {int(a + b) for a, b in re.findall(r"(\d+)\.(\d)", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))}
    return sorted(chosen or known & {OLDEST_ARCH, 80, 90, max(known)})


def compile_for_all(source):
    """Architecture -> PTX of this source; kept in build/cuda_build/ under a hash of what it comes from."""
    version = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    hash_ = hashlib.sha256("\0".join([version, *FLAGS, *map(str, architectures())]).encode())
    for path in sorted([source, *build.CSRC.rglob("*.h"), *build.CSRC.rglob("*.cuh")]):
        hash_.update(path.read_bytes())
    kept = build.ROOT / "build" / "cuda_build" / f"{hash_.hexdigest()[:16]}-{source.stem}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in architectures()]
            keep = ["--keep", f"--keep-dir={folder}", "-o", f"{folder}/out.o"]
            command = [nvcc(), *FLAGS, *codes, *keep, "-c", source]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            ptx = Path(folder) / "ptx"
            ptx.mkdir()
            for path in Path(folder).glob("*.ptx"):
                path.rename(ptx / path.name)
            os.replace(ptx, kept)
    if len(architectures()) == 1:  # nvcc then leaves it out of the name
        (path,) = kept.glob("*.ptx")
        return {architectures()[0]: path.read_text()}
    return {int(re.search(r"compute_(\d+)", path.name)[1]): path.read_text() for path in kept.glob("*.ptx")}


@pytest.mark.parametrize("source", build.CUDA_KERNELS, ids=lambda path: path.stem)
def test_compiles_to_exact_arithmetic(source):
    ptx = compile_for_all(source)
    assert sorted(ptx) == architectures()
    for architecture, text in ptx.items():
        assert ".entry" in text
        allowed = DOUBLE_EXP_AND_LOG if source.stem in WITH_DOUBLE_EXP_AND_LOG else set()
        assert set(INEXACT.findall(text)) <= allowed, f"sm_{architecture}"


def test_inexact_arithmetic_is_found(tmp_path):
    source = tmp_path / "inexact.cu"
    source.write_text("__global__ void f(float* x) { x[0] = x[1] * x[2] + x[3] / x[4]; }\n")
    found = {}
    for flag in ("-fmad=false", "--use_fast_math", "-fmad=true"):
        ptx = tmp_path / "inexact.ptx"
        subprocess.run([nvcc(), f"-arch=compute_{OLDEST_ARCH}", flag, "-ptx", source, "-o", ptx], check=True)
        found[flag] = INEXACT.findall(ptx.read_text())
    assert found["-fmad=false"] == []
    assert found["-fmad=true"] == ["fma.rn.f32"]
    assert found["--use_fast_math"] == ["div.approx.ftz.f32", "fma.rn.ftz.f32"]


def test_local_memory_is_found(tmp_path):
    source = tmp_path / "local.cu"
    source.write_text(
        "__global__ void f(int* x, int n) {\n"
        "  int a[64];\n"
        "  for (int i = 0; i < n; ++i) a[x[i]] = i;\n"
        "  x[0] = a[x[n]];\n"
        "}\n"
    )
    command = [nvcc(), *FLAGS, f"-arch=sm_{OLDEST_ARCH}", "-cubin", source, "-o", tmp_path / "local.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "local memory" in (done.stdout + done.stderr).lower()
