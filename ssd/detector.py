"""Pictures in, detections out: the one way from files to boxes in pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from os import PathLike
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ssd.data.augmentation import EvalTransform
from ssd.data.colour import to_input
from ssd.data.loader import worker_count
from ssd.data.reading import ImageReadError, Picture, PictureFile, as_picture
from ssd.model import SSD300
from ssd.precision import autocast, place
from ssd.threads import in_threads
from ssd_ext import DetectionOptions, postprocess_detections

AnyPicture = TypeVar("AnyPicture", bound=Picture)
Predict = Callable[[Tensor], tuple[Tensor, ...]]  # from prepared pictures to what `predict_padded` gives


class Detections(NamedTuple):
    """What was found in one picture, by descending score, on the CPU."""

    boxes: Tensor  # (k, 4) float32 xyxy in pixels, cut at the picture's edges
    labels: Tensor  # (k,) int64 in 1..C-1
    scores: Tensor  # (k,) float32


class Detector:
    """A trained network, the names of its classes, and which detections are wanted.

    Args:
        model, options, bf16: see `predictor`.
        classes: the C-1 names without background; label i is `classes[i - 1]`.
    """

    def __init__(
        self,
        model: SSD300 | Predict,
        classes: Sequence[str],
        options: DetectionOptions = DetectionOptions(),
        *,
        bf16: bool | None = None,
    ) -> None:
        self.model = model
        self.classes = tuple(classes)
        self._predict = predictor(model, options, bf16=bf16)
        self._prepare = EvalTransform()

    def __call__(self, images: Sequence[Tensor | Picture]) -> list[Detections]:
        """Detects in one batch of pictures.

        Args:
            images: pictures of any sizes, at least one: `ssd.data.PictureFile`, or (3, H, W) uint8 RGB.

        Returns:
            the `Detections` of each picture.
        """
        pictures = map(as_picture, images)
        return [found for _, found in self._detect([(picture, self._prepare(picture)) for picture in pictures])]

    def _detect(self, batch: Sequence[tuple[AnyPicture, Tensor]]) -> list[tuple[AnyPicture, Detections]]:
        """What is found in pictures, each given with its pixels in the network's size."""
        padded = self._predict(torch.stack([pixels for _, pixels in batch]))
        results = []
        for (picture, _), (boxes, labels, scores) in zip(batch, unpad(*padded), strict=True):
            size = boxes.new_tensor([picture.width, picture.height] * 2)
            results.append((picture, Detections(boxes.clamp(0, 1) * size, labels, scores)))
        return results

    def stream(
        self,
        paths: Iterable[str | PathLike[str]],
        batch_size: int = 8,
        on_error: Callable[[Exception], None] | None = None,
        *,
        workers: int | None = None,
    ) -> Iterator[tuple[PictureFile, Detections]]:
        """Detects in picture files; threads read the next batch meanwhile, and nothing else is kept in memory.

        Args:
            paths: the files.
            batch_size: pictures per forward pass, at least 1.
            on_error: called with the error of a picture that cannot be read, which is left out; None: raised.
            workers: threads, at least 1; by default one per core, at most 4.

        Yields:
            the picture and its `Detections`, in the order of the paths.

        Raises:
            FileNotFoundError, ImageReadError: a picture cannot be read, without `on_error`.
        """

        def read(path: str | PathLike[str]) -> tuple[PictureFile, Tensor] | Exception:
            try:
                picture = PictureFile(path)
                return picture, self._prepare(picture)
            except (ImageReadError, OSError) as error:
                return error

        batch: list[tuple[PictureFile, Tensor]] = []
        for result in in_threads(read, paths, max(1, worker_count(workers)), ahead=batch_size):
            if not isinstance(result, Exception):
                batch.append(result)
            elif on_error is None:
                raise result
            else:
                on_error(result)
            if len(batch) == batch_size:
                yield from self._detect(batch)
                batch = []
        if batch:
            yield from self._detect(batch)


def predictor(
    model: SSD300 | Predict, options: DetectionOptions = DetectionOptions(), *, bf16: bool | None = None
) -> Predict:
    """What detects in prepared pictures.

    Args:
        model: the network, see `predict_padded`; or what detects by itself, such as `ssd.export.load` gives it: then
            it is returned, and the other arguments are its own affair.
        options, bf16: see `predict_padded`.
    """
    return partial(predict_padded, model, options=options, bf16=bf16) if isinstance(model, nn.Module) else model


@torch.inference_mode()
def predict_padded(
    model: SSD300, images: Tensor, options: DetectionOptions = DetectionOptions(), *, bf16: bool | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs a network over prepared pictures, on the device of its parameters, without waiting for it.

    Args:
        model: the network; it is put into evaluation mode.
        images: (B, 3, 300, 300) bytes, as `EvalTransform` gives them, or normalised as `to_input` does.
        options: see `ssd_ext.DetectionOptions`.
        bf16: bfloat16 autocast; None uses it where the hardware has it.

    Returns:
        boxes in fractions of the image, labels, scores and counts, as of `ssd_ext.postprocess_detections`.
    """
    model.eval()
    device = model.priors_cxcy.device
    images = to_input(images.to(device, non_blocking=True))
    with autocast(device, bf16):
        offsets, logits = model(place(images, device))
    return postprocess_detections(offsets, logits, model.priors_cxcy, options)


def unpad(boxes: Tensor, labels: Tensor, scores: Tensor, counts: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The boxes (k, 4), labels (k,) and scores (k,) of each image, k >= 0: a copy to the host of each tensor."""
    boxes, labels, scores = boxes.cpu(), labels.cpu(), scores.cpu()
    return [(boxes[i, :k], labels[i, :k], scores[i, :k]) for i, k in enumerate(counts.tolist())]
