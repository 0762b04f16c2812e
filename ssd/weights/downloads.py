"""Weights from torchvision, through torch's hub folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def download(weights: Any) -> dict[str, Tensor]:
    """The state dict of an entry of torchvision's weights, from torch's hub folder or from the internet."""
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no internet, no room, another hash, or a file there that cannot be read
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise OSError(
            f"{file}: cannot be downloaded or read ({reason}); download {weights.url} elsewhere and put it there"
        ) from error
