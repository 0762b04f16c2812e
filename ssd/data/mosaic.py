"""Mosaics of training samples: four samples, each at half its size, in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from ssd.data.loader import Samples


class Mosaic(Dataset[tuple[Tensor, dict[str, Any]]]):
    """A view of augmented samples, of which a share become mosaics: the sample and three others, drawn at random.

    Random numbers come from PyTorch's CPU generator.

    Args:
        dataset: its samples are an image (3, S, S), uint8 or float, and a target with "boxes" (n, 4) xyxy in fractions
            of the image and "labels" (n,); it may have "difficult" (n,) and "colour" (3, 4).
        share: share of the samples that become mosaics, in 0..1.

    Source: Bochkovskiy et al., YOLOv4, arXiv 2004.10934, section 3.3. There the four parts meet at a random place and
    are cut; here they meet in the middle and are whole.
    """

    def __init__(self, dataset: Samples[int], share: float) -> None:
        self.dataset, self.share = dataset, share

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Reads a sample, and for a mosaic three more."""
        sample: tuple[Tensor, dict[str, Any]] = self.dataset[index]
        if torch.rand(()).item() >= self.share:
            return sample
        others = torch.randint(len(self.dataset), (3,)).tolist()
        return mosaic([sample, *(self.dataset[other] for other in others)])


def mosaic(samples: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, dict[str, Any]]:
    """Joins four samples in one of the same size: above left and right, then below.

    Args:
        samples: see `Mosaic`. The images have one size and dtype.

    Returns:
        The image, and a target with the objects of all that are at least one pixel wide and high. The colour changes
        are those of the first sample.
    """
    image, first = samples[0]
    size = image.shape[-1]
    joined, middle = torch.empty_like(image), size // 2
    boxes, labels, difficult = [], [], []
    for i, (part, target) in enumerate(samples):
        x0, x1 = (middle, size) if i % 2 else (0, middle)
        y0, y1 = (middle, size) if i // 2 else (0, middle)
        small = interpolate(part[None].float(), (y1 - y0, x1 - x0), mode="area")[0]
        joined[:, y0:y1, x0:x1] = small if part.is_floating_point() else small.round().to(part.dtype)
        scale, corner = torch.tensor([x1 - x0, y1 - y0] * 2) / size, torch.tensor([x0, y0] * 2) / size
        placed = target["boxes"].reshape(-1, 4) * scale + corner
        kept = (placed[:, 2:] - placed[:, :2] >= 1 / size).all(1)
        boxes.append(placed[kept])
        labels.append(target["labels"][kept])
        difficult.append(target.get("difficult", target["labels"] < 0)[kept])
    new = {"boxes": torch.cat(boxes), "labels": torch.cat(labels), "difficult": torch.cat(difficult)}
    return joined, new | ({"colour": first["colour"]} if "colour" in first else {})
