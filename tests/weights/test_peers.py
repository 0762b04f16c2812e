"""SSD300 of other projects with random weights, in their own networks and file formats: ours computes what they do."""

import json
import sys
import types
import zipfile

import pytest
import torch
from initial_weights import initial_model
from peer_networks import MEAN, SsdPytorch, Tutorial
from PIL import Image
from torch import nn
from torchvision.models.detection import ssd300_vgg16

from ssd import load_weights
from ssd.cli import main
from ssd.data.colour import to_input
from ssd.detection import unpad
from ssd.inference.prediction import predict_padded
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD
from ssd.networks.priors import make_priors
from ssd.networks.ssd300 import SSD300
from ssd.weights.peers import VOC_CLASSES
from ssd_ext import DetectionOptions, decode_boxes, postprocess_detections


def trained(network, deviation=1.0):
    """Random weights with which a signal of this deviation lives through all layers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and parameter.shape[0] > 1:
                nn.init.kaiming_normal_(parameter)
            elif parameter.numel() == 512 and parameter.mean() == 20:  # factors of conv4_3
                parameter.add_(torch.randn_like(parameter))
            else:
                nn.init.normal_(parameter, std=0.1)
        next(p for p in network.parameters() if p.shape == (64, 3, 3, 3)).div_(deviation)
    return network.eval()


@pytest.fixture(scope="module")
def picture():
    return torch.randint(0, 256, (3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["tutorial", "torchvision", "caffe_voc", "caffe_voc, blue first"])
def peer(request, picture, tmp_path_factory):
    """A file of the project, how to load it, and what its network predicts for the picture."""
    path, options = tmp_path_factory.mktemp("peer") / "weights.pth", {}
    with torch.no_grad():
        if request.param == "tutorial":
            network = trained(Tutorial(21))
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            outputs = network(((picture / 255 - mean) / std)[None])
        elif request.param == "torchvision":
            network = trained(ssd300_vgg16(weights=None, weights_backbone=None), deviation=74)
            images, _ = network.transform([picture / 255])
            features = list(network.backbone(images.tensors).values())
            heads = network.head(features)
            outputs = heads["bbox_regression"], heads["cls_logits"]
            (anchors,) = network.anchor_generator(images, features)
            boxes = network.box_coder.decode_single(outputs[0][0], anchors) / 300
            ours = decode_boxes(outputs[0], make_priors("torchvision"))[0]
            torch.testing.assert_close(ours, boxes, rtol=1e-5, atol=1e-5)  # float32, there in pixels
        else:
            network = trained(SsdPytorch(21), deviation=74)
            blue_first = picture.flip(0) - MEAN.flip(0)  # as OpenCV reads it
            options = {"bgr": request.param.endswith("blue first")}
            outputs = network((blue_first if options["bgr"] else blue_first.flip(0))[None])
    torch.save(network.state_dict(), path)
    return request.param.partition(",")[0], path, options, outputs


def test_peers_in_their_own_networks(peer, picture):
    priors, path, options, (offsets, logits) = peer
    model, classes = load_weights(path, device="cpu", **options)
    assert len(classes) == {"torchvision": 90}.get(priors, 20)
    assert torch.equal(model.priors_cxcy, make_priors(priors))
    with torch.no_grad():
        got = model(to_input(picture[None]))
    for ours, theirs in zip(got, (offsets, logits), strict=True):
        assert 0.1 < theirs.std() < 10
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    options = DetectionOptions(min_score=0.2, top_k=50)
    found = predict_padded(model, picture[None], options, bf16=False)
    expected = postprocess_detections(offsets, logits, make_priors(priors), options)
    rows = []
    for padded in (found, expected):
        ((boxes, labels, scores),) = unpad(padded)
        assert len(labels) == 50
        order = (10 * labels + boxes[:, 0]).argsort()  # scores may be so close that rounding swaps them
        rows.append(torch.column_stack([labels, boxes, scores])[order])
    torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def pickled(light):
    """Saves the tutorial's network as a whole, of classes that cannot be imported afterwards."""
    with torch.device("meta"):
        network = Tutorial(21)
    network.load_state_dict(light, assign=True)
    network.priors_cxcy = make_priors()
    optimizer = torch.optim.SGD([{"params": [p]} for p in network.parameters()], lr=1e-3, momentum=0.9)
    for parameter in list(network.parameters())[:3]:
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    contents = {
        "model": network,
        "as the tutorial": {"epoch": 231, "model": network, "optimizer": optimizer},
        "as it was": {"epoch": 3, "epochs_since_improvement": 1, "loss": 2.5, "best_loss": 2.4, "model": network}
        | {"optimizer": optimizer},
        "parallel": {"model": nn.DataParallel(network), "optimizer": optimizer},
        "state and optimizer": {"model": light, "optimizer": optimizer},
    }

    def save(path, content, legacy):
        Tutorial.__module__, Tutorial.__qualname__, Tutorial.__name__ = "model", "SSD300", "SSD300"
        sys.modules["model"] = types.ModuleType("model")
        sys.modules["model"].SSD300 = Tutorial
        try:
            torch.save(contents[content], path, _use_new_zipfile_serialization=not legacy)
        finally:
            del sys.modules["model"]

    return save


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("content", ["model", "as the tutorial", "as it was", "parallel", "state and optimizer"])
def test_pickled_networks_whose_class_is_gone(pickled, light, tmp_path, content, legacy):
    pickled(tmp_path / "checkpoint_ssd300.pth.tar", content, legacy)
    model, classes = load_weights(tmp_path / "checkpoint_ssd300.pth.tar", device="cpu")
    assert "model" not in sys.modules
    assert classes == VOC_CLASSES
    assert model.config == SSD300(21).config
    assert all(torch.equal(value, light[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
def test_networks_saved_on_a_gpu(pickled, light, tmp_path, legacy):
    pickled(tmp_path / "cpu.pt", "as the tutorial", legacy)
    content = (tmp_path / "cpu.pt").read_bytes()
    assert content.count(b"X\x03\x00\x00\x00cpu") == 1  # which is then taken from the memo
    if legacy:
        gpu = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1")
        gpu = gpu.replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
        (tmp_path / "gpu.pt").write_bytes(gpu)
    else:
        with zipfile.ZipFile(tmp_path / "cpu.pt") as cpu, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as gpu:
            for name in cpu.namelist():
                gpu.writestr(name, cpu.read(name).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1"))
    model, _ = load_weights(tmp_path / "gpu.pt", device="cpu")
    assert torch.equal(model.base.conv6.weight, light["base.conv6.weight"])


@pytest.mark.parametrize("form", ["state dict", "model", "state_dict", "DataParallel"])
def test_state_dicts(light, tmp_path, form):
    state = {f"module.{name}": value for name, value in light.items()} if form == "DataParallel" else light
    torch.save({form: state, "epoch": 3} if form in ("model", "state_dict") else state, tmp_path / "state.pth")
    model, _ = load_weights(tmp_path / "state.pth", device="cpu")
    assert torch.equal(model.aux_convs.conv9_2.weight, light["aux_convs.conv9_2.weight"])


def test_classes_and_errors(light, tmp_path):
    few = {n: v[: len(v) // 21 * 4] if ".cl_" in n else v for n, v in light.items()}
    torch.save(few, tmp_path / "few.pth")
    assert load_weights(tmp_path / "few.pth", device="cpu")[1] == ("class 1", "class 2", "class 3")
    assert load_weights(tmp_path / "few.pth", classes=["a", "b", "c"], device="cpu")[1] == ("a", "b", "c")

    def error_of(state):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=r"bad\.pth") as error:
            load_weights(tmp_path / "bad.pth")
        return str(error.value)

    less = {name: value for name, value in light.items() if name != "base.conv6.bias"}
    assert "differs from sgrvinod's tutorial: missing base.conv6.bias; unexpected nothing" in error_of(less)
    more = light | {f"aux_convs.conv12_{i}": torch.zeros(1) for i in range(5)}
    assert "missing nothing; unexpected aux_convs.conv12_0, aux_convs.conv12_1, aux_convs.conv12_2, ..." in error_of(
        more
    )
    other = light | {"base.conv7.weight": torch.zeros(1024, 1024, 3, 3)}
    assert (
        "base.conv7.weight of sgrvinod's tutorial must have shape (1024, 1024, 1, 1), got (1024, 1024, 3, 3)"
        in error_of(other)
    )
    assert "it contains features.0.weight" in error_of({"features.0.weight": torch.zeros(64, 3, 3, 3)})
    assert "neither a checkpoint" in error_of(light | dict.fromkeys(light, 1))


def test_coco(hub, coco, tmp_path):
    torch.save(coco, hub)
    model, classes = load_weights("coco", device="cpu")
    assert torch.equal(model.pred_convs.cl_conv11_2.bias, coco["head.classification_head.module_list.5.bias"])
    assert len(set(classes)) == 90
    assert [classes[i - 1] for i in (1, 12, 17, 90)] == ["person", "N/A 12", "cat", "toothbrush"]  # COCO's ids
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    options = ["--out", str(tmp_path / "found"), "--device", "cpu"]
    assert main(["detect", str(tmp_path / "photo.png"), *options]) == 0  # no --weights
    assert len(json.loads((tmp_path / "found" / "detections.json").read_text())["categories"]) == 90

    start = initial_model(4, "coco")
    assert start.config == model.config | {"n_classes": 4}
    assert torch.equal(start.pred_convs.loc_conv7.weight, model.pred_convs.loc_conv7.weight)
    assert start.pred_convs.cl_conv7.out_channels == 24
    with pytest.raises(ValueError, match=r"coco: has width 1\.0, but 0\.5 was given"):
        initial_model(4, "coco", width=0.5)
