"""SSD300: VGG16 base, extra feature layers and prediction heads, with the parameter names of the tutorial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.detection import detect
from ssd.networks.priors import PriorSpec, find_spec, make_priors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VGG_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, channels); each ends with a pool
CONV7_CHANNELS = 1024
# (block, channels of its 1x1 convolution, channels of its 3x3 convolution, options of its 3x3 convolution)
EXTRAS: tuple[tuple[int, int, int, dict[str, int]], ...] = (
    (8, 256, 512, {"stride": 2, "padding": 1}),
    (9, 128, 256, {"stride": 2, "padding": 1}),
    (10, 128, 256, {}),
    (11, 128, 256, {}),
)
# The feature maps from which the heads predict, with their numbers of channels.
SOURCES = {"conv4_3": 512, "conv7": 1024, "conv8_2": 512, "conv9_2": 256, "conv10_2": 256, "conv11_2": 256}
MAPS = (38, 19, 10, 5, 3, 1)  # cells per side of each source


def scaled(channels: int, width: float) -> int:
    """Number of channels of a layer at a width (a factor): rounded to a multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))


class ConvStack(nn.Module):
    """Convolutions `conv<name>`, each followed by ReLU.

    With `batch_norm`, `bn<name>` lies between the convolution and the ReLU. Then the convolutions have no bias, because
    normalisation would subtract it.
    """

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.batch_norm = batch_norm

    def add_layer(
        self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> None:
        """Adds the layer `conv<name>`.

        Args:
            name: the suffix of its parameters' names.
            inputs, outputs: number of channels.
            kernel, stride, padding, dilation: see `nn.Conv2d`.
        """
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=not self.batch_norm)
        self.add_module(f"conv{name}", conv)
        if self.batch_norm:
            self.add_module(f"bn{name}", nn.BatchNorm2d(outputs))

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Applies the layer `conv<name>` with its batch norm and ReLU to (B, inputs, H, W)."""
        x = getattr(self, f"conv{name}")(x)
        if self.batch_norm:
            x = getattr(self, f"bn{name}")(x)
        return F.relu(x, inplace=True)


class VGGBase(ConvStack):
    """VGG16 whose fully connected layers are the convolutions conv6 and conv7. Arguments: see `SSD300`."""

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
        """Computes conv4_3 (B, 512, 38, 38) and conv7 (B, 1024, 19, 19) of images (B, 3, 300, 300), at width 1."""
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
    """Extra feature layers: in each block, a 1x1 convolution reduces the channels, and a 3x3 one the size of the map.

    Arguments: see `SSD300`.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(batch_norm)
        inputs = scaled(CONV7_CHANNELS, width)
        for block, narrow, channels, options in EXTRAS:
            self.add_layer(f"{block}_1", inputs, scaled(narrow, width), 1)
            self.add_layer(f"{block}_2", scaled(narrow, width), scaled(channels, width), 3, **options)
            inputs = scaled(channels, width)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes conv8_2, conv9_2, conv10_2 and conv11_2 of conv7 (B, 1024, 19, 19), at width 1."""
        features = []
        for block, *_ in EXTRAS:
            x = self.layer(f"{block}_2", self.layer(f"{block}_1", x))
            features.append(x)
        return features  # (B, 512, 10, 10), (B, 256, 5, 5), (B, 256, 3, 3), (B, 256, 1, 1)


class PredictionConvolutions(nn.Module):
    """3x3 convolutions on each source: `loc_<source>` predicts offsets, `cl_<source>` class logits.

    With `batch_norm`, `bn_loc_<source>` and `bn_cl_<source>` follow, and the convolutions have no bias.

    Args:
        n_classes: number of classes C, background included.
        width: see `SSD300`.
        boxes_per_cell: number of priors in a cell of each source.
        batch_norm: whether batch norm follows the convolutions.
    """

    def __init__(
        self,
        n_classes: int,
        width: float = 1.0,
        boxes_per_cell: tuple[int, ...] = (4, 6, 6, 6, 4, 4),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.outputs = {"loc": 4, "cl": n_classes}
        for head, outputs in self.outputs.items():
            for (source, channels), boxes in zip(SOURCES.items(), boxes_per_cell, strict=True):
                conv = nn.Conv2d(scaled(channels, width), boxes * outputs, 3, padding=1, bias=not batch_norm)
                self.add_module(f"{head}_{source}", conv)
                if batch_norm:
                    self.add_module(f"bn_{head}_{source}", nn.BatchNorm2d(boxes * outputs))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from the maps of `SOURCES`, in that order."""
        predictions = []
        for head, outputs in self.outputs.items():
            maps = []
            for source, x in zip(SOURCES, features, strict=True):
                x = getattr(self, f"{head}_{source}")(x)
                if self.batch_norm:
                    x = getattr(self, f"bn_{head}_{source}")(x)
                x = x.permute(0, 2, 3, 1)  # (B, H, W, boxes * outputs)
                maps.append(x.unflatten(3, (-1, outputs)).flatten(1, 3))  # (B, H * W * boxes, outputs)
            predictions.append(torch.cat(maps, dim=1))
        return tuple(predictions)  # (B, P, 4), (B, P, C)


class SSD300(nn.Module):
    """SSD for images of 300 x 300 pixels.

    Without `batch_norm` and at `width` 1, its state dict has the names and shapes of tutorial checkpoints.
    The parameters are random; `ssd.weights.vgg16.load_vgg16_imagenet` loads trained ones into the base.

    Args:
        n_classes: number of classes, background 0 included, at least 2.
        width: factor on the number of channels of all layers, which is rounded to a multiple of 8; more than 0.
        batch_norm: adds batch norm after each convolution of the base and the extra layers, for training from scratch.
        head_batch_norm: adds batch norm after the convolutions that predict.
        priors: name of a preset of `ssd.networks.priors`, or another layout (a `PriorSpec`, or its fields as a dict)
            for the maps 38, 19, 10, 5, 3, 1.
        input_mean, input_std: mean and standard deviation of red, green and blue in 0..1, with which the input was
            normalised when the weights were trained. `forward` always takes images normalised with the mean and
            standard deviation of ImageNet, and converts the images to this normalisation.

    Attributes:
        input_size: side of the images in pixels, 300; also an attribute of the class.
        config: these arguments as a dict of plain values; `SSD300(**config)` builds the same network with random
            parameters.
        priors_cxcy: (P, 4) float32 cxcywh in fractions of the image; not in the state dict.

    Raises:
        ValueError: an argument is out of range.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, section 2.1, figure 2 and section 3; for batch norm, Zhu et
    al., ScratchDet, arXiv 1810.08425, section 3.1.
    """

    input_size = 300
    config: dict[str, Any]
    priors_cxcy: Tensor
    input_scale: Tensor | None  # None if the input is normalised as for ImageNet
    input_shift: Tensor | None

    def __init__(
        self,
        n_classes: int,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        head_batch_norm: bool = False,
        priors: str | PriorSpec | Mapping[str, Any] = "tutorial",
        input_mean: Sequence[float] = IMAGENET_MEAN,
        input_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes includes the background and must be at least 2, got {n_classes}")
        if not 0 < width < float("inf"):
            raise ValueError(f"width must be finite and more than 0, got {width}")
        self.prior_spec = find_spec(priors)
        if tuple(self.prior_spec.maps) != MAPS:
            raise ValueError(f"priors must be laid out for the maps {MAPS}, got {self.prior_spec.maps}")
        if not (len(input_mean) == len(input_std) == 3 and all(0 < std < float("inf") for std in input_std)):
            raise ValueError(
                f"input_mean and input_std must be 3 numbers each, the latter > 0, got {input_mean} and {input_std}"
            )
        self.config = {
            "n_classes": n_classes,
            "width": width,
            "batch_norm": batch_norm,
            "head_batch_norm": head_batch_norm,
            "priors": priors if isinstance(priors, str) else asdict(self.prior_spec),
            "input_mean": tuple(input_mean),
            "input_std": tuple(input_std),
        }
        self.n_classes = n_classes
        self.base = VGGBase(width, batch_norm)
        self.aux_convs = AuxiliaryConvolutions(width, batch_norm)
        self.pred_convs = PredictionConvolutions(n_classes, width, self.prior_spec.boxes_per_cell, head_batch_norm)
        self.rescale_factors = nn.Parameter(torch.full((1, scaled(SOURCES["conv4_3"], width), 1, 1), 20.0))
        for name in ("priors_cxcy", "input_scale", "input_shift"):
            self.register_buffer(name, None, persistent=False)
        self._make_constants()
        for name, conv in self.named_modules():
            if isinstance(conv, nn.Conv2d):
                if name.startswith("base."):  # with Xavier, the signal would vanish over 15 layers with ReLU
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def _make_constants(self, device: torch.device | None = None) -> None:
        """Computes the buffers that follow from `config` and are not in the state dict."""
        self.priors_cxcy = make_priors(self.prior_spec).to(device)
        mean, std = self.config["input_mean"], self.config["input_std"]
        if (*mean, *std) != (*IMAGENET_MEAN, *IMAGENET_STD):
            given = zip(IMAGENET_MEAN, IMAGENET_STD, mean, std, strict=True)
            factors = [
                (our_std / its_std, (our_mean - its_mean) / its_std) for our_mean, our_std, its_mean, its_std in given
            ]
            self.input_scale, self.input_shift = (
                torch.tensor(factors, device=device).T[:, :, None, None].unbind()
            )  # (3, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets and class logits for all priors.

        Args:
            images: (B, 3, 300, 300) floating-point RGB, normalised with the mean and standard deviation of ImageNet.

        Returns:
            Offsets (B, P, 4), see `ssd_ext.decode_boxes`, and class logits (B, P, C), class 0 = background, both in
            the dtype in which the convolutions ran.

        Raises:
            ValueError: the images have another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.input_size, self.input_size):
            expected = f"(B, 3, {self.input_size}, {self.input_size}), for which the priors are laid out"
            raise ValueError(f"images must be {expected}, got {tuple(images.shape)}")
        # Scale and shift cannot be merged into conv1_1, because it pads with zeros after the normalisation.
        if self.input_scale is not None and self.input_shift is not None:
            images = torch.addcmul(self.input_shift, images, self.input_scale)
        conv4_3, conv7 = self.base(images)  # (B, 512, 38, 38), (B, 1024, 19, 19)
        return self.pred_convs(self._rescale(conv4_3), conv7, *self.aux_convs(conv7))  # (B, P, 4), (B, P, C)

    def detect_objects(
        self,
        predicted_locs: Tensor,
        predicted_scores: Tensor,
        min_score: float,
        max_overlap: float,
        top_k: int,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Turns predictions into boxes, labels and scores per image, see `ssd.detect`.

        Args:
            predicted_locs: (B, P, 4) offsets.
            predicted_scores: (B, P, C) class logits.
            min_score, max_overlap, top_k: see `ssd.detect`.

        Returns:
            See `ssd.detect`.
        """
        return detect(predicted_locs, predicted_scores, self.priors_cxcy, min_score, max_overlap, top_k)

    def _rescale(self, x: Tensor) -> Tensor:
        """Divides each cell by its L2 norm, because conv4_3 has large values, and scales each channel by a factor."""
        # In float16 the sum of squares would overflow, and eps would be rounded to 0.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (F.normalize(wide, dim=1, eps=1e-12) * self.rescale_factors).to(x.dtype)  # (B, 512, 38, 38)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SSD300:
        was_meta = self.priors_cxcy.is_meta
        nn.Module._apply(self, fn, recurse)
        priors = self.priors_cxcy
        if (
            was_meta and not priors.is_meta
        ):  # to_empty() leaves buffers without values, and the state dict has none for these
            self._make_constants(priors.device)
        elif priors.dtype.itemsize < 4:  # half() would shift priors by up to half a pixel
            self.priors_cxcy = make_priors(self.prior_spec).to(priors.device)
        return self
