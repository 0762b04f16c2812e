"""Turns pictures with boxes in pixels into samples for the network; for training, with the augmentation of SSD.

The random choices come first and need only the picture's size and boxes. Then only the pixels of the sample are
decoded, resized to the size that they have in the sample, and kept as bytes. Colours are changed on the network's
device (`ssd.data.colour`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ssd.data.colour import TO_YIQ, colour_matrix
from ssd.data.reading import Picture, as_picture

# docs/input.md has the sources of these numbers. A patch is a part of the picture, or of the canvas around the picture.
ZOOM_CHANCE, LARGEST_ZOOM = 0.5, 4.0  # the zoom is the side of the canvas divided by the side of the picture
WHOLE = 1.0  # means that the whole canvas is used instead of a patch
# Least IoU of the patch with at least one object. One of these values is drawn, all with the same probability.
LEAST_IOU = (WHOLE, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 40  # patches drawn for one value of the least IoU
LEAST_AREA = 0.1  # of a patch, as a fraction of the canvas
LARGEST_ASPECT = 2.0  # aspect of a patch divided by that of the picture: 1/2..2
COLOUR_CHANCE = 0.5  # of each of the four changes, whose ranges follow; the hue is in radians
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, math.radians(18)


class PictureTransform:
    """Base class of transforms that `BoxDataset` calls with a `Picture` instead of pixels.

    So the transform decides which part is decoded. It also takes an image (3, H, W) uint8, so that it can be part of a
    `torchvision.transforms.v2.Compose`.

    Args:
        size: side of the square result in pixels: the `input_size` of the network.
    """

    def __init__(self, size: int) -> None:
        self.size = size


class EvalTransform(PictureTransform):
    """Resizes the whole picture to the network's size, without augmentation.

    Args:
        size: side of the square result in pixels: the `input_size` of the network.

    Examples:
        >>> import torch
        >>> from ssd.data.augmentation import EvalTransform
        >>> picture = torch.zeros(3, 100, 200, dtype=torch.uint8)
        >>> image, target = EvalTransform(224)(picture, {"boxes": torch.tensor([[50, 25, 100, 75]])})
        >>> image.shape, target["boxes"].tolist()
        (torch.Size([3, 224, 224]), [[0.25, 0.25, 0.5, 0.75]])
    """

    @overload
    def __call__(self, picture: Picture | Tensor, target: None = None) -> Tensor: ...
    @overload
    def __call__(self, picture: Picture | Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]: ...
    def __call__(
        self, picture: Picture | Tensor, target: dict[str, Any] | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Makes the sample of a picture.

        Args:
            picture: a `Picture`, or an image (3, H, W) uint8.
            target: None, or a dict with "boxes" (n, 4) xyxy in pixels and any other entries.

        Returns:
            The image (3, size, size) uint8; with a target, the image and the target, whose boxes are now float32
            fractions of the picture.
        """
        picture = as_picture(picture)
        edges = [picture.width, picture.height]
        image, _ = picture.part([0, 0, *edges], (self.size, self.size))
        if target is None:
            return image
        return image, {**target, "boxes": target["boxes"].as_subclass(Tensor) / torch.tensor(edges * 2)}


class TrainTransform(PictureTransform):
    """The training augmentation: zoom out, random patch, mirror image, changed colours.

    Args:
        size: side of the square result in pixels.
        flips: also mirror top to bottom, for pictures without a natural orientation, such as those of a microscope.
        largest_zoom: largest side of the canvas when zooming out, divided by the side of the picture, >= 1.
        least_area: least area of a patch, as a fraction of the canvas, in (0, 1].

    Source: sections 2.2, "Data augmentation", and 3.6 (zoom out) of the SSD paper, arXiv 1512.02325. Details that the
    paper leaves open follow its authors' code, see docs/input.md.

    Examples:
        >>> import torch
        >>> from ssd.data.augmentation import TrainTransform
        >>> objects = {"boxes": torch.tensor([[50.0, 25.0, 100.0, 75.0]]), "labels": torch.tensor([1])}
        >>> image, target = TrainTransform(224)(torch.zeros(3, 100, 200, dtype=torch.uint8), objects)
        >>> image.shape, target["colour"].shape, sorted(target)
        (torch.Size([3, 224, 224]), torch.Size([3, 4]), ['boxes', 'colour', 'labels'])
    """

    def __init__(
        self,
        size: int,
        flips: bool = False,
        *,
        largest_zoom: float = LARGEST_ZOOM,
        least_area: float = LEAST_AREA,
    ) -> None:
        super().__init__(size)
        self.flips = flips
        self.largest_zoom = largest_zoom
        self.least_area = least_area

    def __call__(self, picture: Picture | Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Makes a random sample of a picture, seeded by the next number of PyTorch's CPU generator.

        Objects are kept if their centre lies in the patch and both sides are at least one pixel in the result.

        Args:
            picture: a `Picture`, or an image (3, H, W) uint8.
            target: "boxes" (n, 4) float xyxy in pixels, other tensors with n rows, such as "labels", and any other
                entries.

        Returns:
            The image (3, size, size) uint8, and the target with the m <= n objects that are kept. Its boxes (m, 4)
            float32 are fractions in 0..1 with x0 < x1 and y0 < y1. It also has "colour" (3, 4) float32, see
            `ssd.data.colour.to_input`.
        """
        picture = as_picture(picture)
        rng = np.random.default_rng(torch.randint(1 << 62, ()).item())
        boxes = target["boxes"].numpy().astype(np.float64).reshape(-1, 2, 2)
        patch = draw_patch(rng, picture.height, picture.width, boxes, self.largest_zoom, self.least_area)
        changes = draw_colours(rng)
        flips = [rng.random() < 0.5, self.flips and rng.random() < 0.5]  # left to right, top to bottom

        image, colour, shown, place = self._render(picture, patch, changes)
        moved = (boxes - shown[0]) * ((place[1] - place[0]) / (shown[1] - shown[0])) + place[0]
        moved = moved.clip(place[0], place[1]) / self.size
        kept = _inside(patch[None], boxes)[0] & (moved[:, 1] - moved[:, 0] >= 1 / self.size).all(1)
        for axis, flipped in enumerate(flips):
            if flipped:
                image = image.flip(1 - axis)
                moved[:, :, axis] = 1 - moved[:, ::-1, axis]
        rows = torch.from_numpy(kept.nonzero()[0])
        new = {"boxes": torch.from_numpy(moved[kept].astype(np.float32).reshape(-1, 4)), "colour": colour}
        for name, values in target.items():
            per_object = isinstance(values, Tensor) and values.shape[:1] == kept.shape
            new.setdefault(name, values[rows] if per_object and name != "boxes" else values)
        return image.permute(2, 0, 1), new

    def _render(
        self, picture: Picture, patch: np.ndarray, changes: Sequence[float]
    ) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        """Decodes a patch and resizes it to the network's size.

        Returns:
            image: (size, size, 3) uint8; outside of the picture, the colour that becomes 0 in the network's input.
            colour: (3, 4) float32, the changes as a `colour_matrix`.
            shown: (2, 2) corners of the visible part of the picture, in pixels of the picture.
            place: (2, 2) corners of that part in the image.
        """
        part = patch.clip(0, [picture.width, picture.height])
        place = ((part - patch[0]) * (self.size / (patch[1] - patch[0]))).round().astype(int)
        place[0] = place[0].clip(0, self.size - 1)
        place[1] = place[1].clip(place[0] + 1, self.size)
        (x0, y0), (x1, y1) = place.tolist()
        pixels, shown = picture.part(part.flatten().tolist(), (y1 - y0, x1 - x0))
        image, shown = pixels.permute(1, 2, 0), np.array(shown).reshape(2, 2)
        grey = float(TO_YIQ[0] @ image[::4, ::4].numpy().mean((0, 1))) / 255
        colour = colour_matrix(*changes, grey=grey)
        if image.shape[:2] == (self.size, self.size):
            return image, colour, shown, place
        border = torch.linalg.solve(colour[:, :3], -colour[:, 3]).round().clamp(0, 255).byte()
        canvas = border.repeat(self.size).repeat(self.size, 1).view(self.size, self.size, 3)
        canvas[y0:y1, x0:x1] = image
        return canvas, colour, shown, place


# In the functions below, boxes and patches are (n, 2, 2): the corners (x0, y0) and (x1, y1) of each.


def draw_patch(
    rng: np.random.Generator,
    height: int,
    width: int,
    boxes: np.ndarray,
    largest_zoom: float = LARGEST_ZOOM,
    least_area: float = LEAST_AREA,
) -> np.ndarray:
    """Draws the part of a picture, or of a canvas around it, for a training sample.

    Args:
        rng: the source of random numbers.
        height, width: size of the picture in pixels.
        boxes: (n, 2, 2) float64 corners in pixels. If n is 0, the whole picture is treated as an object.
        largest_zoom, least_area: see `TrainTransform`.

    Returns:
        (2, 2) float64 corners in pixels of the picture; they may lie outside of it.
    """
    whole = np.array([[0.0, 0.0], [width, height]])
    canvas = whole
    if rng.random() < ZOOM_CHANCE:
        zoom = rng.uniform(1, largest_zoom)
        canvas = zoom * whole - (zoom - 1) * rng.random(2) * whole[1]
    objects = boxes if len(boxes) else whole[None]
    while (least := LEAST_IOU[rng.integers(len(LEAST_IOU))]) != WHOLE:
        patches = canvas[0] + _draw_fractions(rng, TRIALS, least_area) * (canvas[1] - canvas[0])
        fitting = (_inside(patches, objects) & (_iou(patches, objects) >= least)).any(1)
        if fitting.any():
            return patches[fitting.argmax()]
    return canvas


def _draw_fractions(rng: np.random.Generator, n: int, least_area: float) -> np.ndarray:
    """Draws the corners (n, 2, 2) of random patches, in fractions of the canvas."""
    scale = rng.uniform(math.sqrt(least_area), 1, n)
    longest = np.minimum(LARGEST_ASPECT, scale**-2)  # the largest that fits into the canvas
    stretch = np.sqrt(rng.uniform(1 / longest, longest))
    sides = np.stack([scale * stretch, scale / stretch], axis=1)  # (n, 2)
    corner = rng.random((n, 2)) * (1 - sides)
    return np.stack([corner, corner + sides], axis=1)


def _inside(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Tells which of k patches contain the centres of which of n boxes, (k, n) bool."""
    centres = boxes.mean(1)
    return ((patches[:, None, 0] < centres) & (centres < patches[:, None, 1])).all(2)


def _iou(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of k patches with n boxes, (k, n)."""
    low = np.maximum(patches[:, None, 0], boxes[:, 0])
    common = (np.minimum(patches[:, None, 1], boxes[:, 1]) - low).clip(0).prod(2)
    areas = [(corners[:, 1] - corners[:, 0]).prod(1) for corners in (patches, boxes)]
    return common / (areas[0][:, None] + areas[1] - common)


def draw_colours(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draws the colour changes of a training sample: brightness, contrast, saturation and hue for `colour_matrix`."""
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * (rng.random(4) < COLOUR_CHANCE)
    return BRIGHTNESS * brightness, 1 + CONTRAST * contrast, 1 + SATURATION * saturation, HUE * hue
