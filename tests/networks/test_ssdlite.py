"""SSDlite computes what torchvision's computes, and takes its weights."""

import math

import pytest
import torch
import torchvision
from initial_weights import initial_model
from torch import nn
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large

from ssd import load_weights
from ssd.boxes import xy_to_cxcy
from ssd.data.colour import to_input
from ssd.detection import unpad
from ssd.inference.prediction import predict_padded
from ssd.networks.network import IMAGENET_MEAN
from ssd.networks.ssdlite import SSDLite, SSDLite320
from ssd.weights.loading import open_initial
from ssd_ext import DetectionOptions

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(network):
    """Random weights and statistics with which a signal reaches all heads."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            for value in (layer.weight, layer.running_var):
                nn.init.uniform_(value, 0.5, 2)
            for value in (layer.bias, layer.running_mean):
                nn.init.normal_(value, std=0.1)
    return network.eval()


@pytest.fixture(scope="module", params=[True, False], ids=["reduced tail", "whole tail"])
def theirs(request):
    whole = {} if request.param else {"reduced_tail": False}
    if whole:  # as torchvision builds it for weights of ImageNet
        backbone = torchvision.models.mobilenet_v3_large
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "torchvision.models.detection.ssdlite.mobilenet_v3_large",
                lambda **how: backbone(**how | whole | {"weights": None}),
            )
            return trained(ssdlite320_mobilenet_v3_large(weights_backbone=None))
    return trained(ssdlite320_mobilenet_v3_large(weights_backbone=None))


def test_outputs_priors_and_detections_are_those_of_torchvision(theirs, tmp_path):
    picture = torch.randint(0, 256, (3, 320, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours, classes = load_weights(tmp_path / "w.pth", device="cpu")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.name, len(classes), classes[0]) == ("ssdlite320", 90, "person")
    with torch.no_grad():
        images, _ = theirs.transform([picture / 255])
        features = list(theirs.backbone(images.tensors).values())
        expected = theirs.head(features)
        offsets, logits = ours(to_input(picture[None]))
        (anchors,) = theirs.anchor_generator(images, features)
        (found,) = theirs([picture / 255])
    for got, its in ((offsets, expected["bbox_regression"]), (logits, expected["cls_logits"])):
        assert 0.1 < its.std() < 10
        torch.testing.assert_close(got, its, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.priors_cxcy, xy_to_cxcy(anchors / 320), rtol=0, atol=2e-7)  # a bit of float32
    options = DetectionOptions(0.001, 0.55, 300, 300, clip=True, max_log_scale=math.log(1000 / 16))
    ((boxes, labels, scores),) = unpad(predict_padded(ours, picture[None], options, bf16=False))
    rows = []
    for columns in ((found["boxes"] / 320, found["labels"], found["scores"]), (boxes, labels, scores)):
        assert len(columns[1]) == 300
        order = (10 * columns[1] + columns[0][:, 0]).argsort()  # scores may be so close that rounding swaps them
        rows.append(torch.column_stack([columns[1], columns[2], columns[0]])[order])
    torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-4)


def test_weights_of_coco(monkeypatch, tmp_path):
    asked = []
    state = ssdlite320_mobilenet_v3_large(weights_backbone=None).state_dict()
    monkeypatch.setattr(
        SSDLite320_MobileNet_V3_Large_Weights, "get_state_dict", lambda self, **how: asked.append(self.url) or state
    )
    model, classes = load_weights("coco:ssdlite320", device="cpu")
    assert asked[0].endswith("ssdlite320_mobilenet_v3_large_coco-a79551df.pth")
    assert (classes[16], model.config["input_mean"]) == ("cat", (0.5, 0.5, 0.5))
    start = initial_model(4, "coco", "ssdlite320")
    assert start.config == model.config | {"n_classes": 4}
    name = "backbone.features.1.0.2.fc1.weight"
    assert torch.equal(start.state_dict()[name], state[name])
    with pytest.raises(ValueError, match=r"coco:ssdlite: there are no weights .* only for ssd300 and ssdlite320"):
        initial_model(4, "coco", "ssdlite")


@pytest.mark.parametrize("name", ["ssdlite320", "ssdlite"])
@pytest.mark.parametrize("reduced", [True, False])
def test_weights_of_imagenet(name, reduced, tmp_path):
    classifier = torchvision.models.mobilenet_v3_large(reduced_tail=reduced)
    trained(classifier)
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    size = {"size": 224} if name == "ssdlite" else {}
    model = initial_model(3, str(tmp_path / "mobilenet.pth"), name, **size).eval()
    assert (model.config["reduced_tail"], model.config["input_mean"]) == (reduced, IMAGENET_MEAN)
    images = torch.randn(1, 3, model.input_size, model.input_size)
    with torch.no_grad():
        # batch norm has an eps of 1e-3 in both
        torch.testing.assert_close(model.backbone(images)[1], classifier.features(images))
    if name == "ssdlite":
        with pytest.raises(ValueError, match=r"mobilenet\.pth: not the weights of mobilenet_v3_large with the width"):
            initial_model(3, str(tmp_path / "mobilenet.pth"), name, width=0.5)
        with pytest.raises(ValueError, match=r"width 1 with the whole tail, got width 0\.5"):
            initial_model(3, "imagenet", name, width=0.5)


def test_a_backbone_decides_the_network_or_is_refused(tmp_path):
    torch.save({"features.16.0.weight": torch.zeros(960, 160, 1, 1)}, tmp_path / "mobilenet.pth")
    with pytest.raises(
        ValueError, match=r"mobilenet\.pth: .* ssd300, but the backbone of ssdlite320 and ssdlite: choose"
    ):
        initial_model(3, str(tmp_path / "mobilenet.pth"), "ssd300")
    assert open_initial(str(tmp_path / "mobilenet.pth")).network == "ssdlite"


def test_sizes_and_widths():
    with torch.device("meta"):
        networks = {size: SSDLite(3, size=size, width=0.1) for size in (224, 320, 512, 640)}
        full = SSDLite(3)
    assert {size: model.prior_spec.maps for size, model in networks.items()} == {
        224: (14, 7, 4, 2, 1, 1),
        320: (20, 10, 5, 3, 2, 1),
        512: (32, 16, 8, 4, 2, 1),
        640: (40, 20, 10, 5, 3, 2),
    }
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in networks.values()]
    assert all(shape == shapes[0] for shape in shapes)  # of all sizes
    assert full.backbone.channels == [672, 480, 512, 256, 256, 128]
    assert networks[320].backbone.channels == [64, 48, 48, 24, 24, 16]
    for size in (223, 641):
        with pytest.raises(ValueError, match=f"ssdlite takes 224 to 640 pixels a side, got {size}"):
            SSDLite(3, size=size)


def test_the_fixed_network_is_the_free_one_at_320():
    torch.manual_seed(0)
    fixed = SSDLite320(3)
    torch.manual_seed(0)
    free = SSDLite(3)
    assert "size" not in fixed.config
    assert fixed.state_dict().keys() == free.state_dict().keys()
    assert all(torch.equal(value, free.state_dict()[name]) for name, value in fixed.state_dict().items())
    assert torch.equal(fixed.priors_cxcy, free.priors_cxcy)
    assert SSDLite320(**fixed.config).config == fixed.config


def test_batch_norm_of_the_heads():
    plain, model = SSDLite(3, width=0.1), SSDLite(3, width=0.1, head_batch_norm=True)
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert len(added) == 2 * 6 * 5
    assert "head.regression_head.module_list.5.2.running_var" in added
    assert "head.regression_head.module_list.5.1.bias" not in model.state_dict()


def test_the_first_predictions_of_normalised_heads_are_small():
    model = SSDLite(4, size=224, width=0.1, head_batch_norm=True).train()
    with torch.no_grad():
        for predicted in model(torch.randn(4, 3, 224, 224)):  # offsets and logits
            assert 0.05 < predicted.std() < 0.15
