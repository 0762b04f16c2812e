"""Pictures in, detections out: the one way from pictures to boxes in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssd.data.augmentation import EvalTransform
from ssd.data.colour import to_input
from ssd.data.loader import worker_count
from ssd.data.reading import AnyImage, Picture, as_picture
from ssd.detection import bounded, unpad
from ssd.drawing import draw_detections
from ssd.networks.ssd300 import SSD300
from ssd.runtime.device import autocast, compile_network, place
from ssd.runtime.threads import in_threads
from ssd.weights.loading import load_weights
from ssd_ext import DetectionOptions, postprocess_detections

SHOWN = DetectionOptions(min_score=0.2)  # of detections that are to be looked at, not measured

Predict = Callable[[Tensor], tuple[Tensor, ...]]  # from prepared pictures to what `predict_padded` gives


class Program(Protocol):
    """A detector without options, such as `ssd.export.load` gives."""

    input_size: int  # side of the images in pixels

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Prepared images (B, 3, input_size, input_size) uint8 to what `predict_padded` gives."""


class Detection(NamedTuple):
    """One object."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    label: int  # in 1..C-1
    name: str  # of its class
    score: float  # in 0..1


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What was found in one picture, by descending score; iteration gives each `Detection`.

    Attributes:
        picture: where it was found, with its `path` (None of a picture without file), `width` and `height`. Of a file
            no pixels are kept; others are kept as long as this.
        boxes: (k, 4) float32 xyxy in pixels, cut at the picture's edges, on the CPU as all of it.
        labels: (k,) int64 in 1..C-1.
        scores: (k,) float32.
        classes: the C-1 names; label i is `classes[i - 1]`.
    """

    picture: Picture
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        for box, label, score in zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True):
            yield Detection(tuple(box), label, self.classes[label - 1], score)

    def __str__(self) -> str:
        """How many of which class, such as "2 dog, 1 cat"."""
        counts = Counter(found.name for found in self)
        return ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing found"

    def __repr__(self) -> str:
        picture = self.picture
        return f"<Detections in {picture.path or 'a picture'} ({picture.width} x {picture.height}): {self}>"

    def draw(self) -> Image.Image:
        """The picture with boxes, names and scores, see `ssd.drawing.draw_detections`; a file is read once more.

        Raises:
            FileNotFoundError, ImageReadError: the file is gone or damaged.
        """
        return draw_detections(self.picture.pixels(), self.boxes, self.labels, self.scores, classes=self.classes)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """The objects as `COCO.loadRes` takes them: bbox is [x, y, width, height] in pixels, category_id the label."""
        return [
            {
                "image_id": image_id,
                "category_id": found.label,
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "iscrowd": 0,
                "score": round(found.score, 5),
            }
            for found in self
            for x0, y0, x1, y1 in [found.box]
        ]


class Detector:
    """A trained network, the names of its classes, and which detections are wanted. Threads may share it.

    Args:
        model: the network, or a `Program`, which has its own options.
        options, bf16: see `predict_padded`.
        classes: the C-1 names without background; label i is `classes[i - 1]`.

    Attributes:
        prepare: from a picture to the pixels that `predict` takes.
        predict: from prepared pictures to padded detections, as `ssd.evaluation.evaluate.evaluate` takes it.
    """

    def __init__(
        self,
        model: SSD300 | Program,
        classes: Sequence[str],
        options: DetectionOptions = DetectionOptions(),
        *,
        bf16: bool | None = None,
    ) -> None:
        self.model = model
        self.classes = tuple(classes)
        self.options = options
        self.predict = predictor(model, options, bf16=bf16)
        self.prepare = EvalTransform(model.input_size)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str] = "coco",
        *,
        defaults: DetectionOptions = SHOWN,
        device: str | None = None,
        bf16: bool | None = None,
        compile: bool = False,
        **options: Any,
    ) -> Detector:
        """A detector from weights of any kind, or from a file of `ssd export`, which is a program: trust its origin.

        Args:
            path: what `ssd.load_weights` takes, "coco" among it, or an exported file.
            defaults: what holds where no other option is given; an exported file has its own.
            device: such as "cpu" or "cuda:0"; by default a GPU if there is one, or that of the exported file.
            bf16: see `predictor`.
            compile: compile the network, which takes a minute.
            options: see `ssd_ext.DetectionOptions`.

        Raises:
            FileNotFoundError, OSError, ImportError: no such file, no download, or a package is missing.
            ValueError: the file is none of those, or an exported file has another value of something that is given.
            TypeError: an unknown option.
        """
        from ssd.export import is_exported, load  # which reads and compares pictures, with what stands here

        if unknown := options.keys() - set(DetectionOptions._fields):
            raise TypeError(f"no option {', '.join(sorted(unknown))}; there are {', '.join(DetectionOptions._fields)}")
        if not is_exported(path):
            model, classes = load_weights(path, device=device)
            if compile:
                compile_network(model, dynamic=True)  # once, for a last batch of fewer pictures too
            return cls(model, classes, defaults._replace(**options), bf16=bf16)
        exported = load(path)
        its = exported.metadata
        given = options | {"device": device and device.partition(":")[0], "bf16": bf16, "compile": compile}
        fixed = its.options._asdict() | {"device": its.device, "bf16": False, "compile": False}
        for name, value in given.items():
            if value != fixed[name] and (value is not None or name in options):
                raise ValueError(f"{path}: has {name} {fixed[name]}, not {value}; leave it out, or export it anew")
        return cls(exported, its.classes, its.options)

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...
    @overload
    def __call__(self, images: list[AnyImage] | tuple[AnyImage, ...], **how: Any) -> list[Detections]: ...
    @overload
    def __call__(self, images: Iterable[AnyImage], **how: Any) -> Iterator[Detections]: ...
    def __call__(
        self,
        images,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ):
        """Detects in one picture or in many; threads read the next batch meanwhile.

        Args:
            images: a picture of any size as `ssd.data.reading.as_picture` takes it: a path, a picture of Pillow, an
                array or a tensor; or a list or tuple of pictures, or any other iterable of them.
            batch_size: pictures per forward pass, at least 1.
            workers: threads, at least 1; by default one per core, at most 4.
            on_error: called with the error of a picture of several that cannot be read, which is left out; by default
                it is raised.

        Returns:
            the `Detections` of the picture; a list of them, in the order of the pictures; or an iterator, which takes
            at most two batches of pictures more than it has given results, and keeps nothing else.

        Raises:
            FileNotFoundError, ImageReadError: a file cannot be read.
            ValueError, TypeError: something is no picture, or of a shape or dtype that is not allowed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not isinstance(images, Iterable) or isinstance(images, (str, bytes, np.ndarray, Tensor)):
            (result,) = self._detect([self._read(images)])
            return result
        results = self._stream(images, batch_size, max(1, worker_count(workers)), on_error)
        return list(results) if isinstance(images, (list, tuple)) else results

    def _stream(
        self,
        images: Iterable[AnyImage],
        batch_size: int,
        workers: int,
        on_error: Callable[[Exception], None] | None,
    ) -> Iterator[Detections]:
        def read(image: AnyImage) -> tuple[Picture, Tensor] | Exception:
            try:
                return self._read(image)
            except (ValueError, OSError) as error:
                return error

        batch: list[tuple[Picture, Tensor]] = []
        for result in in_threads(read, images, workers, ahead=batch_size):
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

    def _read(self, image: AnyImage) -> tuple[Picture, Tensor]:
        """The picture, and its pixels in the network's size."""
        picture = as_picture(image)
        return picture, self.prepare(picture)

    def _detect(self, batch: Sequence[tuple[Picture, Tensor]]) -> list[Detections]:
        padded = self.predict(torch.stack([pixels for _, pixels in batch]))
        results = []
        for (picture, _), found in zip(batch, unpad(padded), strict=True):
            results.append(Detections(picture, *found.in_pixels(picture.width, picture.height), self.classes))
        return results


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
        boxes in fractions of the image, labels, scores and counts, as of `ssd_ext.postprocess_detections`, in at most
        as many rows as there are candidates.
    """
    model.eval()
    device = model.priors_cxcy.device
    images = to_input(images.to(device, non_blocking=True))
    with autocast(device, bf16):
        offsets, logits = model(place(images, device))
    return postprocess_detections(offsets, logits, model.priors_cxcy, bounded(options, *logits.shape[1:]))
