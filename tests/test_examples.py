"""examples/ does what the commands do."""

import contextlib
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
from short_training import EPOCHS, NARROW, STEPS

from ssd.cli import main
from ssd.data import read_image
from ssd.data.shapes import write_shapes
from ssd.data.tiles import views
from ssd.inference.detector import Detector
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
RAY_DETECT = EXAMPLES / "ray_detect.py"


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


def imported(path):
    spec = spec_from_file_location(path.stem, path)
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


def test_a_worker_of_ray_detect_finds_what_ssd_detect_finds(detected, monkeypatch):
    if "ray" not in sys.modules:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    module = imported(RAY_DETECT)
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


def test_sahi_finds_with_our_detector_what_the_detector_finds(detected):
    pytest.importorskip("sahi", reason="the package sahi is not installed")
    from sahi.predict import POSTPROCESS_NAME_TO_CLASS, get_sliced_prediction

    example = imported(EXAMPLES / "sahi_detect.py")
    POSTPROCESS_NAME_TO_CLASS["SSD_EXT"] = example.SsdNms
    pictures, weights, _ = detected
    image = read_image(sorted(pictures.iterdir())[0]).permute(1, 2, 0).contiguous().numpy()
    detector = Detector.load(weights, device="cpu", bf16=False)
    model = example.SsdModel(model=detector, confidence_threshold=0)

    def run(**options):
        options |= {"postprocess_type": "SSD_EXT", "force_postprocess_type": True, "verbose": 0, "batch_size": 4}
        return get_sliced_prediction(image, model, **options)

    one = run(slice_height=300, slice_width=300, postprocess_match_threshold=1.0, perform_standard_pred=False)
    found = detector([image])[0]
    assert [o.category.name for o in one.object_prediction_list] == [o.name for o in found]
    boxes = [o.bbox.to_xyxy() for o in one.object_prediction_list]
    np.testing.assert_allclose(boxes, found.boxes, atol=1)  # SAHI may round
    parts = views(300, 300, 160, 0.2)
    several = run(slice_height=160, slice_width=160, postprocess_match_threshold=1.0)
    assert len(several.object_prediction_list) == sum(len(detector(image[y0:y1, x0:x1])) for x0, y0, x1, y1 in parts)
    strict = run(slice_height=160, slice_width=160, postprocess_match_threshold=0.1)
    assert 0 < len(strict.object_prediction_list) < len(several.object_prediction_list)


TRAINED = {"network": "ssd300", "epochs": EPOCHS, "split": "train", "val_split": "test", "eval_every": 1, **NARROW}


class Recorder(ModuleType):
    """Stands for mlflow or wandb where it is not installed: keeps the calls of functions that the example uses."""

    def __init__(self, name):
        super().__init__(name)
        self.calls, self.config, self.summary = [], {}, {}

    @contextlib.contextmanager
    def start_run(self, **how):
        yield self

    init = start_run

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log_metrics(self, values, step):
        self.calls.append({**values, "step": step})

    def log(self, values):
        self.calls.append(values)

    def log_params(self, values):
        self.config |= values

    def log_artifacts(self, folder):
        self.calls.append({"files": sorted(path.name for path in Path(folder).iterdir())})

    def Html(self, path):
        return Path(path).name


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_run_is_logged(package, tmp_path, monkeypatch):
    """With a double of the package, whatever is installed."""
    monkeypatch.setitem(sys.modules, package, recorder := Recorder(package))
    data = write_shapes(tmp_path / "shapes", 7, 3)
    imported(EXAMPLES / f"{package}_run.py").main(str(data), str(tmp_path / "run"), **TRAINED)
    losses = [call for call in recorder.calls if "loss" in call]
    assert [call["step"] for call in losses] == list(range(1, STEPS + 1))
    maps = [call for call in recorder.calls if "mAP" in call]
    assert [call["step"] for call in maps] == [3, 6, 9]
    assert any(name.startswith("AP/") for name in maps[0])
    assert (recorder.config["network"], recorder.config["epochs"]) == ("ssd300", EPOCHS)
    last = recorder.calls[-1]
    assert "report.html" in last.get("files", last.values())


def main_of(example, tmp_path, **environment):
    """Runs an example in its own process, with the package that is installed."""
    data = write_shapes(tmp_path / "shapes", 7, 3)
    code = f"import json, sys, {example}; {example}.main(*sys.argv[1:3], **json.loads(sys.argv[3]))"
    command = [sys.executable, "-c", code, data, tmp_path / "run", json.dumps(TRAINED)]
    paths = os.pathsep.join([str(EXAMPLES), PATHS, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_run_in_mlflow(tmp_path, monkeypatch):
    """Where mlflow or mlflow-skinny is installed."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    place = (tmp_path / "mlruns").as_uri()
    main_of("mlflow_run", tmp_path, MLFLOW_TRACKING_URI=place)
    client = mlflow.MlflowClient(tracking_uri=place)
    (run,) = client.search_runs(["0"])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, STEPS + 1))
    assert run.data.params["network"] == "ssd300"
    assert {"report.html", "best.pt"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_run_in_wandb(tmp_path):
    """Where wandb is installed; nothing is sent."""
    pytest.importorskip("wandb")
    main_of("wandb_run", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert content.count(b"conf_loss") >= STEPS
    assert b"report" in content
