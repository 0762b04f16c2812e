"""SSD on ResNet-34 and ResNet-50, with the layers of NVIDIA's reference code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ssd.networks.layers import ExtraLayers, PredictionConvolutions, xavier_
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, load_strictly
from ssd.networks.priors import PriorSpec, coco_layout

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")  # of torchvision's ResNet
EXTRAS = (512, 512, 256)  # channels of the extra feature maps; all further maps have the last number


class ResNetNetwork(Network):
    """SSD on the first four stages of a ResNet, with extra feature maps down to one cell.

    The last of these stages (conv4 in the paper, `layer3` in torchvision) has stride 1 instead of 2. So at 300 pixels,
    the maps have 38, 19, 10, 5, 3 and 1 cells per side, as in SSD300.

    Args:
        n_classes: number of classes, background 0 included, at least 2.
        size: side of the images in pixels, in the range `sizes`.
        head_batch_norm: adds batch norm after the convolutions that predict, for training from scratch.
        priors: name of one of the `layouts`, or another layout (a `PriorSpec`, or its fields as a dict) for the
            network's maps.
        input_mean, input_std: see `Network`.

    Attributes:
        channels: number of channels of the first map.

    Raises:
        ValueError: an argument is out of range.

    Source: NVIDIA/DeepLearningExamples, PyTorch/Detection/SSD; He et al., Deep Residual Learning for Image
    Recognition, arXiv 1512.03385.
    """

    input_size = 300
    sizes: ClassVar[tuple[int, int] | None] = (128, 1024)
    layouts = ("caffe_coco",)
    channels: ClassVar[int]

    def __init__(
        self,
        n_classes: int,
        *,
        size: int = 300,
        head_batch_norm: bool = False,
        priors: str | PriorSpec | Mapping[str, Any] = "caffe_coco",
        input_mean: Sequence[float] = IMAGENET_MEAN,
        input_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(n_classes, size, head_batch_norm=head_batch_norm, input_mean=input_mean, input_std=input_std)
        resnet = self.classifier()
        self.base = nn.Sequential()
        for name in PARTS:
            self.base.add_module(name, getattr(resnet, name))
        for layer in resnet.layer3[0].modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
        cells = math.ceil(size / 8)
        self.extras = ExtraLayers(self.channels, cells, EXTRAS)
        self.set_priors(priors, (cells, *self.extras.cells))
        sources = {"conv4": self.channels, **{f"extra{k}": c for k, c in enumerate(self.extras.channels, 1)}}
        self.pred_convs = PredictionConvolutions(n_classes, sources, self.prior_spec.boxes_per_cell, head_batch_norm)
        xavier_(self.pred_convs)

    @classmethod
    def classifier(cls) -> Any:  # torchvision has no types
        """Builds torchvision's classifier with random weights."""
        raise NotImplementedError

    @classmethod
    def layout(cls, name: str, maps: Sequence[int]) -> PriorSpec:
        """Returns the sides that the paper uses for COCO, as the reference code does at 300 pixels."""
        return coco_layout(maps)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from images with the normalisation of the weights."""
        conv4 = self.base(images)  # at 300 pixels (B, channels, 38, 38)
        return self.pred_convs(conv4, *self.extras(conv4))  # (B, P, 4), (B, P, C)

    def stages(self) -> list[list[nn.Parameter]]:
        """The first convolution, and the three groups of blocks after it; see `Network.stages`."""
        stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",)]
        return [[p for name in names for p in self.base.get_submodule(name).parameters()] for names in stages]

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Fills the stages with the weights of torchvision's classifier, in place.

        Args:
            state: its state dict. The last stage and the linear layer are not used.

        Raises:
            ValueError: the state dict is another one.
        """
        stages = {name: value for name, value in state.items() if name.partition(".")[0] in PARTS}
        load_strictly(self.base, stages, f"torchvision's {self.name}")


class ResNet34(ResNetNetwork):
    """`ResNetNetwork` on ResNet-34."""

    name = "resnet34"
    channels = 256

    @classmethod
    def classifier(cls) -> Any:  # torchvision has no types
        """Builds torchvision's `resnet34` with random weights."""
        from torchvision.models import resnet34

        return resnet34()

    @classmethod
    def is_backbone(cls, state: Mapping[str, Any]) -> bool:
        """Whether these are the names of torchvision's `resnet18` or `resnet34`."""
        return "layer1.0.conv2.weight" in state and "layer1.0.conv3.weight" not in state

    def imagenet(self) -> WeightsEnum:
        """Returns torchvision's weights of `resnet34` (87 MB)."""
        from torchvision.models import ResNet34_Weights

        return ResNet34_Weights.IMAGENET1K_V1


class ResNet50(ResNetNetwork):
    """`ResNetNetwork` on ResNet-50."""

    name = "resnet50"
    channels = 1024

    @classmethod
    def classifier(cls) -> Any:  # torchvision has no types
        """Builds torchvision's `resnet50` with random weights."""
        from torchvision.models import resnet50

        return resnet50()

    @classmethod
    def is_backbone(cls, state: Mapping[str, Any]) -> bool:
        """Whether these are the names of torchvision's `resnet50`, or of a deeper network with the same blocks."""
        return "layer1.0.conv3.weight" in state

    def imagenet(self) -> WeightsEnum:
        """Returns torchvision's first weights of `resnet50` (102 MB), as in the reference code."""
        from torchvision.models import ResNet50_Weights

        return ResNet50_Weights.IMAGENET1K_V1
