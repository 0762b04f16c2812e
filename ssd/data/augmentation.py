"""From a picture with boxes in pixels to the network's input, with the augmentation of SSD for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _IoUCrop(v2.RandomIoUCrop):
    """Leaves alone a picture without objects, where the base class would search for ever for a crop that holds one,
    and one so narrow that a side of the crop could be rounded to 0 pixels, by which the base class would divide."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        croppable = len(boxes) and min(boxes.canvas_size) * self.min_scale >= 1
        return super().make_params(flat_inputs) if croppable else {}


def _sanitized(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return sample[1]["labels"], sample[1]["difficult"]


def _to_fractions(image: Tensor, target: dict[str, Tensor] | None = None) -> Any:
    """Boxes in pixels to a plain tensor of fractions of the image."""
    if target is None:
        return image
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
    return image, {**target, "boxes": boxes}


def _to_input() -> list[v2.Transform]:
    normalize = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return [v2.ToDtype(torch.float32, scale=True), normalize, v2.ToPureTensor()]


def train_transform(size: int = 300, flips: bool = False) -> v2.Compose:
    """The training augmentation: colours, zoom out, crop, mirror image, then the network's input format.

    Objects are kept if their centre lies in the crop and they measure at least one pixel in the result.

    Args:
        size: side of the square result in pixels.
        flips: also mirror top to bottom, for pictures without an upright, such as those of a microscope.

    Returns:
        callable that maps an image (3, H, W) uint8 and its target ("boxes" tv_tensors.BoundingBoxes (n, 4)
        xyxy in pixels, "labels" (n,), "difficult" (n,)) to the normalised image (3, size, size) float32 and
        the target with the m <= n remaining objects, whose boxes (m, 4) float32 xyxy are fractions in 0..1
        with x0 < x1 and y0 < y1.

    Source: sections 2.2, "Data augmentation", and 3.6 (zoom out) of the SSD paper, arXiv 1512.02325.
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
            *_to_input(),
        ]
    )


def eval_transform(size: int = 300) -> v2.Compose:
    """The network's input format and nothing else.

    Args:
        size: side of the square result in pixels.

    Returns:
        callable that maps an image (3, H, W) uint8, alone or with its target, to the normalised image (3,
        size, size) float32, alone or with the target, whose boxes become float32 fractions of the picture.
    """
    return v2.Compose([_to_fractions, v2.Resize((size, size)), *_to_input()])
