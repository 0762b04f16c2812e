"""Building and installing: from an sdist, without a compiler, with a broken library."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from cuda_on_cpu.build import compiler

ROOT = Path(__file__).resolve().parent.parent
IMPORT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ssd_ext, ssd
    import torch
    iou = ssd_ext.box_iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 1, 2, 2]]))
assert iou.item() == 0.25
print(ssd_ext.__file__)
print([str(w.message) for w in caught if "ssd_ext" in str(w.message)])
print(ssd_ext.info())
"""


def python(*arguments, cwd, **environment):
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("SSD_EXT", "CXX", "CC", "PYTHONPATH"))}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**variables, **environment}, capture_output=True, text=True)


def build_wheel(source, out, **environment):
    return python(
        "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", out, source, cwd=source, **environment
    )


def install(wheel, target):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked source distribution: what a user gets who has no git checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    hook = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    done = python("-c", hook, cwd=ROOT, SSD_EXT_BUILD="none")
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(p for p in folder.iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def pure(sdist, tmp_path_factory):
    """Installed on a machine without a compiler: the PATH is empty."""
    folder = tmp_path_factory.mktemp("pure")
    done = build_wheel(sdist, folder, PATH=str(folder))
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    return install(wheel, folder / "site")


def test_sdist_has_all_sources(sdist):
    for path in (ROOT / "csrc").rglob("*"):
        assert (sdist / path.relative_to(ROOT)).exists()


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_sdist_builds_one_wheel_for_all_newer_pythons(sdist, tmp_path):
    done = build_wheel(sdist, tmp_path, SSD_EXT_BUILD="cpu")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    site = install(wheel, tmp_path / "site")
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(site), SSD_EXT_BACKEND="cpp")
    assert done.returncode == 0, done.stderr
    where, warned, *info = done.stdout.splitlines()
    assert where.startswith(str(site))
    assert warned == "[]"
    assert "cpu library  loaded" in info
    assert next(line.split() for line in info if line.startswith("box_iou"))[1] == "C++"


def test_without_a_compiler_it_works_on_plain_pytorch_and_says_so_once(pure, tmp_path):
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(pure))
    assert done.returncode == 0, done.stderr
    where, warned, *info = done.stdout.splitlines()
    assert where.startswith(str(pure))
    assert warned.count("ssd_ext runs on plain PyTorch") == 1
    assert any(line.startswith("cpu library") and "not built" in line for line in info)
    assert done.stderr == ""


def test_asking_for_what_cannot_be_built_fails_loudly(sdist, tmp_path):
    done = build_wheel(sdist, tmp_path, SSD_EXT_BUILD="cpu", PATH=str(tmp_path))
    assert done.returncode != 0
    assert "SSD_EXT_BUILD=cpu: no C++ compiler" in done.stdout + done.stderr
    done = build_wheel(sdist, tmp_path, SSD_EXT_BUILD="gpu")
    assert done.returncode != 0
    assert "SSD_EXT_BUILD='gpu': expected one of auto, cpu, cuda, none" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_backend_cpp_without_its_library_fails_loudly(pure, tmp_path):
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(pure), SSD_EXT_BACKEND="cpp")
    assert done.returncode != 0
    assert "SSD_EXT_BACKEND=cpp, but the CPU library is missing: not built" in done.stderr


def test_a_broken_library_is_an_error_with_a_way_out(pure, tmp_path):
    site = tmp_path / "site"
    for path in pure.rglob("*.py"):
        copy = site / path.relative_to(pure)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (site / "ssd_ext" / "_cpu.abi3.so").write_text("not a library")
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode != 0
    assert "_cpu.abi3.so is built but cannot be loaded with torch" in done.stderr
    assert "SSD_EXT_BACKEND=python" in done.stderr
    assert python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(site), SSD_EXT_BACKEND="python").returncode == 0
