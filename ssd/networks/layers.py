"""Layers that several networks share: stacks of convolutions, and the heads that predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled(channels: int, width: float) -> int:
    """Number of channels of a layer at a width (a factor): rounded to a multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))


def xavier_(module: nn.Module) -> None:
    """Draws the weights of all convolutions from Xavier's uniform distribution, with biases 0, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def by_prior(maps: Sequence[Tensor], outputs: int) -> Tensor:
    """Joins the predictions on all feature maps in the order of the priors.

    Args:
        maps: (B, boxes * outputs, H, W) for each feature map; the outputs of a box are contiguous.
        outputs: number of outputs of a prior.

    Returns:
        (B, P, outputs).
    """
    rows = [
        x.permute(0, 2, 3, 1).unflatten(3, (-1, outputs)).flatten(1, 3) for x in maps
    ]  # (B, H * W * boxes, outputs)
    return torch.cat(rows, dim=1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that trains in float32 on a CPU, also under autocast.

    In bfloat16, the backward pass of oneDNN's depthwise convolutions is slow on CPUs: with 5x5 kernels, stride 2 and
    672 channels it takes 167 ms instead of 18 ms (one thread, torch 2.14). It is not reliable either: of nine runs of
    `ssdlite` with one seed on an AMD EPYC, four had NaN within eight steps, and most of the others differed.
    """

    @classmethod
    def replace(cls, module: nn.Module) -> None:
        """Gives all depthwise convolutions within a module this class, in place; their parameters stay as they are."""
        for layer in module.modules():
            if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1:
                layer.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        """Computes (B, C, H', W') of x (B, C, H, W)."""
        if self.training and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


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


class ExtraLayers(nn.ModuleList):
    """Extra feature maps, each from the one before, until a map has a single cell.

    A block has a 1x1 convolution to half of its channels and a 3x3 convolution, each followed by batch norm and ReLU.
    The 3x3 convolution halves the side of the map, rounded up. On a map of 3 to 5 cells per side it has stride 1 and no
    padding instead. So the sides are those of SSD300: 38, 19, 10, 5, 3, 1.

    Args:
        inputs: number of channels of the map that the first block takes.
        cells: number of cells per side of this map.
        outputs: numbers of channels of the blocks; the last one is used for all further blocks.

    Attributes:
        channels: number of channels of each extra map.
        cells: number of cells per side of each extra map.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, figure 2; NVIDIA/DeepLearningExamples,
    PyTorch/Detection/SSD.
    """

    def __init__(self, inputs: int, cells: int, outputs: Sequence[int]) -> None:
        super().__init__()
        self.channels: list[int] = []
        self.cells: list[int] = []
        while cells > 1:
            channels = outputs[min(len(self.channels), len(outputs) - 1)]
            halves = not 3 <= cells <= 5
            narrow = nn.Conv2d(inputs, channels // 2, 1, bias=False)
            last = nn.Conv2d(channels // 2, channels, 3, stride=1 + halves, padding=int(halves), bias=False)
            norms = nn.BatchNorm2d(channels // 2), nn.BatchNorm2d(channels)
            self.append(nn.Sequential(narrow, norms[0], nn.ReLU(inplace=True), last, norms[1], nn.ReLU(inplace=True)))
            inputs, cells = channels, (cells + 1) // 2 if halves else cells - 2
            self.channels.append(channels)
            self.cells.append(cells)
        xavier_(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the extra maps of x (B, inputs, cells, cells), largest first."""
        maps = []
        for block in self:
            x = block(x)
            maps.append(x)
        return maps


class PredictionConvolutions(nn.Module):
    """3x3 convolutions on each source: `loc_<source>` predicts offsets, `cl_<source>` class logits.

    With `batch_norm`, `bn_loc_<source>` and `bn_cl_<source>` follow, and the convolutions have no bias.

    Args:
        n_classes: number of classes C, background included.
        sources: the feature maps from which the heads predict, with their numbers of channels.
        boxes_per_cell: number of priors in a cell of each source.
        batch_norm: whether batch norm follows the convolutions.
    """

    def __init__(
        self,
        n_classes: int,
        sources: Mapping[str, int],
        boxes_per_cell: tuple[int, ...],
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.sources = tuple(sources)
        self.outputs = {"loc": 4, "cl": n_classes}
        for head, outputs in self.outputs.items():
            for (source, channels), boxes in zip(sources.items(), boxes_per_cell, strict=True):
                conv = nn.Conv2d(channels, boxes * outputs, 3, padding=1, bias=not batch_norm)
                self.add_module(f"{head}_{source}", conv)
                if batch_norm:
                    self.add_module(f"bn_{head}_{source}", nn.BatchNorm2d(boxes * outputs))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from the maps of `sources`, in that order."""
        predictions = []
        for head, outputs in self.outputs.items():
            maps = []
            for source, x in zip(self.sources, features, strict=True):
                x = getattr(self, f"{head}_{source}")(x)
                if self.batch_norm:
                    x = getattr(self, f"bn_{head}_{source}")(x)
                maps.append(x)
            predictions.append(by_prior(maps, outputs))
        return tuple(predictions)  # (B, P, 4), (B, P, C)
