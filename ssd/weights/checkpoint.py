"""Checkpoints: state dicts and plain metadata only, so that they load with `weights_only` anywhere, for years."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from ssd.networks.ssd300 import SSD300
from ssd.runtime.files import replacing
from ssd.weights.pickles import read_parameters

FORMAT = 2


def save_checkpoint(path: str | os.PathLike[str], model: SSD300, classes: Sequence[str], **extra: Any) -> None:
    """Writes a checkpoint: whole, or not at all.

    Args:
        path: the file.
        model: the network.
        classes: names of the classes, without background.
        extra: state dicts, numbers, strings, and lists and dicts of these.
    """
    checkpoint = {
        "format": FORMAT,
        "config": model.config,
        "model": model.state_dict(),
        "classes": list(classes),
        **extra,
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:  # by name, a full disk would be no OSError
        torch.save(checkpoint, file)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, now or in an older version, onto the CPU; runs no code from the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint of this package.
    """
    return current(read(path), path)


def current(checkpoint: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was read from a file, in today's format.

    Raises:
        ValueError: it is not a checkpoint of this package.
    """
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint of this package")
    if type(checkpoint["format"]) is not int or not 1 <= checkpoint["format"] <= FORMAT:
        raise ValueError(f"{path}: has format {checkpoint['format']!r}, this version reads 1 to {FORMAT}")
    parts = {"classes": list, "model": dict, **({"config": dict} if checkpoint["format"] > 1 else {})}
    for name, kind in parts.items():
        if not isinstance(checkpoint.get(name), kind):
            raise ValueError(f"{path}: is no whole checkpoint, its {name!r} is a {type(checkpoint.get(name)).__name__}")
    if checkpoint["format"] == 1:  # did not keep its priors
        known = {name: checkpoint.pop(name) for name in ("width", "batch_norm") if name in checkpoint}
        checkpoint["config"] = {"n_classes": len(checkpoint["classes"]) + 1, **known}
    return checkpoint


def build_model(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> SSD300:
    """The network of what `load_checkpoint` gives, on the CPU.

    Raises:
        ValueError: its parts are not those of one network; names the file, `path`.
    """
    try:
        config, state, names = checkpoint["config"], checkpoint["model"], checkpoint["classes"]
        if len(names) != config["n_classes"] - 1 or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{config['n_classes'] - 1} names are wanted, it has {str(names)[:100]}")
        with torch.device("meta"):  # takes no memory, whatever the numbers say
            SSD300(**config).load_state_dict(state, assign=True)
        model = SSD300(**config)
        model.load_state_dict(state)
        return model
    except Exception as error:  # what others wrote fails in many ways
        raise ValueError(f"{path}: is not of one network: {' '.join(str(error).split())[:300]}") from error


def read(path: str | os.PathLike[str]) -> Any:
    """What is in a file of `torch.save`, on the CPU; runs no code from the file.

    Returns:
        plain values and tensors as they were saved, or of a network that was pickled whole {"model": its state dict}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such file, or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        _check_archive(Path(path))
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # objects among the values, or no such file at all
            return {"model": read_parameters(path)}
    except Exception as error:  # what is no checkpoint fails in many ways, KeyError among them
        reason = ((isinstance(error, ValueError) and str(error)) or repr(error)).splitlines()[0][:200]
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from error


def _check_archive(path: Path) -> None:
    """What torch does not look at: the checksums of its archive, and whether it would grow when it is unpacked."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("is compressed, which torch.save never does")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged: its checksum is another")
