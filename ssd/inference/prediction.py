"""From prepared pictures to padded detections: what training, evaluation, exports and the detector share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ssd.data.colour import to_input
from ssd.detection import Padded, bounded
from ssd.networks import Network
from ssd.networks.network import unwrapped
from ssd.runtime.device import autocast, place
from ssd.weights.checkpoint import build_model
from ssd_ext import DetectionOptions, postprocess_detections

Predict = Callable[[Tensor], Padded]  # takes prepared pictures and returns the same as `predict_padded`


class Program(Protocol):
    """The type of functions that detect objects with options of their own, such as the result of `ssd.export.load`."""

    @property
    def input_size(self) -> int:
        """Side of the images in pixels."""

    def __call__(self, images: Tensor) -> Padded:
        """Takes prepared images (B, 3, input_size, input_size) uint8, returns the same as `predict_padded`."""


def fused_network(checkpoint: dict[str, Any], path: str | PathLike[str], device: torch.device) -> Network:
    """Returns the network of a checkpoint as all detection uses it: see `Network.fuse`.

    Args:
        checkpoint: see `ssd.weights.checkpoint.load_checkpoint`.
        path: where it comes from, for errors.
        device: where the network runs.
    """
    return place(build_model(checkpoint, path).fuse(), device)


def predictor(
    model: Network | Predict, options: DetectionOptions = DetectionOptions(), *, bf16: bool | None = None
) -> Predict:
    """Returns a function that detects objects in prepared pictures.

    Args:
        model: the network, see `predict_padded`; or a function that detects, such as the result of `ssd.export.load`.
            A function is returned as it is, and the other arguments have no effect.
        options, bf16: see `predict_padded`.

    Raises:
        TypeError: the model is another module.

    Examples:
        >>> import torch
        >>> from ssd import build_network
        >>> from ssd.inference.prediction import predictor
        >>> from ssd_ext import DetectionOptions
        >>> network = build_network("ssdlite", n_classes=2, size=224, width=0.1)  # with random weights
        >>> detect = predictor(network, DetectionOptions(min_score=0.0, top_k=3))
        >>> boxes, labels, scores, counts = detect(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
        >>> boxes.shape, counts.tolist()
        (torch.Size([1, 3, 4]), [3])
    """
    if not isinstance(model, nn.Module):
        return model
    return partial(predict_padded, unwrapped(model), options=options, bf16=bf16)


@torch.inference_mode()
def predict_padded(
    model: nn.Module, images: Tensor, options: DetectionOptions = DetectionOptions(), *, bf16: bool | None = None
) -> Padded:
    """Runs a network on prepared pictures, on the device of its parameters; does not wait for a GPU.

    Args:
        model: the network, which is put into evaluation mode. If torch.compile has wrapped it, it runs compiled.
        images: (B, 3, input_size, input_size) RGB: uint8 as from `EvalTransform`, or floating-point and normalised as
            by `to_input`.
        options: see `ssd_ext.DetectionOptions`.
        bf16: whether to use bfloat16 autocast; None: if the hardware supports it. Parameters in another dtype than
            float32 are used as they are, without autocast.

    Returns:
        Boxes (B, K, 4) xyxy in fractions of the image, labels (B, K), scores (B, K) and counts (B,), as from
        `ssd_ext.postprocess_detections`. K is `options.top_k`, or the number of candidates if that is smaller.
    """
    model = unwrapped(model)
    model.eval()
    priors_cxcy = cast(Tensor, model.priors_cxcy)
    device = priors_cxcy.device
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    images = to_input(images.to(device, non_blocking=True)).to(dtype)
    with autocast(device, bf16 if dtype == torch.float32 else False):
        offsets, logits = model(place(images, device))
    return postprocess_detections(offsets, logits, priors_cxcy, bounded(options, *logits.shape[1:]))
