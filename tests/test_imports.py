"""What is imported for what, and that every script can be."""

import subprocess
import sys
from pathlib import Path

import pytest
from own_process import PATHS, printed_by

import ssd

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "tools")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None  # as where its import fails
import torch
import ssd
model = ssd.SSD300(3, width=0.05).eval()
offsets, logits = model(torch.rand(2, 3, 300, 300))
boxes, labels = [torch.tensor([[0.1, 0.1, 0.5, 0.6]])] * 2, [torch.tensor([1])] * 2
loss = ssd.MultiBoxLoss(model.priors_cxcy)(offsets, logits, boxes, labels)
assert loss.isfinite()
loss.backward()
found = ssd.detect(offsets, logits, model.priors_cxcy, 0.01, 0.45, 200)
assert len(found[0]) == 2
print("works")
"""


def test_the_loss_detection_and_network_need_no_torchvision():
    assert printed_by(WITHOUT_TORCHVISION) == "works\n"


def test_the_names_of_the_package_are_listed():
    assert set(ssd.__all__) <= set(dir(ssd))
    assert all(hasattr(ssd, name) for name in ssd.__all__)
    assert not hasattr(ssd, "nothing")


def test_modules_of_the_package_are_imported_on_first_use():
    assert printed_by("import ssd\nprint(ssd.networks.build_network.__name__)") == "build_network\n"


HELP = """
import sys
from ssd.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
print(*(name for name in sys.modules if name in sys.argv[1:]))
"""


def test_help_imports_nothing_slow():
    slow = (
        "torchvision PIL matplotlib ssd.training.run ssd.evaluation.evaluate ssd.export ssd.inference.detector ssd.data"
    )
    assert printed_by(HELP, *slow.split()).splitlines()[-1] == ""


IMPORTED = """
import sys
import ssd_ext
print(*(name for name in sys.modules if name in sys.argv[1:]))
"""


def test_ops_import_no_exporter():
    assert printed_by(IMPORTED, "torch.onnx", "onnxscript", "onnx", "torchvision") == "\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_tell_their_use_and_do_nothing(script, tmp_path):
    tree = {path: path.read_bytes() for path in (ROOT / "docs").rglob("*") if path.is_file()}
    environment = {"PYTHONPATH": PATHS, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert {path: path.read_bytes() for path in (ROOT / "docs").rglob("*") if path.is_file()} == tree
