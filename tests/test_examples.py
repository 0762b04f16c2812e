"""examples/ does what the commands do."""

import contextlib
import http.client
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from own_process import PATHS, printed_by
from PIL import Image
from short_training import EPOCHS, NARROW, STEPS

from ssd import load_weights
from ssd.cli import main
from ssd.data import read_image
from ssd.data.shapes import write_shapes
from ssd.data.tiles import views
from ssd.inference.detector import Detector
from ssd.networks.ssd300 import SSD300
from ssd.training.records import METRICS
from ssd.weights.checkpoint import save_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
RAY_DETECT = EXAMPLES / "ray_detect.py"


@pytest.fixture
def trained(tmp_path):
    """A folder of pictures, and weights."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pt", SSD300(4, width=0.01), ["circle", "square", "triangle"])
    return write_shapes(tmp_path / "shapes", 9, 0) / "JPEGImages", tmp_path / "w.pt"


@pytest.fixture
def detected(trained, tmp_path):
    """A folder of pictures, weights, and the rows that `ssd detect` finds."""
    pictures, weights = trained
    arguments = [
        pictures,
        "--weights",
        weights,
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
    return pictures, weights, rows


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


JPEG = b"\xff\xd8\xff"  # the first bytes of a file


class Gate:
    """A detector that waits for `open` before each batch, and keeps the sizes of its batches.

    The network gets one picture at a time, because rounding depends on the size of the batch.
    """

    def __init__(self, detector):
        self.detector, self.classes, self.levels = detector, detector.classes, detector.levels
        self.sizes, self.open, self.error = [], threading.Event(), None
        self.open.set()

    def __call__(self, pictures, **options):
        self.sizes.append(len(pictures))
        assert self.open.wait(60)
        if self.error:
            raise self.error
        return self.detector(pictures, **options | {"batch_size": 1})


@pytest.fixture
def served(trained):
    """Where fastapi and uvicorn are installed: the server of the example in a thread, its port, detector and module."""
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    example = imported(EXAMPLES / "serve.py")
    gate = Gate(Detector.load(trained[1], device="cpu", bf16=False))
    server = uvicorn.Server(uvicorn.Config(example.make_app(gate), port=0, log_level="error", **example.LIMITS))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    server.thread, server.port = thread, server.servers[0].sockets[0].getsockname()[1]
    yield server, gate, example
    gate.open.set()
    server.should_exit = True
    thread.join(60)


def sent(server, body, method="POST", path="/detect"):
    """A connection over which a request was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body)
    return connection


def answer(connection):
    with contextlib.closing(connection), connection.getresponse() as response:
        return response.status, json.loads(response.read())


def files_of(trained):
    return [path.read_bytes() for path in sorted(trained[0].iterdir())]


def rows_of(detector, path):
    found = detector(path)
    rows = [row | {"name": o.name} for row, o in zip(found.to_coco(), found, strict=True)]
    return {"width": found.picture.width, "height": found.picture.height, "detections": rows}


def test_serve_answers_what_the_detector_finds(served, trained, tmp_path):
    server, gate, _ = served
    Image.open(sorted(trained[0].iterdir())[0]).resize((1500, 900)).save(tmp_path / "large.png")
    for path in (*sorted(trained[0].iterdir())[:2], tmp_path / "large.png"):
        status, found = answer(sent(server, path.read_bytes()))
        assert (status, found) == (200, rows_of(gate.detector, path))
        assert found["detections"]
    assert answer(sent(server, None, "GET", "/health")) == (200, {"status": "ok", "classes": list(gate.classes)})


def test_serve_runs_the_network_on_pictures_that_wait(served, trained):
    server, gate, example = served
    expected = [(200, rows_of(gate.detector, path)) for path in sorted(trained[0].iterdir())]
    gate.open.clear()
    connections = []
    files = files_of(trained)
    for i in range(20):
        connections.append(sent(server, files[i % 9] if i != 10 else files[1][:1000]))
        while not gate.sizes:
            time.sleep(0.01)
    assert answer(sent(server, None, "GET", "/health"))[0] == 200  # so the requests before it have been read
    gate.open.set()
    answers = [answer(connection) for connection in connections]
    assert gate.sizes == [1, example.MAX_BATCH, 3]
    status, error = answers.pop(10)
    assert status == 400
    assert error["detail"].startswith("the body: cannot decode the picture (")
    assert answers == [expected[i % 9] for i in range(20) if i != 10]


def png(width, height):
    """The beginning of a PNG file."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def in_parts(body):
    yield from (body[i : i + 1000] for i in range(0, len(body), 1000))  # http.client sends no length with it


def as_gif():
    Image.new("RGB", (9, 9)).save(file := io.BytesIO(), "gif")
    return file.getvalue()


def test_serve_tells_what_is_wrong_with_a_body(served):
    server, gate, example = served
    example.MAX_BYTES = 5000
    for body, status, message in (
        (b"", 415, "the body, 0 bytes, is not a JPEG or PNG file"),
        (b"garbage", 415, "the body, 7 bytes, is not a JPEG or PNG file"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n", 415, "JPEG or PNG file; send the file and no form"),
        (as_gif(), 415, "is not a JPEG or PNG file"),
        (JPEG + b"garbage", 400, "the body: cannot read the picture (cannot identify"),
        (png(9, 9), 400, "the body: cannot decode the picture ("),
        (png(8000, 7000), 413, "8000 x 7000 pixels are more than 50000000"),
        (png(60000, 60000), 400, "the body: cannot read the picture (Image size (3600000000 pixels)"),
        (JPEG + bytes(5000), 413, "the body has more than 5000 bytes"),
        (in_parts(JPEG + bytes(5000)), 413, "the body has more than 5000 bytes"),
    ):
        gate.sizes.clear()
        found = answer(sent(server, body))
        assert found[0] == status, found
        assert message in found[1]["detail"]
        assert len(gate.sizes) == ("cannot decode" in message)  # the others were refused before


def test_serve_refuses_other_requests_and_survives_them(served, trained):
    server, gate, _ = served
    (file, *_) = files_of(trained)
    assert answer(sent(server, None, "GET"))[0] == 405
    assert answer(sent(server, file, path="/other"))[0] == 404
    with socket.create_connection(("127.0.0.1", server.port)) as unfinished:
        unfinished.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + JPEG)
    gate.error = MemoryError("too little memory")
    connection = sent(server, file)
    with contextlib.closing(connection), connection.getresponse() as response:
        assert response.status == 500
    gate.error = None
    assert answer(sent(server, file))[0] == 200


def test_serve_refuses_what_is_too_much_at_once(served, trained):
    server, gate, _ = served
    (file, *_) = files_of(trained)
    server.config.limit_concurrency = 3  # instead of LIMITS; a connection reads it when it opens
    gate.open.clear()
    waiting = [sent(server, file) for _ in range(2)]
    while len(server.server_state.connections) < 2:
        time.sleep(0.01)
    with contextlib.closing(sent(server, file)) as refused, refused.getresponse() as response:
        assert response.status == 503
    gate.open.set()
    assert [answer(connection)[0] for connection in waiting] == [200, 200]
    assert answer(sent(server, file))[0] == 200


def test_serve_answers_before_it_ends(served, trained):
    server, gate, _ = served
    gate.open.clear()
    connection = sent(server, files_of(trained)[0])
    while not gate.sizes:
        time.sleep(0.01)
    server.should_exit = True  # as a signal does
    while server.servers[0].sockets:  # until it accepts no more
        time.sleep(0.01)
    gate.open.set()
    assert answer(connection)[0] == 200
    server.thread.join(60)
    assert not server.thread.is_alive()


class Uploads(BaseHTTPRequestHandler):
    """Takes a commit as the Hugging Face Hub does; `server.calls` has the paths and bodies of all requests."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.calls.append((self.path, body))
        url = f"http://127.0.0.1:{self.server.server_port}/me/net"
        answers = {"url": url, "name": "me/net", "commitOid": "1" * 40, "commitUrl": f"{url}/commit/1"}
        if "/preupload/" in self.path:
            answers["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
        self.send_response(200)
        self.send_header("Content-Length", str(len(json.dumps(answers))))
        self.end_headers()
        self.wfile.write(json.dumps(answers).encode())

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def test_weights_are_uploaded_with_a_card(tmp_path):
    pytest.importorskip("huggingface_hub")
    torch.manual_seed(0)
    (run := tmp_path / "run").mkdir()
    save_checkpoint(run / "best.pt", SSD300(3, width=0.01), ["circle", "square"])
    rows = [{"name": "circle", "test_ap": 0.91234, "best_ap": 0.5}, {"name": "square", "test_ap": None, "best_ap": 0.5}]
    numbers = {"network": "ssd300", "size": 300, "epochs": 7, "metric": "mAP@0.5", "test_mAP": 0.9, "best_mAP": 0.5}
    (run / METRICS).write_text(json.dumps({**numbers, "classes": rows, "data": {"data": ["/home/me/secret"]}}))
    with ThreadingHTTPServer(("127.0.0.1", 0), Uploads) as server:
        server.calls = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path)}
        printed_by(
            f"import sys; sys.path.append({str(EXAMPLES)!r}); import push_to_hub; push_to_hub.main(*sys.argv[1:])",
            run,
            "me/net",
            **hub,
        )
        server.shutdown()
    (created,) = (json.loads(body) for path, body in server.calls if path == "/api/repos/create")
    assert created["name"] == "net"
    assert "private" in json.dumps(created)
    (commit,) = (body for path, body in server.calls if "/commit/" in path)
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {line["value"]["path"]: b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
    assert files.keys() == {"README.md", "best.safetensors"}
    (tmp_path / "got.safetensors").write_bytes(files["best.safetensors"])
    assert load_weights(tmp_path / "got.safetensors", device="cpu")[1] == ("circle", "square")
    card = files["README.md"].decode()
    for text in (
        "pipeline_tag: object-detection",
        "value: 0.9",
        "mAP@0.5 (test): 0.9",
        "| circle | 0.9123 |",
        "| square |  |",
        "--weights hf://me/net ",
    ):
        assert text in card
    assert "secret" not in card


def test_detections_in_fiftyone(trained, monkeypatch):
    """With a double of the package, which has what fiftyone 1.22 documents; the package needs MongoDB."""
    fiftyone = ModuleType("fiftyone")
    fiftyone.Detection = fiftyone.Detections = lambda **fields: SimpleNamespace(**fields)
    fiftyone.Dataset = object
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    example = imported(EXAMPLES / "fiftyone_detect.py")
    detector = Detector.load(trained[1], device="cpu", bf16=False)

    class Sample(dict):
        def __init__(self, path):
            super().__init__()
            self.filepath = str(path)

    paths = sorted(trained[0].iterdir())[:2]
    samples = [Sample(path) for path in paths]
    example.add_detections(
        SimpleNamespace(iter_samples=lambda progress, autosave: samples if autosave else []), detector
    )
    for sample, path in zip(samples, paths, strict=True):
        found, detections = detector(path), sample["ssd"].detections
        assert [(d.label, d.confidence) for d in detections] == [(o.name, o.score) for o in found]
        x, y, width, height = np.array([d.bounding_box for d in detections]).T
        np.testing.assert_allclose(np.stack((x, y, x + width, y + height), 1) * 300, found.boxes, atol=1e-3)


def test_predictions_for_label_studio(trained, monkeypatch, tmp_path):
    """With a double of the base class, which has the methods of label-studio-ml 2 that the example calls."""

    class Base:
        def get_first_tag_occurence(self, control, kind):
            assert (control, kind) == ("RectangleLabels", "Image")
            return "label", "image", "photo"

        def build_label_map(self, tag, names):
            assert (tag, names) == ("label", ["circle", "square", "triangle"])
            return {"circle": "Circle", "square": "square"}  # the project has no triangle

        def get_local_path(self, url, task_id):
            return str(tmp_path / url)

    for name, content in (("", {}), (".api", {"init_app": None}), (".model", {"LabelStudioMLBase": Base})):
        module = ModuleType(f"label_studio_ml{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("SSD_WEIGHTS", str(trained[1]))
    Image.open(sorted(trained[0].iterdir())[0]).resize((600, 400)).save(tmp_path / "a.png")
    Image.new("RGB", (90, 90)).save(tmp_path / "b.png")
    backend = imported(EXAMPLES / "label_studio_backend.py").SsdBackend()
    first, _ = backend.predict([{"id": 1, "data": {"photo": "a.png"}}, {"data": {"photo": "b.png"}}])
    found = [o for o in Detector.load(trained[1])(tmp_path / "a.png") if o.name != "triangle"]
    names = [row["value"]["rectanglelabels"] for row in first["result"]]
    assert names == [["Circle" if o.name == "circle" else "square"] for o in found]
    assert len({*map(str, names)}) == 2
    for row, o in zip(first["result"], found, strict=True):
        value = row["value"]
        box = (value["x"] * 6, value["y"] * 4, (value["x"] + value["width"]) * 6, (value["y"] + value["height"]) * 4)
        np.testing.assert_allclose(box, o.box, atol=1e-3)
        assert (row["from_name"], row["to_name"], row["type"]) == ("label", "image", "rectanglelabels")
        assert (row["original_width"], row["original_height"], row["score"]) == (600, 400, o.score)
    assert first["score"] == found[-1].score
    json.dumps(first)
