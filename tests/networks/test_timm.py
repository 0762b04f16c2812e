"""SSD on models of timm: their feature maps, their weights, and what is said without timm."""

import sys

import pytest
import torch
from initial_weights import initial_model
from torch import nn

from ssd.networks import build_network

timm = pytest.importorskip("timm", reason="no timm: pip install 'ssd-ext[timm]'")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "maps", "channels"),
    [
        ("mobilenetv3_small_050", (20, 10, 5, 3, 1), [16, 24, 288]),
        ("convnext_atto", (20, 10, 5, 3, 1), [80, 160, 320]),  # its maps are rounded down
        ("swin_tiny_patch4_window7_224", (20, 10, 5, 3, 1), [192, 384, 768]),  # channels last, and a fixed size
        ("vit_tiny_patch16_224", (10, 5, 3, 1), [192]),  # twelve maps of stride 16
    ],
)
def test_maps_of_models(name, maps, channels):
    with torch.device("meta"):
        model = build_network(f"timm:{name}", 3, size=160)
        offsets, _ = model.eval()(torch.zeros(1, 3, 160, 160))
    assert (model.prior_spec.maps, model.base.channels) == (maps, channels)
    assert offsets.shape == (1, len(model.priors_cxcy), 4)


def test_the_input_of_the_model_is_that_of_timm():
    with torch.device("meta"):
        assert build_network("timm:resnet18", 3).input_scale is None
        assert build_network("timm:vit_tiny_patch16_224", 3).config["input_mean"] == (0.5, 0.5, 0.5)
        assert build_network("timm:resnet18", 3, input_std=(1, 1, 1)).config["input_std"] == (1, 1, 1)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_from_a_file(name, suffix, tmp_path):
    torch.manual_seed(0)
    classifier = timm.create_model(name)
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
    path, save = tmp_path / f"w.{suffix}", torch.save if suffix == "pth" else save_file
    save(classifier.state_dict(), path)
    model = initial_model(3, str(path), f"timm:{name}", size=160).eval()
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        _, expected = classifier.eval().forward_intermediates(images)
        torch.testing.assert_close(model.base(images)[0], next(x for x in expected if x.shape[2] == 20))
    other = {key: value for key, value in classifier.state_dict().items() if "1" not in key}
    save(other, path)
    with pytest.raises(ValueError, match=rf"w\.{suffix}: not the weights of timm's {name}: \d+ of \d+ .* missing \("):
        initial_model(3, str(path), f"timm:{name}", size=160)


def test_weights_from_the_hub(monkeypatch):
    model = build_network("timm:mobilenetv3_small_050", 3, size=160)
    classifier = timm.create_model("mobilenetv3_small_050")
    create = timm.create_model

    def created(name, pretrained=False, **how):
        return classifier if pretrained and not how else create(name, pretrained=pretrained, **how)

    monkeypatch.setattr(timm, "create_model", created)
    loaded = initial_model(3, "imagenet", "timm:mobilenetv3_small_050", size=160)
    name = "conv_stem.weight"
    assert torch.equal(loaded.base.model.state_dict()[name], classifier.state_dict()[name])
    assert not torch.equal(loaded.base.model.state_dict()[name], model.base.model.state_dict()[name])

    def offline(name, **how):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"timm:mobilenetv3_small_050: .* cannot be downloaded \(no route to host\)"):
        model.imagenet()


def test_models_that_do_not_fit():
    with pytest.raises(ValueError, match="network: timm has no model 'resnet19'"):
        build_network("timm:resnet19", 3)
    with pytest.raises(ValueError, match="size 300 does not suit this network: "):
        build_network("timm:dla34", 3, size=300)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm:NAME needs timm .*: pip install 'ssd-ext\[timm\]'"):
        build_network("timm:resnet18", 3)
