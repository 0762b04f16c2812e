"""Colour augmentation and normalisation of the network's input, as one matrix per picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD

# From red, green and blue to brightness Y and chrominance I and Q (NTSC, as in Python's colorsys), and back.
TO_YIQ = np.array([[0.30, 0.59, 0.11], [0.5990, -0.2773, -0.3217], [0.2130, -0.5251, 0.3121]])
FROM_YIQ = np.linalg.inv(TO_YIQ)


def colour_matrix(
    brightness: float = 0.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0, *, grey: float = 0.5
) -> Tensor:
    """Makes the matrix from the bytes (r, g, b, 1) of a pixel to the network's input, with changed colours.

    Four changes are followed by the normalisation of ImageNet. The changes do not affect each other, so their order
    does not matter.

    Args:
        brightness: added to red, green and blue, where white is 1.
        contrast: factor on the distance of red, green and blue from `grey`.
        saturation: factor on I and Q of the colour in YIQ.
        hue: angle in radians by which I and Q are rotated.
        grey: mean brightness of the pixels in the sample, in 0..1.

    Returns:
        (3, 4) float32.
    """
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    mixed = contrast * FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ TO_YIQ
    matrix = np.column_stack([mixed / 255, (1 - contrast) * grey + brightness - np.array(IMAGENET_MEAN)])
    return torch.from_numpy(matrix / np.array(IMAGENET_STD)[:, None]).float()


def to_input(images: Tensor, colours: Tensor | None = None) -> Tensor:
    """Computes the network's input: changes colours and normalises as for ImageNet, in one matrix product.

    Values brighter than white or darker than black are not clipped, so that bright pictures keep their details.

    Args:
        images: (B, 3, H, W) uint8; floating-point images are returned unchanged.
        colours: (B, 3, 4) float32, a `colour_matrix` for each picture; None: only normalise.

    Returns:
        (B, 3, H, W) float32, on the device of the images.

    Examples:
        >>> import torch
        >>> from ssd.data.colour import to_input
        >>> to_input(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()  # white
        tensor([2.2489, 2.4286, 2.6400])
    """
    if images.is_floating_point():
        return images
    pixels = images.flatten(2).float()
    if colours is not None:
        matrix, offset = colours.split([3, 1], dim=2)
        return torch.baddbmm(offset, matrix, pixels).view(images.shape)
    for channel, mean, std in zip(pixels.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True):
        channel.sub_(255 * mean).div_(255 * std)
    return pixels.view(images.shape)
