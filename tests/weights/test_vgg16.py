from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchvision.models._api import WeightsEnum

from ssd.networks.ssd300 import SSD300
from ssd.weights.vgg16 import load_vgg16_imagenet, vgg16_to_ssd

NETWORKS = {False: torchvision.models.vgg16, True: torchvision.models.vgg16_bn}


@pytest.fixture(scope="module")
def fc6() -> Tensor:
    return torch.empty(4096, 25088).uniform_(-0.01, 0.01, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "batch_norm"])
def vgg_state(request: pytest.FixtureRequest, fc6: Tensor) -> dict[str, Tensor]:
    """Random values under torchvision's names, sized so that the signal lives through all layers."""
    with torch.device("meta"):
        shapes = NETWORKS[request.param]().state_dict()
    generator = torch.Generator().manual_seed(1)

    def fill(like: Tensor) -> Tensor:
        if like.ndim == 0:
            return torch.tensor(7)  # batches seen
        if like.ndim == 1:
            return torch.rand(like.shape, generator=generator) + 0.5
        return torch.randn(like.shape, generator=generator) * (2 / like[0].numel()) ** 0.5

    state = {n: fill(like) for n, like in shapes.items() if n not in ("classifier.0.weight", "classifier.6.weight")}
    return state | {"classifier.0.weight": fc6}


def light_state(batch_norm: bool) -> dict[str, Tensor]:
    """All entries of torchvision's state dict as one repeated number each: a file of some kilobytes."""
    with torch.device("meta"):
        shapes = NETWORKS[batch_norm]().state_dict()
    return {
        name: (torch.tensor(0) if like.ndim == 0 else torch.tensor(0.001 * (i + 1))).expand(like.shape)
        for i, (name, like) in enumerate(shapes.items())
    }


def test_base_computes_what_torchvision_computes(vgg_state: dict[str, Tensor]) -> None:
    batch_norm = "features.1.running_mean" in vgg_state
    with torch.device("meta"):
        vgg, model = NETWORKS[batch_norm](), SSD300(2, batch_norm=batch_norm)
    vgg.load_state_dict(vgg_state, strict=False, assign=True)
    model.base.load_state_dict(vgg16_to_ssd(vgg_state), assign=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        conv4_3, conv7 = model.base.eval()(images)
        convs = [i for i, layer in enumerate(vgg.features) if isinstance(layer, torch.nn.Conv2d)]
        through = 3 if batch_norm else 2  # up to the ReLU
        features = vgg.features.eval()
        expected_4_3 = features[: convs[9] + through](images)
        expected_5_3 = features[: convs[12] + through](images)
        # conv6 and conv7 by their definition: every fourth channel, every third row and column
        pooled = F.max_pool2d(expected_5_3, 3, stride=1, padding=1)
        weight_6 = vgg_state["classifier.0.weight"].view(4096, 512, 7, 7)[::4, :, ::3, ::3]
        weight_7 = vgg_state["classifier.3.weight"][::4, ::4, None, None]
        bias_6, bias_7 = vgg_state["classifier.0.bias"][::4], vgg_state["classifier.3.bias"][::4]
        expected_6 = F.conv2d(pooled, weight_6, padding=6, dilation=6)
        norm = (1 + 1e-5) ** -0.5 if batch_norm else 1  # batch norm with mean 0 and variance 1 divides by this
        expected_6 = (expected_6 * norm + bias_6[:, None, None]).relu()
        expected_7 = (F.conv2d(expected_6, weight_7) * norm + bias_7[:, None, None]).relu()
    # float32 sums in another order, and the bias moved into the mean; measured 3e-6 of the greatest value
    for got, expected in ((conv4_3, expected_4_3), (conv7, expected_7)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5 * expected.max().item())


def test_conversion_covers_the_base_and_leaves_its_input_alone(vgg_state: dict[str, Tensor]) -> None:
    batch_norm = "features.1.running_mean" in vgg_state
    before = {name: value.clone() for name, value in vgg_state.items() if value.ndim < 2}
    base = vgg16_to_ssd(vgg_state)
    with torch.device("meta"):
        expected = SSD300(2, batch_norm=batch_norm).base.state_dict()
    assert {name: value.shape for name, value in base.items()} == {n: v.shape for n, v in expected.items()}
    assert all(value.is_contiguous() for value in base.values())
    assert base["conv6.weight"].untyped_storage().nbytes() == 1024 * 512 * 9 * 4  # not a view of all of fc6
    assert all(torch.equal(vgg_state[name], value) for name, value in before.items())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_load_from_a_file(tmp_path: Path, batch_norm: bool) -> None:
    torch.save(light_state(batch_norm), tmp_path / "vgg.pth")
    model = SSD300(2, batch_norm=batch_norm)
    heads = {name: value.clone() for name, value in model.pred_convs.state_dict().items()}
    load_vgg16_imagenet(model, tmp_path / "vgg.pth")
    for name, value in vgg16_to_ssd(light_state(batch_norm)).items():
        assert torch.equal(model.base.state_dict()[name], value), name
    assert all(torch.equal(model.pred_convs.state_dict()[name], value) for name, value in heads.items())

    torch.save(light_state(not batch_norm), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"batch_norm={batch_norm} needs .*other.pth"):
        load_vgg16_imagenet(model, str(tmp_path / "other.pth"))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_download_only_when_asked(monkeypatch: pytest.MonkeyPatch, batch_norm: bool) -> None:
    asked = []

    def get_state_dict(weights: WeightsEnum, *args: object, **kwargs: object) -> dict[str, Tensor]:
        asked.append(str(weights))
        return light_state(batch_norm)

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    model = SSD300(2, batch_norm=batch_norm)
    assert asked == []
    load_vgg16_imagenet(model)
    assert asked == ["VGG16_BN_Weights.IMAGENET1K_V1" if batch_norm else "VGG16_Weights.IMAGENET1K_V1"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"width 0\.5"):
        load_vgg16_imagenet(SSD300(2, width=0.5), tmp_path / "never_read.pth")
    state = light_state(batch_norm=False)
    with pytest.raises(ValueError, match=r"features\.0\.weight is missing"):
        vgg16_to_ssd({})
    with pytest.raises(ValueError, match=r"classifier\.3\.bias is missing"):
        vgg16_to_ssd({name: value for name, value in state.items() if name != "classifier.3.bias"})
    with pytest.raises(ValueError, match=r"features\.2\.weight must .*got \(64, 64, 1, 1\)"):
        vgg16_to_ssd(state | {"features.2.weight": torch.zeros(64, 64, 1, 1)})
    with pytest.raises(ValueError, match=r"classifier\.0\.bias has values that are not finite"):
        vgg16_to_ssd(state | {"classifier.0.bias": torch.full((4096,), torch.nan)})
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        load_vgg16_imagenet(SSD300(2), tmp_path / "missing.pth")
