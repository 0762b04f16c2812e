"""Mosaics of training samples: four samples, each at half its size, in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd.data.loader import Samples


class Mosaic(Dataset[tuple[Tensor, dict[str, Any]]]):
    """A view of augmented samples, of which a share become mosaics: the sample and three others, drawn at random.

    Random numbers come from PyTorch's CPU generator.

    Args:
        dataset: its samples are an image (3, S, S), uint8 or float, and a target with "boxes" (n, 4) xyxy in fractions
            of the image and "labels" (n,); it may have "difficult" (n,) and "colour" (3, 4).
        halves: the same samples with images of S / 2, rounded up.
        size: S.
        share: share of the samples that become mosaics, in 0..1.

    Source: Bochkovskiy et al., YOLOv4, arXiv 2004.10934, section 3.3. There the four parts meet at a random place and
    are cut; here they meet in the middle and are whole.
    """

    def __init__(self, dataset: Samples[int], halves: Samples[int], size: int, share: float) -> None:
        self.dataset, self.halves, self.size, self.share = dataset, halves, size, share

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Reads a sample, or the four of a mosaic."""
        if torch.rand(()).item() >= self.share:
            sample: tuple[Tensor, dict[str, Any]] = self.dataset[index]
            return sample
        numbers = [index, *torch.randint(len(self.halves), (3,)).tolist()]
        return mosaic([self.halves[number] for number in numbers], self.size)


def mosaic(samples: list[tuple[Tensor, dict[str, Any]]], size: int) -> tuple[Tensor, dict[str, Any]]:
    """Joins four samples in one: above left and right, then below.

    Args:
        samples: see `Mosaic`. The images have half the size, rounded up, and one dtype.
        size: of the result in pixels. If it is odd, the samples on the right and below lack their last pixels.

    Returns:
        The image, and a target with the objects of all that are at least one pixel wide and high. The colour changes
        are those of the first sample.
    """
    image, first = samples[0]
    joined, half = image.new_empty((len(image), size, size)), image.shape[-1]
    boxes, labels, difficult = [], [], []
    for i, (part, target) in enumerate(samples):
        x, y = half * (i % 2), half * (i // 2)
        joined[:, y : y + half, x : x + half] = part[:, : size - y, : size - x]
        placed = (target["boxes"].reshape(-1, 4) * half + torch.tensor([x, y, x, y])).clamp(max=size)
        kept = (placed[:, 2:] - placed[:, :2] >= 1).all(1)
        boxes.append(placed[kept] / size)
        labels.append(target["labels"][kept])
        difficult.append(target.get("difficult", target["labels"] < 0)[kept])
    new = {"boxes": torch.cat(boxes), "labels": torch.cat(labels), "difficult": torch.cat(difficult)}
    return joined, new | ({"colour": first["colour"]} if "colour" in first else {})
