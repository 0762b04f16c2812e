"""SSDlite on MobileNetV3-Large, with the layers and the parameter names of torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ssd.networks.layers import DepthwiseConv2d, by_prior, scaled
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, load_strictly, map_sizes
from ssd.networks.priors import PriorSpec, coco_layout, linear_layout

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

HALF = (0.5, 0.5, 0.5)
EXTRAS = (512, 256, 256, 128)  # channels of the extra feature maps at width 1
RATIOS = (2.0, 1 / 2, 3.0, 1 / 3)
BLOCK_4 = 13  # the block of MobileNetV3-Large whose expansion is the first feature map, of stride 16
STRIDED = (2, 4, 7)  # the blocks before it, from the second on, that halve the side of the map
LAST = "features.16.0.weight"  # the last convolution of the classifier's features, which has fewer channels if reduced
REDUCED = 480  # its channels with the reduced tail

_batch_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
# The batch norm of the heads starts with these factors, so the first predictions are small: boxes close to the priors,
# and no preference for a class. With 1, the first gradients are ten times as large, and as gradients are clipped, the
# network learns little in the first fifth of a short run (docs/recipes.md, "Small networks").
FIRST_FACTOR = 0.1


class SSDLite(Network):
    """SSDlite for images of 224 to 640 pixels a side.

    With a size of 320, a width of 1 and without `head_batch_norm`, it has the parameter names and shapes of
    torchvision's `ssdlite320_mobilenet_v3_large`.

    Args:
        n_classes: number of classes, background 0 included, at least 2.
        size: side of the images in pixels.
        width: factor on the number of channels of all layers, which is rounded to a multiple of 8; more than 0.
        head_batch_norm: adds batch norm after the convolutions that predict, for training from scratch.
        reduced_tail: whether the last three blocks of MobileNetV3 have half the channels, as torchvision builds it
            without weights of ImageNet.
        priors: name of one of the `layouts`, or another layout (a `PriorSpec`, or its fields as a dict) for the
            network's six maps.
        input_mean, input_std: see `Network`.

    Raises:
        ValueError: an argument is out of range.

    Source: Howard et al., Searching for MobileNetV3, arXiv 1905.02244, section 6.3; Sandler et al., MobileNetV2, arXiv
    1801.04381, section 6.2; pytorch/vision, models/detection/ssdlite.py.
    """

    name = "ssdlite"
    input_size = 320
    sizes: ClassVar[tuple[int, int] | None] = (224, 640)
    layouts = ("torchvision", "caffe_coco")
    backbone_name = "mobilenet_v3_large"

    def __init__(
        self,
        n_classes: int,
        *,
        size: int = 320,
        width: float = 1.0,
        head_batch_norm: bool = False,
        reduced_tail: bool = True,
        priors: str | PriorSpec | Mapping[str, Any] = "torchvision",
        input_mean: Sequence[float] = HALF,
        input_std: Sequence[float] = HALF,
    ) -> None:
        super().__init__(
            n_classes,
            size,
            width=width,
            head_batch_norm=head_batch_norm,
            reduced_tail=reduced_tail,
            input_mean=input_mean,
            input_std=input_std,
        )
        self.backbone = _Features(width, reduced_tail)
        self.set_priors(priors, map_sizes(self.backbone, size))
        shape = self.backbone.channels, self.prior_spec.boxes_per_cell
        self.head = nn.ModuleDict(
            {
                "classification_head": _Head(n_classes, *shape, head_batch_norm),
                "regression_head": _Head(4, *shape, head_batch_norm),
            }
        )
        DepthwiseConv2d.replace(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.03)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @classmethod
    def layout(cls, name: str, maps: Sequence[int]) -> PriorSpec:
        """Returns torchvision's layout, with sides from 0.2 to 0.95 of the image, or one for smaller objects."""
        return linear_layout(maps, 0.2, 0.95, RATIOS) if name == "torchvision" else coco_layout(maps)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from images with the normalisation of the weights."""
        maps = self.backbone(images)
        return self.head["regression_head"](maps), self.head["classification_head"](maps)

    def stages(self) -> list[list[nn.Parameter]]:
        """The blocks of MobileNetV3 in five stages, of stride 2 to 32; see `Network.stages`."""
        first, last = self.backbone.features
        starts = [0, *STRIDED, len(first)]
        return [[*first[start:end].parameters()] for start, end in pairwise(starts)] + [[*last.parameters()]]

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """torchvision's network has the whole tail if it was trained from weights of ImageNet."""
        last = state.get("backbone.features.1.3.0.weight")
        return {"reduced_tail": last is None or len(last) <= REDUCED}

    @classmethod
    def is_backbone(cls, state: Mapping[str, Any]) -> bool:
        """Whether these are the names of torchvision's `mobilenet_v3_large`."""
        return LAST in state

    @classmethod
    def backbone_options(cls, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """The network has the tail of the classifier, which takes images normalised as for ImageNet."""
        reduced = state is not None and len(state[LAST]) <= REDUCED
        return {"reduced_tail": reduced, "input_mean": IMAGENET_MEAN, "input_std": IMAGENET_STD}

    def imagenet(self) -> WeightsEnum:
        """Returns torchvision's weights of `mobilenet_v3_large` (22 MB).

        Raises:
            ValueError: the network's width is not 1, or its tail is reduced.
        """
        from torchvision.models import MobileNet_V3_Large_Weights

        if (width := self.config.get("width", 1)) != 1 or self.config["reduced_tail"]:
            raise ValueError(
                f"ImageNet weights fit a network of width 1 with the whole tail, got width {width} and reduced_tail "
                f"{self.config['reduced_tail']}"
            )
        return MobileNet_V3_Large_Weights.IMAGENET1K_V1

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Fills the MobileNetV3 with the weights of torchvision's `mobilenet_v3_large`, in place.

        Args:
            state: its state dict, of the network's width and with the same tail.

        Raises:
            ValueError: the state dict is another one.
        """
        blocks = _mobilenet(self.config.get("width", 1.0), self.config["reduced_tail"])
        start = "features."
        features = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        load_strictly(blocks, features, f"mobilenet_v3_large with the width and the tail of this {self.name}")
        self.backbone.features.load_state_dict(_in_two(blocks).state_dict())


class SSDLite320(SSDLite):
    """torchvision's `ssdlite320_mobilenet_v3_large`: `SSDLite` with 320 pixels a side and width 1."""

    name = "ssdlite320"
    sizes = None

    def __init__(
        self,
        n_classes: int,
        *,
        head_batch_norm: bool = False,
        reduced_tail: bool = True,
        priors: str | PriorSpec | Mapping[str, Any] = "torchvision",
        input_mean: Sequence[float] = HALF,
        input_std: Sequence[float] = HALF,
    ) -> None:
        super().__init__(
            n_classes,
            head_batch_norm=head_batch_norm,
            reduced_tail=reduced_tail,
            priors=priors,
            input_mean=input_mean,
            input_std=input_std,
        )
        del self.config["size"], self.config["width"]

    @classmethod
    def coco(cls) -> WeightsEnum:
        """Returns torchvision's weights of `ssdlite320_mobilenet_v3_large` (14 MB)."""
        from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

        return SSDLite320_MobileNet_V3_Large_Weights.COCO_V1


class _Features(nn.Module):
    """MobileNetV3 in two parts, and four extra blocks: six feature maps.

    Attributes:
        channels: number of channels of each map.
    """

    def __init__(self, width: float, reduced_tail: bool) -> None:
        super().__init__()
        blocks = _mobilenet(width, reduced_tail)
        self.channels = [blocks[BLOCK_4].block[0].out_channels, blocks[-1].out_channels]
        self.features = _in_two(blocks)
        self.extra = nn.ModuleList()
        for channels in (max(16, scaled(channels, width)) for channels in EXTRAS):
            narrow = channels // 2
            layers = (
                _conv(self.channels[-1], narrow, 1),
                _conv(narrow, narrow, 3, stride=2, groups=narrow),
                _conv(narrow, channels, 1),
            )
            self.extra.append(nn.Sequential(*layers))
            self.channels.append(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes (B, 672, 20, 20), (B, 480, 10, 10), (B, 512, 5, 5) ... of images (B, 3, 320, 320), at width 1."""
        maps, x = [], images
        for block in (*self.features, *self.extra):
            x = block(x)
            maps.append(x)
        return maps


class _Head(nn.Module):
    """Predicts the same number of outputs for each prior, with a depthwise and a 1x1 convolution on each map."""

    def __init__(self, outputs: int, channels: Sequence[int], boxes: Sequence[int], batch_norm: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.module_list = nn.ModuleList()
        for inputs, n in zip(channels, boxes, strict=True):
            layers = [_conv(inputs, inputs, 3, groups=inputs), nn.Conv2d(inputs, n * outputs, 1, bias=not batch_norm)]
            if batch_norm:
                layers.append(_batch_norm(n * outputs))
                nn.init.constant_(layers[-1].weight, FIRST_FACTOR)
            self.module_list.append(nn.Sequential(*layers))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, P, outputs)."""
        return by_prior([head(x) for head, x in zip(self.module_list, maps, strict=True)], self.outputs)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, batch norm and ReLU6. The map keeps its size, or with stride 2 half of it, rounded up."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, _batch_norm(outputs), nn.ReLU6(inplace=True))


def _mobilenet(width: float, reduced_tail: bool) -> Any:  # torchvision has no types for its blocks
    """The 17 blocks of torchvision's MobileNetV3-Large, an `nn.Sequential`."""
    from torchvision.models import mobilenet_v3_large

    return mobilenet_v3_large(width_mult=width, reduced_tail=reduced_tail, norm_layer=_batch_norm).features


def _in_two(blocks: Any) -> nn.Sequential:  # see `_mobilenet`
    """Splits MobileNetV3 after the expansion of block 13, which is the first feature map."""
    expansion, rest = blocks[BLOCK_4].block[0], blocks[BLOCK_4].block[1:]
    return nn.Sequential(
        nn.Sequential(*blocks[:BLOCK_4], expansion),
        nn.Sequential(rest, *blocks[BLOCK_4 + 1 :]),
    )
