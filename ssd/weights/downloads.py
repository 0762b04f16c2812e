"""Downloads of torchvision's weights, kept in torch's hub folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


def download(weights: WeightsEnum) -> dict[str, Tensor]:
    """Loads a state dict of torchvision, from torch's hub folder or else from the internet.

    Args:
        weights: a member of one of torchvision's enums, such as `VGG16_Weights.IMAGENET1K_V1`.

    Raises:
        OSError: the download failed, or the file in the hub folder cannot be read.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no internet, a full disk, a wrong hash, or an unreadable file in the hub folder
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise OSError(
            f"{file}: cannot be downloaded or read ({reason}); download {weights.url} yourself and save it there"
        ) from error
