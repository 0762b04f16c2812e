from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from peer_networks import constant_state
from torch import Tensor
from torch.nn import functional as F

from ssd.networks.ssd300 import SSD300
from ssd.networks.vgg16 import vgg16_to_ssd

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


def test_bad_input() -> None:
    state = constant_state(torchvision.models.vgg16)
    for use in (SSD300(2, width=0.5).imagenet, partial(SSD300(2, width=0.5).load_backbone, state)):
        with pytest.raises(ValueError, match=r"width 0\.5"):
            use()
    with pytest.raises(ValueError, match=r"features\.0\.weight is missing"):
        vgg16_to_ssd({})
    with pytest.raises(ValueError, match=r"classifier\.3\.bias is missing"):
        vgg16_to_ssd({name: value for name, value in state.items() if name != "classifier.3.bias"})
    with pytest.raises(ValueError, match=r"features\.2\.weight must .*got \(64, 64, 1, 1\)"):
        vgg16_to_ssd(state | {"features.2.weight": torch.zeros(64, 64, 1, 1)})
    with pytest.raises(ValueError, match=r"classifier\.0\.bias has values that are not finite"):
        vgg16_to_ssd(state | {"classifier.0.bias": torch.full((4096,), torch.nan)})
    with pytest.raises(ValueError, match="batch_norm=True needs the weights of vgg16_bn"):
        SSD300(2, batch_norm=True).load_backbone(state)
