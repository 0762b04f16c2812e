"""SSD on ResNet: its maps, its priors and its first stages, which are those of torchvision with another stride."""

import pytest
import torch
import torchvision
from initial_weights import initial_model
from peer_networks import constant_state

from ssd.networks.priors import make_priors
from ssd.networks.resnet import ResNet34, ResNet50

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIERS = {"resnet34": torchvision.models.resnet34, "resnet50": torchvision.models.resnet50}


@pytest.mark.parametrize("kind", [ResNet34, ResNet50])
def test_layers_of_the_reference_code(kind):
    """At 300 pixels, NVIDIA/DeepLearningExamples has these maps, channels, boxes and sizes of priors."""
    with torch.device("meta"):
        model = kind(81)
    assert model.prior_spec.maps == (38, 19, 10, 5, 3, 1)
    assert model.prior_spec.boxes_per_cell == (4, 6, 6, 6, 4, 4)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    inputs, narrow, outputs = [kind.channels, 512, 512, 256, 256], [256, 256, 128, 128, 128], [512, 512, 256, 256, 256]
    for k in range(5):
        assert shapes[f"extras.{k}.0.weight"] == (narrow[k], inputs[k], 1, 1)
        assert shapes[f"extras.{k}.3.weight"] == (outputs[k], narrow[k], 3, 3)
        assert f"extras.{k}.3.bias" not in shapes
        conv = model.extras[k][3]
        assert (conv.stride, conv.padding) == (((2, 2), (1, 1)) if k < 3 else ((1, 1), (0, 0)))
    assert shapes["pred_convs.cl_conv4.weight"] == (4 * 81, kind.channels, 3, 3)
    spec = kind.layout("caffe_coco", (38, 19, 10, 5, 3, 1))
    coco = make_priors("caffe_coco")  # 21, 45, 99, 153, 207, 261 pixels, as in the reference code
    priors = make_priors(spec)
    assert priors.shape == (8732, 4)
    torch.testing.assert_close(priors[:, 2:], coco[:, 2:], rtol=1e-6, atol=0)
    # The reference code places centres by the stride: ten cells of 32 pixels are more than the image.
    assert (priors - coco)[:, :2].abs().max() < 0.061


@pytest.mark.parametrize(
    ("size", "maps"),
    [
        (128, (16, 8, 4, 2, 1)),
        (320, (40, 20, 10, 5, 3, 1)),
        (512, (64, 32, 16, 8, 4, 2, 1)),
        (640, (80, 40, 20, 10, 5, 3, 1)),
    ],
)
def test_maps_of_other_sizes(size, maps):
    with torch.device("meta"):
        model = ResNet34(3, size=size)
    assert model.prior_spec.maps == maps
    assert model.prior_spec.boxes_per_cell == (4, *(6,) * (len(maps) - 3), 4, 4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_weights_of_imagenet(name, tmp_path):
    torch.manual_seed(0)
    classifier = CLASSIFIERS[name]()
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    torch.save(classifier.state_dict(), tmp_path / "resnet.pth")
    model = initial_model(3, str(tmp_path / "resnet.pth"), name, size=128).eval()
    images = torch.randn(1, 3, 128, 128)
    c = classifier.eval()
    with torch.no_grad():
        expected = c.layer2(c.layer1(c.maxpool(c.relu(c.bn1(c.conv1(images))))))
        torch.testing.assert_close(model.base[:-1](images), expected)
        for conv in (c.layer3[0].conv1, c.layer3[0].conv2, c.layer3[0].downsample[0]):
            conv.stride = (1, 1)
        torch.testing.assert_close(model.base(images), c.layer3(expected))


def test_weights_of_another_classifier(tmp_path):
    torch.save(constant_state(torchvision.models.resnet18), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18\.pth: not the weights of torchvision's resnet34: "):
        initial_model(3, str(tmp_path / "resnet18.pth"), "resnet34", size=128)
    state = torch.load(tmp_path / "resnet18.pth")
    for name in ("model", "state_dict"):
        torch.save({name: state, "epoch": 3}, tmp_path / "nested.pth")
        with pytest.raises(ValueError, match=r"nested\.pth: not the weights of torchvision's resnet34: "):
            initial_model(3, str(tmp_path / "nested.pth"), "resnet34", size=128)
    with pytest.raises(ValueError, match=r"no weights for the network resnet50, but the backbone of resnet34: choose"):
        initial_model(3, str(tmp_path / "resnet18.pth"), "resnet50")
