"""torchvision's augmentation for SSD, of its v2 transforms: `ssd train --augment v2`, and the peer of benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ssd.data.colour import IMAGENET_MEAN, IMAGENET_STD


class _IoUCrop(v2.RandomIoUCrop):
    """Leaves alone a picture without objects, where the base class would search for ever for a crop that holds one,
    and one so narrow that a side of the crop could be rounded to 0 pixels, by which the base class would divide."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        croppable = len(boxes) and min(boxes.canvas_size) * self.min_scale >= 1
        return super().make_params(flat_inputs) if croppable else {}


def _sanitized(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return sample[1]["labels"], sample[1]["difficult"]


def _to_fractions(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Boxes in pixels to a plain tensor of fractions of the image."""
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
    return image, {**target, "boxes": boxes}


def v2_transform(size: int, flips: bool = False) -> v2.Compose:
    """Colours, zoom out, crop, mirror image, then the network's input format.

    Objects are kept if their centre lies in the crop and they measure at least one pixel in the result.

    Args:
        size: side of the square result in pixels.
        flips: also mirror top to bottom.

    Returns:
        callable that maps an image (3, H, W) uint8 and its target ("boxes" tv_tensors.BoundingBoxes (n, 4) xyxy in
        pixels, "labels" (n,), "difficult" (n,)) to the normalised image (3, size, size) float32 and the target with the
        m <= n remaining objects, whose boxes (m, 4) float32 are fractions in 0..1 with x0 < x1 and y0 < y1.
    """
    border = [round(255 * mean) for mean in IMAGENET_MEAN]  # becomes 0 in the network's input
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),  # before the border is there, which keeps its colour
            v2.RandomZoomOut(fill={tv_tensors.Image: border, "others": 0}),
            _IoUCrop(),
            v2.RandomHorizontalFlip(),
            *([v2.RandomVerticalFlip()] if flips else []),
            v2.Resize((size, size)),
            v2.ClampBoundingBoxes(),  # rounding may put an edge just outside, for which the next step drops a box
            v2.SanitizeBoundingBoxes(labels_getter=_sanitized),
            _to_fractions,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.ToPureTensor(),
        ]
    )
