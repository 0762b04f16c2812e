"""examples/ does what the commands do."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from own_process import PATHS

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint

RAY_DETECT = Path(__file__).parents[1] / "examples" / "ray_detect.py"


@pytest.fixture
def detected(tmp_path):
    """A folder of pictures, weights, and the rows that `ssd detect` finds."""
    pictures = write_shapes(tmp_path / "shapes", 9, 0) / "JPEGImages"
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pt", SSD300(4, width=0.01), ["circle", "square", "triangle"])
    arguments = [
        pictures,
        "--weights",
        tmp_path / "w.pt",
        "--out",
        tmp_path / "out",
        "--no-drawings",
        "--device",
        "cpu",
    ]
    assert main(["detect", *map(str, arguments)]) == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    paths = {image["id"]: image["file_name"] for image in found["images"]}
    names = {category["id"]: category["name"] for category in found["categories"]}
    rows = [
        (Path(paths[a["image_id"]]).name, names[a["category_id"]], a["score"], *a["bbox"]) for a in found["annotations"]
    ]
    assert len(rows) > 20
    return pictures, tmp_path / "w.pt", rows


def assert_equal(columns, rows):
    paths, names, scores, x0, y0, x1, y1 = (columns[n] for n in ("path", "name", "score", "x0", "y0", "x1", "y1"))
    order = np.lexsort((np.arange(len(paths)), paths))
    found = [(Path(paths[i]).name, names[i], scores[i], x0[i], y0[i], x1[i] - x0[i], y1[i] - y0[i]) for i in order]
    assert [row[:2] for row in found] == [row[:2] for row in rows]
    np.testing.assert_allclose([row[2:] for row in found], [row[2:] for row in rows], rtol=0, atol=6e-3)  # 2 decimals


def test_a_worker_of_ray_detect_finds_what_ssd_detect_finds(detected, monkeypatch):
    if "ray" not in sys.modules:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    spec = spec_from_file_location("ray_detect", RAY_DETECT)
    spec.loader.exec_module(module := module_from_spec(spec))
    pictures, weights, rows = detected
    worker = module.Detect(str(weights))
    assert_equal(worker({"path": np.array([str(path) for path in sorted(pictures.iterdir())])}), rows)


def test_ray_detect_on_a_cluster_of_two_workers(detected, tmp_path):
    """Where ray is installed: it takes 500 MB of disk, 2 GB of memory and half a minute."""
    pytest.importorskip("ray")
    pandas = pytest.importorskip("pandas")
    pictures, weights, rows = detected
    command = [sys.executable, RAY_DETECT, pictures, weights, tmp_path / "found"]
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_equal({name: column.to_numpy() for name, column in pandas.read_parquet(tmp_path / "found").items()}, rows)
