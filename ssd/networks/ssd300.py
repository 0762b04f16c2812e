"""SSD300 on VGG16, with the parameter names of sgrvinod's tutorial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssd.networks.priors import PRESETS, PriorSpec
from ssd.networks.vgg16 import Extra, VGGNetwork

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


class SSD300(VGGNetwork):
    """SSD for images of 300 x 300 pixels; arguments, attributes and errors are those of `VGGNetwork`.

    Without `batch_norm` and at `width` 1, its state dict has the names and shapes of tutorial checkpoints. The
    parameters are random; `ssd.weights.backbone.load_backbone` loads trained ones into the base.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 2.1, figure 2 and section 3.

    Examples:
        >>> import torch
        >>> from ssd import SSD300
        >>> model = SSD300(n_classes=21, width=0.1).eval()
        >>> predicted_locs, predicted_scores = model(torch.zeros(1, 3, 300, 300))
        >>> predicted_locs.shape, predicted_scores.shape
        (torch.Size([1, 8732, 4]), torch.Size([1, 8732, 21]))
    """

    name = "ssd300"
    input_size = 300
    layouts = tuple(PRESETS)
    extras = (
        Extra(8, 256, 512, {"kernel": 3, "stride": 2, "padding": 1}),
        Extra(9, 128, 256, {"kernel": 3, "stride": 2, "padding": 1}),
        Extra(10, 128, 256, {"kernel": 3}),
        Extra(11, 128, 256, {"kernel": 3}),
    )
    sources = (
        ("conv4_3", 512),
        ("conv7", 1024),
        ("conv8_2", 512),
        ("conv9_2", 256),
        ("conv10_2", 256),
        ("conv11_2", 256),
    )
    maps = (38, 19, 10, 5, 3, 1)

    @classmethod
    def layout(cls, name: str, maps: Sequence[int]) -> PriorSpec:
        """Returns one of the presets of `ssd.networks.priors`."""
        return PRESETS[name]

    @classmethod
    def coco(cls) -> WeightsEnum:
        """Returns torchvision's weights of `ssd300_vgg16` (136 MB)."""
        from torchvision.models.detection import SSD300_VGG16_Weights

        return SSD300_VGG16_Weights.COCO_V1
