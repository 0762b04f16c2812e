"""SSD on VGG16, for images of any one size, and the conversion of VGG16's weights from ImageNet to its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.boxes import decimate
from ssd.networks.layers import ConvStack, PredictionConvolutions, scaled
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network
from ssd.networks.priors import PriorSpec

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

VGG_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, channels); each ends with a pool
CONV7_CHANNELS = 1024
FC_CHANNELS = 4096
FC_STEP = FC_CHANNELS // CONV7_CHANNELS  # 4
BATCH_NORM = "features.1.running_mean"  # a name in the state dict of vgg16_bn that vgg16 does not have


class Extra(NamedTuple):
    """A block of two extra feature layers, `conv<block>_1` and `conv<block>_2`."""

    block: int
    narrow: int  # channels of its 1x1 convolution
    channels: int  # channels of its second convolution
    options: dict[str, int]  # kernel, stride and padding of its second convolution


class VGGBase(ConvStack):
    """VGG16 whose fully connected layers are the convolutions conv6 and conv7. Arguments: see `VGGNetwork`."""

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(batch_norm)
        inputs = 3
        for block, (convs, channels) in enumerate(VGG_BLOCKS, 1):
            outputs = scaled(channels, width)
            for i in range(1, convs + 1):
                self.add_layer(f"{block}_{i}", inputs, outputs, 3, padding=1)
                inputs = outputs
        outputs = scaled(CONV7_CHANNELS, width)
        self.add_layer("6", inputs, outputs, 3, padding=6, dilation=6)
        self.add_layer("7", outputs, outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes conv4_3 (B, 512, 38, 38) and conv7 (B, 1024, 19, 19) of images (B, 3, 300, 300), at width 1.

        Images of 512 pixels give maps of 64 and 32 cells per side.
        """
        for block, (convs, _) in enumerate(VGG_BLOCKS, 1):
            for i in range(1, convs + 1):
                x = self.layer(f"{block}_{i}", x)
            if block == 4:
                conv4_3 = x  # (B, 512, 38, 38)
            if block < 5:
                x = F.max_pool2d(x, 2, ceil_mode=block == 3)  # sides 150, 75, 38 (75 / 2 rounded up), 19
            else:  # stride 1 keeps the size of the map; conv6 is dilated to compensate for the stride of 2 in VGG16
                x = F.max_pool2d(x, 3, stride=1, padding=1)  # (B, 512, 19, 19)
        x = self.layer("7", self.layer("6", x))
        return conv4_3, x  # (B, 512, 38, 38), (B, 1024, 19, 19)


class AuxiliaryConvolutions(ConvStack):
    """Extra feature layers: in each block, a 1x1 convolution reduces the channels, and another one the size of the map.

    Args:
        extras: the blocks.
        width, batch_norm: see `VGGNetwork`.
    """

    def __init__(self, extras: Sequence[Extra], width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(batch_norm)
        self.blocks = tuple(extra.block for extra in extras)
        inputs = scaled(CONV7_CHANNELS, width)
        for block, narrow, channels, options in extras:
            self.add_layer(f"{block}_1", inputs, scaled(narrow, width), 1)
            self.add_layer(f"{block}_2", scaled(narrow, width), scaled(channels, width), **options)
            inputs = scaled(channels, width)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes conv8_2, conv9_2 and so on of conv7 (B, 1024, 19, 19), at width 1."""
        features = []
        for block in self.blocks:
            x = self.layer(f"{block}_2", self.layer(f"{block}_1", x))
            features.append(x)
        return features  # of SSD300: (B, 512, 10, 10), (B, 256, 5, 5), (B, 256, 3, 3), (B, 256, 1, 1)


class VGGNetwork(Network):
    """SSD on VGG16: the base, extra feature layers, and heads on all feature maps.

    A subclass is for one size of the images. It defines `extras`, `sources` and `maps`.

    Args:
        n_classes: number of classes, background 0 included, at least 2.
        width: factor on the number of channels of all layers, which is rounded to a multiple of 8; more than 0.
        batch_norm: adds batch norm after each convolution of the base and the extra layers, for training from scratch.
        head_batch_norm: adds batch norm after the convolutions that predict.
        priors: name of one of the `layouts`, or another layout (a `PriorSpec`, or its fields as a dict) for the `maps`.
        input_mean, input_std: see `Network`.

    Attributes:
        extras: the blocks of the extra feature layers.
        sources: the feature maps from which the heads predict, with their numbers of channels at width 1.
        maps: number of cells per side of each source.

    Raises:
        ValueError: an argument is out of range.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 2.1, figure 2 and section 3; for batch norm, Zhu et
    al., ScratchDet, arXiv 1810.08425, section 3.1.
    """

    extras: ClassVar[tuple[Extra, ...]]
    sources: ClassVar[tuple[tuple[str, int], ...]]
    maps: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        n_classes: int,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        head_batch_norm: bool = False,
        priors: str | PriorSpec | Mapping[str, Any] | None = None,
        input_mean: Sequence[float] = IMAGENET_MEAN,
        input_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(
            n_classes,
            width=width,
            batch_norm=batch_norm,
            head_batch_norm=head_batch_norm,
            input_mean=input_mean,
            input_std=input_std,
        )
        self.set_priors(self.layouts[0] if priors is None else priors, self.maps)
        sources = {source: scaled(channels, width) for source, channels in self.sources}
        self.base = VGGBase(width, batch_norm)
        self.aux_convs = AuxiliaryConvolutions(self.extras, width, batch_norm)
        self.pred_convs = PredictionConvolutions(n_classes, sources, self.prior_spec.boxes_per_cell, head_batch_norm)
        self.rescale_factors = nn.Parameter(torch.full((1, sources["conv4_3"], 1, 1), 20.0))
        for name, conv in self.named_modules():
            if isinstance(conv, nn.Conv2d):
                if name.startswith("base."):  # with Xavier, the signal would vanish over 15 layers with ReLU
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from images with the normalisation of the weights."""
        conv4_3, conv7 = self.base(images)  # of SSD300: (B, 512, 38, 38), (B, 1024, 19, 19)
        return self.pred_convs(self._rescale(conv4_3), conv7, *self.aux_convs(conv7))  # (B, P, 4), (B, P, C)

    def _rescale(self, x: Tensor) -> Tensor:
        """Divides each cell by its L2 norm, because conv4_3 has large values, and scales each channel by a factor."""
        # In float16 the sum of squares would overflow, and eps would be rounded to 0.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (F.normalize(wide, dim=1, eps=1e-12) * self.rescale_factors).to(x.dtype)  # the shape of x

    def stages(self) -> list[list[nn.Parameter]]:
        """The five blocks of VGG16, and conv6 with conv7; see `Network.stages`."""
        starts: list[tuple[str, ...]] = [(f"conv{block}_", f"bn{block}_") for block in range(1, len(VGG_BLOCKS) + 1)]
        starts.append(("conv6", "bn6", "conv7", "bn7"))
        return [[p for name, p in self.base.named_parameters() if name.startswith(start)] for start in starts]

    @classmethod
    def is_backbone(cls, state: Mapping[str, Any]) -> bool:
        """Whether these are the names of torchvision's `vgg16` or `vgg16_bn`."""
        return "features.0.weight" in state

    @classmethod
    def backbone_options(cls, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """The network has batch norm if the weights have it. Those that `imagenet` loads exist with and without it."""
        return {"batch_norm": state is not None and BATCH_NORM in state}

    def imagenet(self) -> WeightsEnum:
        """Returns torchvision's weights of `vgg16_bn` for a network with batch norm, otherwise of `vgg16` (530 MB).

        Raises:
            ValueError: the network's width is not 1.
        """
        from torchvision.models import VGG16_BN_Weights, VGG16_Weights

        self._check_width()
        return (VGG16_BN_Weights if self.config["batch_norm"] else VGG16_Weights).IMAGENET1K_V1

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Fills the base with the weights of torchvision's `vgg16` or `vgg16_bn`, in place.

        Args:
            state: its state dict; with batch norm exactly if the network has it.

        Raises:
            ValueError: the state dict is another one, or the network's width is not 1.
        """
        self._check_width()
        base, batch_norm = vgg16_to_ssd(state), self.config["batch_norm"]
        if ("bn1_1.weight" in base) != batch_norm:
            raise ValueError(f"{batch_norm=} needs the weights of {'vgg16_bn' if batch_norm else 'vgg16'}")
        self.base.load_state_dict(base)

    def _check_width(self) -> None:
        if (width := self.config["width"]) != 1:
            raise ValueError(f"ImageNet weights fit a network of width 1, got width {width}")


def vgg16_to_ssd(vgg_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the state dict of an ImageNet classifier to that of the base of `SSD300` and `SSD512`.

    The fully connected layers fc6 and fc7 become convolutions that keep every fourth channel; fc6 also keeps only every
    third row and column. `vgg16_bn` is converted to a base with batch norm. The convolutions of that base have no
    bias, so the biases are subtracted from the running means. In `vgg16_bn`, fc6 and fc7 have no batch norm; their
    batch norms in the base, bn6 and bn7, start as x + bias.

    Args:
        vgg_state: state dict of torchvision's `vgg16` or `vgg16_bn`, float tensors.

    Returns:
        State dict for a `VGGBase` of width 1, with or without batch norm as in `vgg_state`.

    Raises:
        ValueError: an entry is missing, has another shape or is not finite.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 3.
    """
    base: dict[str, Tensor] = {}
    batch_norm = BATCH_NORM in vgg_state

    take = partial(_take, vgg_state)

    def put(name: str, weight: Tensor, bias: Tensor, norm: dict[str, Tensor]) -> None:
        base[f"conv{name}.weight"] = weight
        if batch_norm:
            base.update({f"bn{name}.{key}": value for key, value in norm.items()})
            base[f"bn{name}.num_batches_tracked"] = torch.tensor(0)
        else:
            base[f"conv{name}.bias"] = bias

    inputs, index = 3, 0
    for block, (convs, channels) in enumerate(VGG_BLOCKS, 1):
        for i in range(1, convs + 1):
            weight = take(f"features.{index}.weight", channels, inputs, 3, 3)
            bias = take(f"features.{index}.bias", channels)
            norm = {}
            if batch_norm:
                keys = ("weight", "bias", "running_mean", "running_var")
                norm = {key: take(f"features.{index + 1}.{key}", channels) for key in keys}
                norm["running_mean"] = norm["running_mean"] - bias
            put(f"{block}_{i}", weight, bias, norm)
            inputs = channels
            index += 3 if batch_norm else 2  # convolution, batch norm, ReLU
        index += 1  # pool

    for name, fc, side, steps in (
        ("6", "classifier.0", 7, (FC_STEP, None, 3, 3)),
        ("7", "classifier.3", 1, (FC_STEP, FC_STEP, None, None)),  # its inputs are the channels that fc6 keeps
    ):
        weight = take(f"{fc}.weight", FC_CHANNELS, inputs * side * side)
        weight = decimate(weight.reshape(-1, inputs, side, side), steps)  # (1024, 512, 3, 3), (1024, 1024, 1, 1)
        bias = decimate(take(f"{fc}.bias", FC_CHANNELS), (FC_STEP,))  # (1024,)
        zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
        put(name, weight, bias, {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones})
        inputs = FC_CHANNELS
    return base


def _take(vgg_state: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    if name not in vgg_state:
        raise ValueError(f"not a state dict of torchvision's VGG16: {name} is missing")
    if vgg_state[name].shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(vgg_state[name].shape)}")
    if not vgg_state[name].isfinite().all():  # the classifier of torchvision's IMAGENET1K_FEATURES is NaN
        raise ValueError(f"{name} has values that are not finite")
    return vgg_state[name]
