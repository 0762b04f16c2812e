"""torchvision's augmentation for SSD with its v2 transforms: for `ssd train --augment v2` and for benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD


class _IoUCrop(v2.RandomIoUCrop):  # type: ignore[misc]  # torchvision has no types
    """`RandomIoUCrop` that does not crop two kinds of pictures on which the base class fails.

    For a picture without objects, the base class searches forever for a crop with an object. For a very narrow picture,
    a side of the crop can be rounded to 0 pixels, and the base class divides by it.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        croppable = len(boxes) and min(boxes.canvas_size) * self.min_scale >= 1
        return super().make_params(flat_inputs) if croppable else {}


def _sanitized(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return sample[1]["labels"], sample[1]["difficult"]


def _to_fractions(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Converts boxes in pixels to a plain tensor of fractions of the image."""
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
    return image, {**target, "boxes": boxes}


def v2_transform(size: int, flips: bool = False) -> v2.Compose:
    """Makes torchvision's training transform: changed colours, zoom out, crop, mirror image, normalisation.

    Objects are kept if their centre lies in the crop and both sides are at least one pixel in the result.

    Args:
        size: side of the square result in pixels.
        flips: also mirror top to bottom.

    Returns:
        A callable that maps an image (3, H, W) uint8 and its target ("boxes" tv_tensors.BoundingBoxes (n, 4) xyxy in
        pixels, "labels" (n,), "difficult" (n,)) to the normalised image (3, size, size) float32 and the target with the
        m <= n remaining objects, whose boxes (m, 4) float32 are fractions in 0..1 with x0 < x1 and y0 < y1.

    Examples:
        >>> from ssd.data import open_dataset, v2_transform
        >>> from ssd.data.shapes import write_shapes
        >>> folder = write_shapes("shapes", n_train=2, n_test=1, size=(96, 64))
        >>> image, target = open_dataset(folder, "train", transform=v2_transform(224))[0]
        >>> image.shape, image.dtype, sorted(target)[:2]
        (torch.Size([3, 224, 224]), torch.float32, ['boxes', 'difficult'])
    """
    border = [round(255 * mean) for mean in IMAGENET_MEAN]  # is 0 in the network's input
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),  # before zooming out, so that the border keeps its colour
            v2.RandomZoomOut(fill={tv_tensors.Image: border, "others": 0}),
            _IoUCrop(),
            v2.RandomHorizontalFlip(),
            *([v2.RandomVerticalFlip()] if flips else []),
            v2.Resize((size, size)),
            v2.ClampBoundingBoxes(),  # the next step drops boxes that rounding moved slightly outside
            v2.SanitizeBoundingBoxes(labels_getter=_sanitized),
            _to_fractions,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.ToPureTensor(),
        ]
    )
