"""Tests the steps of an installation: `make install-check`.

In a new virtual environment whose path has blanks: installs the wheel of `make wheel`, installs it again, upgrades
torch, uninstalls it, then installs the sdist without a compiler. Prints a table. Takes some gigabytes of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from compat import LOADED, OLDEST, ROOT, VERSIONS, Failed, environment, install_torch, run

FOLDER = ROOT / "build" / "install check" / "a venv"
USED = """
import torch, ssd, ssd_ext
torch.manual_seed(0)
boxes, scores = torch.rand(500, 2).repeat(1, 2) + torch.tensor([0, 0, 0.1, 0.1]), torch.rand(500)
print(ssd_ext.nms(boxes, scores, 0.5).tolist())
"""


def libraries(site: Path) -> dict[str, str]:
    """Name -> checksum of the installed libraries of ssd_ext."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (site / "ssd_ext").glob("*.so")}


def steps(python: str, shared: Path | None, wheel: Path, sdist: Path) -> Iterator[tuple[str, str]]:
    """Does all steps; yields (step, result), and raises Failed or AssertionError if a step fails."""
    inside = environment(FOLDER, python, OLDEST, shared)
    site = Path(run(inside, "-c", "import site; print(site.getsitepackages()[0])"))
    before = {path.name for path in site.iterdir()}

    def pip(*command: str | Path, **variables: str) -> str:
        return run(inside, "-m", "pip", *command, cwd=FOLDER, **variables)

    def works() -> str:
        run(inside, "-W", "error", "-c", LOADED, cwd=FOLDER)
        assert run(inside, "-c", USED, cwd=FOLDER) == run(inside, "-c", USED, cwd=FOLDER, SSD_EXT_BACKEND="python")
        run(FOLDER / "bin" / "ssd", "info", cwd=FOLDER)
        return f"works under torch {run(inside, '-c', VERSIONS).replace(' | ', ' and Python ')}"

    pip("install", "-q", "--no-deps", wheel)
    yield "wheel installed, in a venv with blanks in its path", works()
    installed = libraries(site)
    pip("install", "-q", "--no-deps", "--force-reinstall", wheel)
    assert libraries(site) == installed
    yield "installed again", works()
    install_torch(inside, "", shared)
    assert libraries(site) == installed
    yield "torch upgraded while the wheel is installed", works()
    pip("uninstall", "-q", "-y", "ssd-ext")
    left = {path.name for path in (*site.iterdir(), *inside.parent.iterdir()) if "ssd" in path.name} - before
    assert not left, left
    yield "uninstalled", "nothing is left"

    only_ours = {"PATH": str(FOLDER / "bin")}
    said = pip("install", "-v", "--no-deps", "--no-build-isolation", sdist, **only_ours)
    words = [line.strip() for line in said.splitlines() if "will run on plain PyTorch" in line]
    assert words, said
    said = run(inside, "-c", USED, cwd=FOLDER, **only_ours)
    assert "plain PyTorch" in said, said
    yield "sdist installed by a user without a compiler", f"the build prints `{words[0]}`; the import prints it too"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3", help="interpreter (default: %(default)s)")
    parser.add_argument("--shared", type=Path, help="take NVIDIA's libraries from this site-packages folder")
    arguments = parser.parse_args()
    try:
        (wheel,), (sdist,) = (list((ROOT / "dist").glob(f"*.{suffix}")) for suffix in ("whl", "tar.gz"))
    except ValueError:
        parser.error("dist must contain one wheel and one sdist; run `make wheel` first")
    shutil.rmtree(FOLDER.parent, ignore_errors=True)
    try:
        print("| action | result |\n|---|---|")
        for row in steps(arguments.python, arguments.shared, wheel, sdist):
            print(f"| {' | '.join(row)} |", flush=True)
    except (Failed, AssertionError) as error:
        sys.exit(f"FAILED: {error}")
    finally:
        shutil.rmtree(FOLDER.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
