"""Loading a classifier's weights, trained on ImageNet, into the backbone of a network."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from torch import Tensor

from ssd.networks import Network
from ssd.weights.checkpoint import read
from ssd.weights.downloads import download


def load_backbone(model: Network, weights: str | PathLike[str] | None = None) -> None:
    """Fills the backbone of a network with ImageNet weights, in place.

    Args:
        model: the network.
        weights: file with the state dict of the classifier that the network's `load_backbone` takes. None: the first
            call downloads it (VGG16: about 530 MB) into torch's hub folder.

    Raises:
        ValueError: there are no ImageNet weights for this network, or the file does not hold the classifier that the
            network needs.
        TypeError: weights is no path.
        FileNotFoundError: no such file.
        OSError: the download failed.

    Examples:
        >>> import torch
        >>> from torchvision.models import mobilenet_v3_large
        >>> from ssd.networks import build_network, network_class
        >>> from ssd.weights.backbone import load_backbone
        >>> torch.save(mobilenet_v3_large().state_dict(), "classifier.pth")
        >>> options = network_class("ssdlite320").backbone_options(None)  # arguments that fit these weights
        >>> network = build_network("ssdlite320", n_classes=3, **options)
        >>> load_backbone(network, "classifier.pth")
    """
    if weights is not None:
        if not isinstance(weights, (str, PathLike)):
            raise TypeError(
                f"weights must be the path of a file, got {type(weights).__name__}: a state dict is loaded by "
                "model.load_backbone(state)"
            )
        fill_backbone(model, read(weights), weights)
        return
    found = model.imagenet()
    fill_backbone(model, found if isinstance(found, Mapping) else download(found), model.name)


def fill_backbone(model: Network, state: Mapping[str, Tensor], source: str | PathLike[str]) -> None:
    """Like `load_backbone`, with weights that were already read.

    Args:
        model: the network.
        state: the state dict of the classifier.
        source: where it is from, for error messages.
    """
    try:
        model.load_backbone(state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
