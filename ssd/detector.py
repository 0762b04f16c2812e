"""Pictures in, detections out: the one way from files to boxes in pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ssd.data.augmentation import eval_transform
from ssd.data.reading import ImageReadError, read_image
from ssd.model import SSD300
from ssd.precision import autocast, place
from ssd_ext import DetectionOptions, postprocess_detections

AnyPath = TypeVar("AnyPath", str, PathLike)


class Detections(NamedTuple):
    """What was found in one picture, by descending score, on the CPU."""

    boxes: Tensor  # (k, 4) float32 xyxy in pixels, cut at the picture's edges
    labels: Tensor  # (k,) int64 in 1..C-1
    scores: Tensor  # (k,) float32


class Detector:
    """A trained network, the names of its classes, and which detections are wanted.

    Args:
        model: the network; it is put into evaluation mode and runs on the device of its parameters.
        classes: the C-1 names without background; label i is `classes[i - 1]`.
        options: see `ssd_ext.DetectionOptions`.
        bf16: bfloat16 autocast; None uses it where the hardware has it.
    """

    def __init__(
        self,
        model: SSD300,
        classes: Sequence[str],
        options: DetectionOptions = DetectionOptions(),
        *,
        bf16: bool | None = None,
    ) -> None:
        self.model = model
        self.classes = tuple(classes)
        self.options = options
        self.bf16 = bf16
        self._prepare = eval_transform()

    def __call__(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detects in one batch of pictures.

        Args:
            images: pictures (3, H, W) uint8 RGB of any sizes, at least one.

        Returns:
            the `Detections` of each picture.
        """
        batch = torch.stack([self._prepare(image) for image in images])
        detections = []
        for image, (boxes, labels, scores) in zip(
            images, unpad(*predict_padded(self.model, batch, self.options, bf16=self.bf16)), strict=True
        ):
            height, width = image.shape[-2:]
            pixels = boxes.clamp(0, 1) * boxes.new_tensor([width, height, width, height])
            detections.append(Detections(pixels, labels, scores))
        return detections

    def stream(
        self,
        paths: Iterable[AnyPath],
        batch_size: int = 8,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Iterator[tuple[AnyPath, Tensor, Detections]]:
        """Detects in picture files, a batch in memory at a time.

        Args:
            paths: the files.
            batch_size: pictures per forward pass, at least 1.
            on_error: called with the error of a picture that cannot be read, which is left out; None: raised.

        Yields:
            (path, image (3, H, W) uint8, `Detections`) in the order of the paths.

        Raises:
            FileNotFoundError, ImageReadError: a picture cannot be read, without `on_error`.
        """
        paths = iter(paths)
        while chunk := list(islice(paths, batch_size)):
            batch = []
            for path in chunk:
                try:
                    batch.append((path, read_image(path)))
                except (ImageReadError, OSError) as error:
                    if on_error is None:
                        raise
                    on_error(error)
            if batch:
                for (path, image), found in zip(batch, self([image for _, image in batch]), strict=True):
                    yield path, image, found


@torch.inference_mode()
def predict_padded(
    model: SSD300, images: Tensor, options: DetectionOptions = DetectionOptions(), *, bf16: bool | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs a network over prepared pictures, on the device of its parameters, without waiting for it.

    Args:
        model: the network; it is put into evaluation mode.
        images: (B, 3, 300, 300) as `eval_transform` gives them.
        options: see `ssd_ext.DetectionOptions`.
        bf16: bfloat16 autocast; None uses it where the hardware has it.

    Returns:
        boxes in fractions of the image, labels, scores and counts, as of `ssd_ext.postprocess_detections`.
    """
    model.eval()
    device = model.priors_cxcy.device
    with autocast(device, bf16):
        offsets, logits = model(place(images, device))
    return postprocess_detections(offsets, logits, model.priors_cxcy, options)


def unpad(boxes: Tensor, labels: Tensor, scores: Tensor, counts: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The boxes (k, 4), labels (k,) and scores (k,) of each image, k >= 0: a copy to the host of each tensor."""
    boxes, labels, scores = boxes.cpu(), labels.cpu(), scores.cpu()
    return [(boxes[i, :k], labels[i, :k], scores[i, :k]) for i, k in enumerate(counts.tolist())]
