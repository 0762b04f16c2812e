"""Tests the wheel under several Pythons and torches: `make compat`, or `make compat TORCH=2.11.0 PYTHON=python3.12`.

For each pair of Python and torch, makes a virtual environment under build/compat, installs the wheel of `make wheel`
and tests the ops. Prints a table at the end. Needs no GPU. Each environment takes some gigabytes of disk while it is
tested; --shared saves them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")
OLDEST = "2.11.0"  # supported torch
TORCHES = (OLDEST, "")  # "" is the newest
VISIONS = {"2.11.0": "0.26.0"}
NEEDED = ("numpy", "pillow>=10.1", "tqdm", "matplotlib", "pyyaml", "pytest", "simplejpeg>=1.8")
OF_TORCH = ("filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools>=77")
OPS = sorted(path.stem for path in (ROOT / "ssd_ext" / "ops").glob("[a-z]*.py"))
TESTS = (*(f"ops/test_{op}" for op in OPS), "test_drop_in", "kernels/test_registry", "kernels/test_golden")
VERSIONS = "import platform, torch; print(f'{torch.__version__} | {platform.python_version()}')"
LOADED = "import ssd_ext; reasons = ssd_ext.info().missing; assert not any(reasons.values()), reasons"


class Failed(Exception):
    """A command failed; the message has its output."""


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Runs a command; returns its output, or raises Failed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise Failed(f"{done.stdout}\n{' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout.strip()


def install_torch(inside: Path, torch: str, shared: Path | None) -> None:
    """Installs a version of torch, or the newest if it is empty, in place of the installed one."""
    torch, vision = (f"{name}{version and '=='}{version}" for name, version in
                     (("torch", torch), ("torchvision", VISIONS.get(torch, ""))))  # fmt: skip
    alone = ["--no-deps"] if shared else []
    run(inside, "-m", "pip", "install", "-q", "--no-cache-dir", "--upgrade", *alone, torch, vision)


def environment(folder: Path, python: str, torch: str, shared: Path | None) -> Path:
    """Makes a virtual environment with this torch; returns its Python."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    install_torch(inside, torch, shared)
    run(inside, "-m", "pip", "install", "-q", "--no-cache-dir", *(OF_TORCH if shared else ()), *NEEDED)
    if shared is None:
        return inside
    libraries = folder / "nvidia"  # only this package: the rest of that environment must not be found
    libraries.mkdir()
    (libraries / "nvidia").symlink_to(shared / "nvidia")
    site = run(inside, "-c", "import site; print(site.getsitepackages()[0])")
    Path(site, "nvidia.pth").write_text(f"{libraries}\n")
    return inside


def cell(folder: Path, python: str, torch: str, shared: Path | None, wheel: Path) -> str:
    """Tests one pair; returns its row of the table: torch, Python, the last line of the tests."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        inside = environment(folder, python, torch, shared)
        run(inside, "-m", "pip", "install", "-q", "--no-deps", wheel)
        run(inside, "-W", "error", "-c", LOADED, cwd=folder)
        tests = [ROOT / "tests" / f"{name}.py" for name in TESTS]
        options = ("-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
        result = run(inside, "-m", "pytest", *options, *tests, cwd=folder, SSD_EXT_REQUIRE="cpu").splitlines()[-1]
        return f"| {run(inside, '-c', VERSIONS)} | {result.strip('= ')} |"
    except Failed as failed:
        print(failed, file=sys.stderr)
        return f"| {torch or 'newest'} | {python} | FAILED |"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="*", default=TORCHES, help="versions (default: 2.11.0 and the newest)")
    parser.add_argument("--python", nargs="*", default=PYTHONS, help="interpreters (default: python3.10 to python3.13)")
    parser.add_argument("--wheel", type=Path, help="default: the wheel in dist")
    parser.add_argument("--shared", type=Path, help="take NVIDIA's libraries from this site-packages folder")
    arguments = parser.parse_args()
    wheel = arguments.wheel or next((ROOT / "dist").glob("*.whl"), None)
    if wheel is None:
        parser.error("there is no wheel in dist; run `make wheel` first")
    rows = []
    for torch in arguments.torch:
        for python in arguments.python:
            folder = ROOT / "build" / "compat" / f"torch-{torch or 'newest'}-{Path(python).name}"
            rows.append(cell(folder, python, torch, arguments.shared, wheel.resolve()))
            print(rows[-1], flush=True)
    print(f"\n{wheel.name}\n\n| torch | Python | tests of the ops |\n|---|---|---|", *rows, sep="\n")
    sys.exit(any("FAILED" in row or " failed" in row for row in rows))


if __name__ == "__main__":
    main()
