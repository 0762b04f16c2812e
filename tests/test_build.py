"""Building and installing: from an sdist, without a compiler, with a toolkit that does not fit, a broken library."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from cuda_on_cpu.build import compiler
from torch.utils.cpp_extension import CUDA_GCC_VERSIONS

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


def build_wheel(source, out, verbosity="-q", **environment):
    command = ["-m", "pip", "wheel", verbosity, "--no-build-isolation", "--no-deps", "-w", out, source]
    return python(*command, cwd=source, **environment)


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


def test_files_that_are_not_python_are_installed(pure):
    templates = [path.relative_to(ROOT) for path in (ROOT / "ssd").rglob("*.jinja")]
    assert len(templates) == 4
    for name in ("ssd/py.typed", "ssd_ext/py.typed", *templates):
        assert (pure / name).exists(), name


def imported(site, cwd, **environment):
    """What IMPORT prints with the package installed in `site`: the lines of `ssd info`, and the warnings."""
    done = python("-c", IMPORT, cwd=cwd, PYTHONPATH=str(site), **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    where, warned, *info = done.stdout.splitlines()
    assert where.startswith(str(site))
    return info, ast.literal_eval(warned)


@pytest.fixture(scope="module")
def built(sdist, tmp_path_factory):
    """A wheel with the CPU library."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("built")
    done = build_wheel(sdist, folder, SSD_EXT_BUILD="cpu")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_sdist_builds_one_wheel_for_all_newer_pythons(built, tmp_path):
    assert "-cp310-abi3-" in built.name
    info, _ = imported(install(built, tmp_path / "site"), tmp_path, SSD_EXT_BACKEND="cpp")
    assert "cpu library  loaded" in info
    assert next(line.split() for line in info if line.startswith("box_iou"))[1] == "C++"


def test_a_missing_cuda_library_is_said_where_a_gpu_would_use_it(built, tmp_path):
    info, warned = imported(install(built, tmp_path / "site"), tmp_path)
    assert any(line.startswith("cuda library") and "not built" in line for line in info) == bool(torch.version.cuda)
    assert ["on plain PyTorch on GPUs" in text for text in warned] == [True] * torch.cuda.is_available()


def test_ssd_ext_itself_imports_torch_only(built, tmp_path):
    site = install(built, tmp_path / "site")
    script = """
import sys
for name in ("torchvision", "PIL", "tqdm", "matplotlib", "ssd"):
    sys.modules[name] = None  # importing it fails
import ssd_ext
print(ssd_ext.info())
"""
    done = python("-c", script, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "cpu library  loaded" in done.stdout


def test_without_a_compiler_it_works_on_plain_pytorch_and_says_so_once(pure, tmp_path):
    info, warned = imported(pure, tmp_path)
    assert len(warned) == 1
    assert "ssd_ext runs on plain PyTorch" in warned[0]
    assert any(line.startswith("cpu library") and "not built" in line for line in info)


def test_an_isolated_build_asks_for_torch_where_it_can_compile(tmp_path):
    """pip installs what the hook says; the build then finds torch as any other."""
    hook = "from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"
    absent = f"import sys; sys.modules['torch'] = None; {hook}"
    no_compiler = {"PATH": str(tmp_path), "CXX": ""}
    for code, variables, expected in (
        (absent, {"SSD_EXT_BUILD": "auto"}, "['torch>=2.11', 'ninja']"),
        (absent, {"SSD_EXT_BUILD": "cpu"}, "['torch>=2.11', 'ninja']"),
        (absent, {"SSD_EXT_BUILD": "none"}, "[]"),
        (absent, {"SSD_EXT_BUILD": "auto", **no_compiler}, "[]"),
        (hook, {"SSD_EXT_BUILD": "none"}, "[]"),
    ):
        done = python("-c", code, cwd=ROOT, **variables)
        assert done.stdout.splitlines()[-1] == expected, done.stdout + done.stderr


def test_asking_for_what_cannot_be_built_fails_loudly(sdist, tmp_path):
    done = build_wheel(sdist, tmp_path, SSD_EXT_BUILD="cpu", PATH=str(tmp_path))
    assert done.returncode != 0
    assert "SSD_EXT_BUILD=cpu: no C++ compiler" in done.stdout + done.stderr
    done = build_wheel(sdist, tmp_path, SSD_EXT_BUILD="gpu")
    assert done.returncode != 0
    assert "SSD_EXT_BUILD='gpu': expected one of auto, cpu, cuda, none" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))


@pytest.fixture(scope="module")
def small(sdist, tmp_path_factory):
    """The sources with a single op: quick to build."""
    folder = tmp_path_factory.mktemp("small") / sdist.name
    shutil.copytree(sdist, folder)
    for source in (folder / "csrc").rglob("*.c*"):
        if source.suffix in (".cpp", ".cu") and source.stem != "box_iou":
            source.unlink()
    return folder


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def toolkit(folder, release):
    """The nvcc of a CUDA toolkit, as far as a build looks at it before it compiles."""
    says = f'echo "Cuda compilation tools, release {release}, V{release}.1"'
    lists = "echo compute_90"
    case = f'case "$1" in --version) {says};; --list-gpu-arch) {lists};; *) echo broken >&2; exit 1;; esac'
    script(folder / "bin" / "nvcc", case)
    (folder / "lib64").mkdir()
    return folder


CUDA = torch.version.cuda or "13.0"
OTHER_MAJOR = f"{int(CUDA.split('.')[0]) - 1}.4"
# The newest toolkit of the same major version for which torch knows the newest compiler.
BOUNDED = max((known for known in CUDA_GCC_VERSIONS if known.split(".")[0] == CUDA.split(".")[0]), default=CUDA)


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("case", "release", "reason"),
    [
        ("no toolkit", None, "no CUDA kernels: no CUDA toolkit"),
        ("a toolkit of another major version", OTHER_MAJOR, f"_cuda is left out.*{OTHER_MAJOR}.*{CUDA}"),
        ("a host compiler that is too new", BOUNDED, "_cuda is left out.*99.9.9"),
        ("a toolkit that fails", CUDA, "_cuda is left out.*Error compiling objects"),
    ],
)
def test_auto_builds_what_can_be_built_and_says_why(small, tmp_path, case, release, reason):
    environment = {"CUDA_HOME": str(toolkit(tmp_path / "cuda", release) if release else tmp_path)}
    if case.startswith("no "):
        # nvcc may lie beside the compiler; only without it on PATH is there no toolkit.
        commands = tmp_path / "bin"
        for name in ("c++", "g++", "gcc", "cc", "ninja", "as", "ld", "nproc"):
            if path := shutil.which(name):
                script(commands / name, f'exec {path} "$@"')
        environment["PATH"] = str(commands)
    if case.startswith("a host"):
        versions = 'case "$*" in *-dumpfullversion*) echo 99.9.9; exit;; esac'
        environment["CXX"] = str(script(tmp_path / "g++", f'{versions}\nexec {compiler()} "$@"'))
    done = build_wheel(small, tmp_path, "-v", **environment)
    assert done.returncode == 0, done.stderr
    assert re.search(reason, done.stdout + done.stderr), done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    info, _ = imported(install(wheel, tmp_path / "site"), tmp_path)
    assert "cpu library  loaded" in info
    assert any(line.startswith("cuda library not built") for line in info)


@pytest.mark.parametrize(
    ("cores", "memory", "max_jobs", "expected"),
    [(64, 200 << 30, "", 64), (64, 8 << 30, "", 16), (64, 100 << 20, "", 1), (8, None, "", 8), (64, 8 << 30, "5", 5)],
)
def test_compilers_at_once_are_bounded_by_cores_memory_and_max_jobs(monkeypatch, cores, memory, max_jobs, expected):
    monkeypatch.setenv("MAX_JOBS", max_jobs)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    names = runpy.run_path(str(ROOT / "setup.py"))
    names["compilers_at_once"].__globals__["free_memory"] = lambda: memory
    assert names["compilers_at_once"]() == expected


def test_backend_cpp_without_its_library_fails_loudly(pure, tmp_path):
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(pure), SSD_EXT_BACKEND="cpp")
    assert done.returncode != 0
    assert "SSD_EXT_BACKEND=cpp, but the CPU library is missing: not built" in done.stderr


@pytest.fixture
def broken(built, tmp_path):
    """Makes an installation in which the library of this device cannot be loaded."""

    def make(device):
        site = install(built, tmp_path / "site")
        (site / "ssd_ext" / f"_{device}.abi3.so").write_text("not a library")
        return site

    return make


def test_a_broken_cpu_library_is_an_error_with_a_way_out(broken, tmp_path):
    site = broken("cpu")
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode != 0
    assert "_cpu.abi3.so is built but cannot be loaded with torch" in done.stderr
    assert "SSD_EXT_BACKEND=python" in done.stderr
    assert imported(site, tmp_path, SSD_EXT_BACKEND="python")[1] == []


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_a_broken_cuda_library_leaves_the_cpu_library_at_work(broken, tmp_path):
    site = broken("cuda")
    info, (warning,) = imported(site, tmp_path)
    reason = "_cuda.abi3.so is built but cannot be loaded with torch"
    assert "ssd_ext runs on plain PyTorch on GPUs" in warning
    assert reason in warning
    assert "cpu library  loaded" in info
    assert any(line.startswith("cuda library broken") and reason in line for line in info)
    done = python("-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(site), SSD_EXT_BACKEND="cpp")
    assert done.returncode != 0
    assert reason in done.stderr
