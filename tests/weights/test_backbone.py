"""ImageNet weights for the backbones of all networks, from a file or from a download."""

import pytest
import torch
import torchvision
from peer_networks import constant_state
from torchvision.models._api import WeightsEnum

from ssd.networks.ssd300 import SSD300
from ssd.networks.vgg16 import vgg16_to_ssd
from ssd.weights.backbone import load_backbone

VGG16 = {False: torchvision.models.vgg16, True: torchvision.models.vgg16_bn}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_load_from_a_file(tmp_path, batch_norm):
    torch.save(constant_state(VGG16[batch_norm]), tmp_path / "vgg.pth")
    model = SSD300(2, batch_norm=batch_norm)
    heads = {name: value.clone() for name, value in model.pred_convs.state_dict().items()}
    load_backbone(model, tmp_path / "vgg.pth")
    for name, value in vgg16_to_ssd(constant_state(VGG16[batch_norm])).items():
        assert torch.equal(model.base.state_dict()[name], value), name
    assert all(torch.equal(model.pred_convs.state_dict()[name], value) for name, value in heads.items())

    torch.save(constant_state(VGG16[not batch_norm]), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"other.pth: batch_norm={batch_norm} needs "):
        load_backbone(model, str(tmp_path / "other.pth"))
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        load_backbone(SSD300(2, width=0.01), tmp_path / "missing.pth")
    with pytest.raises(TypeError, match=r"path of a file, got dict: a state dict .* model\.load_backbone\(state"):
        load_backbone(model, constant_state(VGG16[batch_norm]))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_download_only_when_asked(monkeypatch, batch_norm):
    asked = []

    def get_state_dict(weights, *args, **kwargs):
        asked.append(str(weights))
        return constant_state(VGG16[batch_norm])

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    model = SSD300(2, batch_norm=batch_norm)
    assert asked == []
    load_backbone(model)
    assert asked == ["VGG16_BN_Weights.IMAGENET1K_V1" if batch_norm else "VGG16_Weights.IMAGENET1K_V1"]
