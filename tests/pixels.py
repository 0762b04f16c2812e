"""What is seen in a picture, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture in which no class colour and no text colour occurs: (3,H,W) uint8 in 100..139."""
    return torch.randint(100, 140, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def changed(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).any(0)  # (H,W)


def has_color(image: Tensor, color: tuple[int, int, int]) -> Tensor:
    return (image == torch.tensor(color)[:, None, None]).all(0)  # (H,W)


def places(image: Tensor, part: Tensor) -> list[tuple[int, int]]:
    """Row and column of every place where the part lies in the picture, pixel by pixel."""
    h, w = part.shape[1:]
    window = image[:, : image.shape[1] - h + 1, : image.shape[2] - w + 1]
    candidates = (window == part[:, :1, :1]).all(0).nonzero().tolist()
    return [(y, x) for y, x in candidates if torch.equal(image[:, y : y + h, x : x + w], part)]
