"""What an exported file holds: all from the bytes of pictures to detections, and what there is to know of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor, nn

from ssd.detection import bounded
from ssd.networks.ssd300 import IMAGENET_MEAN, IMAGENET_STD, SSD300
from ssd_ext import DetectionOptions, box_iou, postprocess_detections

InputDtype = Literal["uint8", "float32"]
Precision = Literal["float32", "int8"]


def our_version() -> str:
    """The version of this package, or "unknown" where it is not installed."""
    try:
        return version("ssd-ext")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Metadata:
    """What travels inside of an exported file.

    Attributes:
        format: a name of `ssd.export.FORMATS`.
        classes: the C-1 names without background; label i is `classes[i - 1]`.
        options: of the detection, fixed in the file.
        input_size: side of the images in pixels.
        input_dtype: of the images: "uint8", or "float32" in 0..1.
        device: type of the device that the program runs on, such as "cpu".
        precision: of the convolutions.
        version: of this package.
    """

    format: str
    classes: tuple[str, ...]
    options: DetectionOptions
    input_size: int
    input_dtype: InputDtype = "uint8"
    device: str = "cpu"
    precision: Precision = "float32"
    version: str = our_version()

    def to_json(self) -> str:
        """One line of JSON, which `from_json` reads."""
        return json.dumps({**asdict(self), "options": self.options._asdict()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """What `to_json` gave.

        Raises:
            ValueError: the text is something else.
        """
        try:
            found = json.loads(text)
            options, classes = DetectionOptions(**found["options"]), tuple(found["classes"])
            return cls(**found | {"options": options, "classes": classes})
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"not the metadata of an exported detector: {error!r}") from error


class DetectionProgram(nn.Module):
    """Normalisation, network and detection in one, in float32; in evaluation mode.

    Args:
        model: the network.
        options: see `ssd_ext.DetectionOptions`.
    """

    def __init__(self, model: SSD300, options: DetectionOptions = DetectionOptions()) -> None:
        super().__init__()
        self.model = model
        self.options = bounded(options, len(model.priors_cxcy), model.n_classes)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor([255 * value for value in values])[:, None, None])
        self.to(model.priors_cxcy.device).eval()

    def example(self, dtype: InputDtype) -> Tensor:
        """Images (2, 3, size, size) of zeros, for a tracer; some formats keep them."""
        size = self.model.input_size
        return torch.zeros(2, 3, size, size, dtype=getattr(torch, dtype), device=self.mean.device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detects in a batch of pictures.

        Args:
            images: (B, 3, 300, 300) RGB, uint8, or float32 in 0..1.

        Returns:
            boxes (B, top_k, 4) float32 xyxy in fractions, labels (B, top_k) int64, scores (B, top_k) float32, counts
            (B,) int32, as of `ssd_ext.postprocess_detections`.
        """
        pixels = images * 255 if images.is_floating_point() else images.float()
        # The bits of to_input, but not in place: AOTInductor takes its views for a batch of one fixed size.
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return postprocess_detections(*self.model(pixels), self.model.priors_cxcy, self.options)


def as_input(images: Tensor, dtype: InputDtype) -> Tensor:
    """uint8 images in the dtype that a program takes: as they are, or float32 in 0..1."""
    return images if dtype == "uint8" else images.float() / 255


def is_among(rows: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """(n, m) bool: which rows are which others, by label, to 1e-5 in score and 1e-4 in every side.

    Args:
        rows, others: boxes (n, 4) in fractions, labels (n,) and scores (n,), and the same of m.
    """
    return _tied(rows, others) & ((rows[0][:, None] - others[0]).abs() <= 1e-4).all(dim=2)


def _tied(rows: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return (rows[1][:, None] == others[1]) & ((rows[2][:, None] - others[2]).abs() <= 1e-5)


def missing_rows(
    expected: Sequence[Tensor], found: Sequence[Tensor], options: DetectionOptions, genuine: Tensor | None = None
) -> list[int]:
    """Rows of one picture's detections that are not among others, see `is_among`.

    Where scores are equal to 1e-5 rounding decides: which of two boxes that overlap is kept, and which is the last of
    top_k.

    Args:
        expected, found: boxes (k, 4) in fractions, labels (k,), scores (k,).
        genuine: bool that broadcasts to (rows of expected, rows of found): where one may have been kept for the other;
            None: everywhere.
    """
    boxes, labels, scores = expected
    instead = _tied(expected, found) & (box_iou(boxes, found[0]) > options.max_overlap)
    same = is_among(expected, found) | (instead if genuine is None else instead & genuine)
    sure = scores > scores[-1] + 1e-5 if len(scores) == options.top_k else torch.ones_like(labels, dtype=torch.bool)
    return (sure & ~same.any(dim=1)).nonzero().flatten().tolist()
