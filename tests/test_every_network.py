"""Each network, small, through a run that is stopped and resumed, evaluation, detection, conversion and export."""

import os
import signal

import pytest
import torch
from initial_weights import initial_model
from short_training import run, states_equal
from torchvision.models.detection import ssd300_vgg16

import ssd.training.run as training
from ssd import Detector, load_weights
from ssd.cli import main
from ssd.data import open_dataset
from ssd.data.shapes import write_shapes
from ssd.export import FORMATS, export
from ssd.networks import build_network
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from ssd.weights.loading import open_initial
from ssd_ext import DetectionOptions

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "ssd300": {"width": 0.01},
    "ssd512": {"width": 0.01},
    "ssdlite320": {},
    "ssdlite": {"size": 224, "width": 0.1},
    "resnet34": {"size": 128},
    "timm:mobilenetv3_small_050": {"size": 128},
}
CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return str(write_shapes(tmp_path_factory.mktemp("data") / "shapes", 4, 2))


def settings_for(shapes, network, **more):
    options = {"epochs": 2, "batch_size": 2, "eval_every": 2, "bf16": False, **NETWORKS[network], **more}
    return Settings((shapes,), "train", "test", network=network, **options)


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, shapes, tmp_path_factory):
    """The name of a network, and the folder of a run of it."""
    if request.param.startswith("timm:"):
        pytest.importorskip("timm", reason="no timm: pip install 'ssd-ext[timm]'")
    out = tmp_path_factory.mktemp("run") / "run"
    run(settings_for(shapes, request.param), out)
    return request.param, out


def test_a_stopped_run_goes_on_to_the_same_bits(trained, shapes, tmp_path, monkeypatch):
    name, out = trained
    step, calls = training.train_step, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(training, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(settings_for(shapes, name), tmp_path / "run")
    assert len(calls) < 4
    run(None, tmp_path / "run", resume=True)
    whole, resumed = load_checkpoint(out / "last.pt"), load_checkpoint(tmp_path / "run" / "last.pt")
    assert states_equal(whole["model"], resumed["model"])
    assert whole["network"] == resumed["network"] == whole["settings"]["network"] == name
    with pytest.raises(ValueError, match=r"size is \d+ in the run, but 640 was given|size: the network \w+ takes only"):
        run(settings_for(shapes, name, size=640), tmp_path / "run", resume=True, given=["size"])


def test_weights_are_of_one_network_and_size(trained, tmp_path):
    name, out = trained
    path = str(out / "best.pt")
    model, classes = load_weights(path, device="cpu")
    assert (model.name, classes) == (name, CLASSES)
    start = initial_model(5, path)
    assert start.config == model.config | {"n_classes": 5}
    other = "resnet50" if name != "resnet50" else "ssdlite"
    with pytest.raises(ValueError, match=rf"best\.pt: has the network {name}, but {other} was given; leave out"):
        initial_model(5, path, other)
    if "size" in model.config:
        for use in (open_initial(path).input_size, lambda size: initial_model(5, path, size=size)):
            with pytest.raises(ValueError, match=rf"best\.pt: has size {model.input_size}, but 256 was given; leave"):
                use(256)
    state = load_checkpoint(path)
    torch.save(state | {"network": other, "config": {"n_classes": 4}}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"wrong\.pt: its config, parameters and class names do not fit together"):
        load_weights(tmp_path / "wrong.pt")
    torch.save(state | {"network": "yolo"}, tmp_path / "unknown.pt")
    with pytest.raises(ValueError, match=r"unknown\.pt: .*network must be one of ssd300, .*, got 'yolo'"):
        load_weights(tmp_path / "unknown.pt")


def test_a_run_starts_from_the_network_of_its_weights(trained, shapes, tmp_path):
    name, out = trained
    settings = Settings((shapes,), "train", "test", weights=str(out / "best.pt"), epochs=1, batch_size=4, bf16=False)
    run(settings, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["network"] == state["settings"]["network"] == name
    assert state["config"] == load_checkpoint(out / "best.pt")["config"]


def test_commands(trained, shapes, tmp_path, capsys):
    name, out = trained
    weights = ["--weights", str(out / "best.pt"), "--device", "cpu"]
    size = [f"--size={NETWORKS[name]['size']}"] if "size" in NETWORKS[name] else []
    assert main(["eval", shapes, "--split", "test", *weights, "--workers", "0"]) == 0
    assert "mAP@0.5 (area)" in capsys.readouterr().out
    assert main(["detect", shapes, *weights, "--min-score", "0.01", "--out", str(tmp_path / "found")]) == 0
    assert "6 pictures, " in capsys.readouterr().out
    assert main(["convert", str(out / "last.pt"), str(tmp_path / "small.pt")]) == 0
    assert load_checkpoint(tmp_path / "small.pt")["network"] == name
    capsys.readouterr()
    assert main(["info", shapes, "--network", name, *size]) == 0
    input_size = load_weights(out / "best.pt", device="cpu")[0].input_size
    assert f"in pixels of the {input_size} x {input_size} input" in capsys.readouterr().out


OPTIONS = DetectionOptions(min_score=0.1, top_k=20)


def test_an_exported_program_finds_the_same(trained, shapes, tmp_path):
    _, out = trained
    export(out / "best.pt", tmp_path / "x.pt2", options=OPTIONS)  # compares the detections
    detector = Detector.load(tmp_path / "x.pt2")
    assert detector.model.input_size == load_weights(out / "best.pt", device="cpu")[0].input_size
    assert all(len(found) > 0 for found in detector(open_dataset(shapes, "test", CLASSES).pictures))


def test_ssdlite_in_int8(shapes, tmp_path):
    """For Intel's processors; the layers of the other networks are of the same kinds."""
    for module in FORMATS["openvino"].modules:
        pytest.importorskip(module)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pt", build_network("ssdlite", 4, **NETWORKS["ssdlite"]), CLASSES)
    metadata = export(tmp_path / "w.pt", tmp_path / "x.xml", "openvino", OPTIONS, int8=shapes)
    assert (metadata.input_size, metadata.precision) == (224, "int8")
    assert len(Detector.load(tmp_path / "x.xml")(open_dataset(shapes, "test", CLASSES).pictures[0])) > 0


def test_what_a_network_does_not_take(shapes, tmp_path, capsys):
    def error_of(*arguments):
        assert main(["train", shapes, "--out", str(tmp_path / "run"), *arguments]) == 2
        return capsys.readouterr().err

    assert "size: the network ssd300 takes only 300 pixels a side, got 512" in error_of(
        "--network", "ssd300", "--size", "512"
    )
    assert "size: the network ssdlite takes 224 to 640 pixels a side, got 200" in error_of(
        "--network", "ssdlite", "--size", "200"
    )
    assert "width: the network resnet34 does not have this option; it has size, head_batch_norm, priors" in error_of(
        "--network", "resnet34", "--width", "0.5"
    )
    assert "priors of the network ssd512 must be caffe_coco, caffe_voc, auto, got tutorial" in error_of(
        "--network", "ssd512", "--priors", "tutorial"
    )
    with torch.device("meta"):
        shapes_of = ssd300_vgg16(weights=None, weights_backbone=None).state_dict()
    torch.save({n: torch.zeros(1).expand(v.shape) for n, v in shapes_of.items()}, tmp_path / "ssd300.pth")
    assert "ssd300.pth: has the network ssd300, but ssdlite320 was given" in error_of(
        "--network", "ssdlite320", "--weights", str(tmp_path / "ssd300.pth")
    )
    assert not (tmp_path / "run" / "last.pt").exists()
