"""The content of an exported file: the program from the bytes of pictures to detections, and its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ssd.data.depth import Levels
from ssd.detection import Padded, bounded
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, unwrapped
from ssd_ext import DetectionOptions, box_iou, postprocess_detections
from ssd_ext._info import version_of

InputDtype = Literal["uint8", "float32"]
Precision = Literal["float32", "int8"]


@dataclass(frozen=True)
class Metadata:
    """The metadata in an exported file.

    Attributes:
        format: a key of `ssd.export.FORMATS`.
        classes: the C-1 class names without background; label i is `classes[i - 1]`.
        options: options of the detection; they cannot be changed in the file.
        input_size: side of the images in pixels.
        input_dtype: dtype of the images: "uint8", or "float32" in 0..1.
        device: type of the device that the program runs on, such as "cpu".
        precision: number format of the convolutions.
        version: version of this package.
        levels: the values that become 0 and 255 when pictures with more than 8 bits per sample are converted to the
            images; None if the network was trained on pictures with 8 bits.

    Examples:
        >>> from ssd.export import Metadata
        >>> from ssd_ext import DetectionOptions
        >>> metadata = Metadata("onnx", ("cat", "dog"), DetectionOptions(min_score=0.5), input_size=320)
        >>> metadata.input_dtype, metadata.precision
        ('uint8', 'float32')
        >>> Metadata.from_json(metadata.to_json()) == metadata
        True
    """

    format: str
    classes: tuple[str, ...]
    options: DetectionOptions
    input_size: int
    input_dtype: InputDtype = "uint8"
    device: str = "cpu"
    precision: Precision = "float32"
    version: str = version_of("ssd-ext")
    levels: Levels | None = None

    def to_json(self) -> str:
        """Returns one line of JSON that `from_json` reads."""
        return json.dumps({**asdict(self), "options": self.options._asdict()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Reads the result of `to_json`.

        Raises:
            ValueError: the text is not metadata.
        """
        try:
            found = json.loads(text)
            options, classes = DetectionOptions(**found["options"]), tuple(found["classes"])
            levels = found.get("levels") and tuple(found["levels"])
            return cls(**found | {"options": options, "classes": classes, "levels": levels})
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"not the metadata of an exported detector: {error!r}") from error


class DetectionProgram(nn.Module):
    """Normalisation, network and detection in one module, in float32 and in evaluation mode.

    Args:
        model: the network; it is put into evaluation mode.
        options: see `ssd_ext.DetectionOptions`.

    Raises:
        TypeError: the model is another module.

    Examples:
        >>> import torch
        >>> from ssd import build_network
        >>> from ssd.export import DetectionProgram
        >>> from ssd_ext import DetectionOptions
        >>> network = build_network("ssdlite", n_classes=3, size=224, width=0.1)
        >>> program = DetectionProgram(network, DetectionOptions(top_k=10))
        >>> boxes, labels, scores, counts = program(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
        >>> boxes.shape, labels.shape, scores.shape, counts.shape
        (torch.Size([1, 10, 4]), torch.Size([1, 10]), torch.Size([1, 10]), torch.Size([1]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Network, options: DetectionOptions = DetectionOptions()) -> None:
        super().__init__()
        model = unwrapped(model)
        self.model = model
        self.options = bounded(options, len(model.priors_cxcy), model.n_classes)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor([255 * value for value in values])[:, None, None])
        self.to(model.priors_cxcy.device).eval()

    def example(self, dtype: InputDtype) -> Tensor:
        """Returns images (2, 3, size, size) of zeros, with which the program is traced."""
        size = self.model.input_size
        return torch.zeros(2, 3, size, size, dtype=getattr(torch, dtype), device=self.mean.device)

    def forward(self, images: Tensor) -> Padded:
        """Finds objects in a batch of pictures.

        Args:
            images: (B, 3, size, size) RGB, uint8, or float32 in 0..1; size is the `input_size` of the network.

        Returns:
            Boxes (B, top_k, 4) float32 xyxy in fractions of the picture, labels (B, top_k) int64, scores (B, top_k)
            float32 and counts (B,) int32, see `ssd_ext.postprocess_detections`.
        """
        pixels = images * 255 if images.is_floating_point() else images.float()
        # Computes the same bits as to_input, but not in place: with operations in place, AOTInductor would make the
        # batch size a constant.
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        offsets, logits = self.model(pixels)
        return postprocess_detections(offsets, logits, self.model.priors_cxcy, self.options)


def as_input(images: Tensor, dtype: InputDtype) -> Tensor:
    """Converts uint8 images to the dtype that a program takes: unchanged, or float32 in 0..1."""
    return images if dtype == "uint8" else images.float() / 255


def is_among(rows: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Compares n detections with m others.

    Args:
        rows: boxes (n, 4) in fractions of the picture, labels (n,) and scores (n,).
        others: the same of m detections.

    Returns:
        (n, m) bool, True if the labels are equal, and the scores agree to 1e-5 and every coordinate to 1e-4.
    """
    return _tied(rows, others) & ((rows[0][:, None] - others[0]).abs() <= 1e-4).all(dim=2)


def _tied(rows: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return (rows[1][:, None] == others[1]) & ((rows[2][:, None] - others[2]).abs() <= 1e-5)


def missing_rows(
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    options: DetectionOptions,
    genuine: Tensor | None = None,
    *,
    ends_right: bool = True,
) -> list[int]:
    """Finds the expected detections of a picture that are not among the found ones, see `is_among`.

    If scores agree to 1e-5, rounding decides which of two overlapping boxes NMS keeps. Other boxes may then be kept
    too, so that the top_k detections end earlier. Such detections are not missing, nor are those behind the last found
    one of top_k, unless a detection was found twice.

    Args:
        expected, found: boxes (k, 4) in fractions of the picture, labels (k,) and scores (k,), by descending score.
        options: options with which both were detected.
        genuine: bool that broadcasts to (rows of expected, rows of found): whether NMS may have kept the found
            detection instead of the expected one; None: always.
        ends_right: whether the last found detection is one that the network gives, with this score.

    Returns:
        The rows of `expected` that are missing.
    """
    boxes, _, scores = expected
    instead = _tied(expected, found) & (box_iou(boxes, found[0]) > options.max_overlap)
    same = is_among(expected, found) | (instead if genuine is None else instead & genuine)
    ends_right = ends_right and not (is_among(found, found).sum(dim=1) > 1).any()
    lists = [expected, found] if ends_right else [expected]
    ends = [rows[2][-1] for rows in lists if len(rows[2]) == options.top_k > 0]
    sure = scores > max(ends, default=scores.new_tensor(-1)) + 1e-5
    return (sure & ~same.any(dim=1)).nonzero().flatten().tolist()
