"""Builds and tests the ops with another version of torch or Python: `make compat TORCH=2.11.0 PYTHON=python3.12`.

In an environment of its own, under build/compat/, both libraries are built with that torch and tested with it; then the
libraries built with the torch of .venv are tested there too. One library has to serve every torch from 2.11 on.
Needs a CUDA toolkit; no GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torchvision", "numpy", "pillow>=10.1", "tqdm", "matplotlib", "pytest", "ninja", "setuptools>=77", "wheel")
OPS = sorted(path.stem for path in (ROOT / "ssd_ext" / "ops").glob("[a-z]*.py"))
TESTS = (*OPS, "drop_in", "registry", "golden", "abi")
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.so", "*.egg-info", "__pycache__")
VERSIONS = "import platform, torch; print(f'torch {torch.__version__}, Python {platform.python_version()}')"
LOADED = "import ssd_ext; reasons = ssd_ext.info().missing; assert not any(reasons.values()), reasons"


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """What a command prints; if it fails, all that it said, and the end."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout.strip()


def environment(folder: Path, torch: str) -> Path:
    """The Python of a virtual environment with this torch."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder / "venv")
        run(python, "-m", "pip", "install", "-q", f"torch{torch and '=='}{torch}", *NEEDED)
        (folder / "ready").touch()
    return python


def wheel(builder: Path, folder: Path) -> Path:
    """A wheel of the working tree with both libraries, built with the torch of this Python."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    options = ("--no-build-isolation", "--no-deps", "-w", folder)
    run(builder, "-m", "pip", "wheel", "-q", *options, folder / "source", SSD_EXT_BUILD="cuda")
    return next(folder.glob("*.whl"))


def test(python: Path, package: Path, cwd: Path) -> str:
    """The last line of the tests with this wheel installed."""
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", package)
    run(python, "-W", "error", "-c", LOADED, cwd=cwd)
    tests = [ROOT / "tests" / f"test_{name}.py" for name in TESTS]
    options = ("-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
    return run(python, "-m", "pytest", *options, *tests, cwd=cwd, SSD_EXT_REQUIRE="cpu").splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("torch", nargs="?", default="", help="version of torch (default: the newest)")
    version = parser.parse_args().torch
    folder = (
        ROOT / "build" / "compat" / f"torch-{version or 'newest'}-py{sys.version_info.major}.{sys.version_info.minor}"
    )
    python = environment(folder, version)
    here, developer = run(python, "-c", VERSIONS), ROOT / ".venv" / "bin" / "python"
    for builder, name in ((python, "there"), (developer, f"with {run(developer, '-c', VERSIONS)}")):
        print(f"{here}: built {name}: {test(python, wheel(builder, folder / 'wheel'), folder)}", flush=True)


if __name__ == "__main__":
    main()
