"""What CONTRIBUTING and `make help` promise is there, and `make check OP=...` finds the tests of every op."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ops import OPS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*arguments):
    return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_promised_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)", makefile, re.M)[1].split())
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    promised = re.findall(r"^(?:\t@echo \")?make ([a-z-]+)", makefile + (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert {"check", "test"} <= set(promised) <= targets


@pytest.mark.parametrize("op", OPS)
def test_check_of_an_op_names_files(op):
    done = make("check", f"OP={op}")
    files = re.findall(r"tests/\w+/test_\w+\.py", done.stdout)
    assert done.returncode == 0, done.stderr
    assert len(files) == 5
    assert all((ROOT / file).exists() for file in files)


def test_check_of_no_op_names_the_ops():
    done = make("check", "OP=nonsense")
    assert done.returncode != 0
    assert "OP=nonsense" in done.stderr
    assert set(OPS) <= set(re.findall(r"\w+", done.stderr))
