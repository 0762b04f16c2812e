"""Checkpoints: files with state dicts and plain metadata only, so that any torch loads them with `weights_only`.

A checkpoint for detection may also be a .safetensors file, which other programs read without torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, is_zipfile

import torch

from ssd.networks import NETWORKS, Network, build_network
from ssd.networks.network import unwrapped
from ssd.networks.ssd300 import SSD300
from ssd.runtime.files import replacing
from ssd.weights.hub import BEST
from ssd.weights.pickles import read_parameters

FORMAT = 3  # version of the file's layout
SAFETENSORS = ".safetensors"  # suffix of files in the format of the package safetensors
METADATA = "ssd"  # key of the metadata of such a file that has all entries but the parameters, as JSON


def save_checkpoint(path: str | os.PathLike[str], model: Network, classes: Sequence[str], **extra: Any) -> None:
    """Writes a checkpoint; if writing fails, an existing file stays as it was.

    Args:
        path: the file to write; its folder must exist. If it ends in .safetensors, it has this format: the parameters
            as tensors, and all other entries as JSON in the metadata.
        model: the network; of one that torch.compile, DistributedDataParallel or AveragedModel has wrapped, the
            network inside is written.
        classes: names of the C-1 classes, without background.
        extra: more entries: state dicts, numbers, strings, and lists and dicts of these. For .safetensors without
            tensors. An entry cannot have the name of one that `load_checkpoint` lists.

    Raises:
        ValueError: the file could not be loaded, because there are too few or too many classes, they are not a list of
            names, the network is fused or changed in another way, its class is not in `ssd.networks.NETWORKS`, or an
            extra entry has the name of another entry. Nothing is written.
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written, for example because the disk is full.
        ImportError: the file ends in .safetensors, and the package safetensors is not installed.

    Examples:
        >>> from ssd import build_network
        >>> from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
        >>> save_checkpoint("small.pt", build_network("ssdlite", 3, size=224, width=0.1), ["cat", "dog"], epoch=5)
        >>> checkpoint = load_checkpoint("small.pt")
        >>> checkpoint["network"], checkpoint["classes"], checkpoint["epoch"]
        ('ssdlite', ['cat', 'dog'], 5)
    """
    if isinstance(classes, str):
        raise ValueError(f"{path}: classes must be a list of names, got the text {classes!r}")
    bare = unwrapped(model)
    network: Network = getattr(bare, "_orig_mod", bare)  # where torch.compile has wrapped it
    if NETWORKS.get(type(network).name) is not type(network):
        raise ValueError(
            f"{path}: cannot be saved: no network named {network.name!r} is of the class {type(network).__name__}, so "
            "the file could not be loaded; give the class a name of its own, and add it to ssd.networks.NETWORKS"
        )
    state = network.state_dict()
    own = {"format": FORMAT, "network": network.name, "config": network.config, "classes": list(classes)}
    if taken := own.keys() & extra.keys():
        raise ValueError(
            f"{path}: extra entries need other names; these names belong to the checkpoint itself: "
            f"{', '.join(sorted(taken))}"
        )
    try:
        _check_parts(own | {"model": state})
    except ValueError as error:
        raise ValueError(f"{path}: cannot be saved: {error}") from None
    except Exception as error:  # a network that somebody has changed can fail in any way
        raise ValueError(
            f"{path}: cannot be saved: the network has other parameters than a new one with its config; save it before "
            f"it is fused or changed in another way: {' '.join(str(error).split())[:200]}"
        ) from error
    entries = own | extra
    if Path(path).suffix == SAFETENSORS:
        # The format takes only contiguous tensors that share no memory.
        copies = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        metadata = {"format": "pt", METADATA: json.dumps(entries)}  # programs of Hugging Face read "format"
        data = _safetensors(path).torch.save(copies, metadata)
        with _written(path) as file:
            file.write(data)
        return
    with _written(path) as file:  # given a path, torch raises no OSError for a full disk
        torch.save(entries | {"model": state}, file)


@contextmanager
def _written(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` once it is on the disk, so that a power cut leaves the old one or the new."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint that `save_checkpoint` of this or an older version wrote. Runs no code from the file.

    Args:
        path: the file.

    Returns:
        Dict with "format", "network" (its name), "config" (its arguments), "model" (its state dict, on the CPU),
        "classes" (C-1 names) and the extra entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint of this package.

    Examples:
        >>> from ssd import build_network
        >>> from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
        >>> save_checkpoint("small.pt", build_network("ssdlite", 2, size=224, width=0.1), ["cat"])
        >>> checkpoint = load_checkpoint("small.pt")
        >>> network = build_network(checkpoint["network"], **checkpoint["config"])
        >>> network.load_state_dict(checkpoint["model"])
        <All keys matched successfully>
    """
    return current(read(path), path)


def current(checkpoint: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Checks the content of a file, and converts a checkpoint of an older version to the current format.

    Args:
        checkpoint: see `read`; may be changed in place.
        path: the file, for error messages.

    Returns:
        See `load_checkpoint`.

    Raises:
        ValueError: it is not a checkpoint of this package.
    """
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint of this package")
    if type(checkpoint["format"]) is not int or not 1 <= checkpoint["format"] <= FORMAT:
        raise ValueError(
            f"{path}: has format {checkpoint['format']!r}; this version of ssd reads formats 1 to {FORMAT}"
        )
    if checkpoint["format"] < 3:  # in these formats there is only one network
        checkpoint["network"] = SSD300.name
    parts = {"network": str, "classes": list, "model": dict, **({"config": dict} if checkpoint["format"] > 1 else {})}
    for name, kind in parts.items():
        if not isinstance(checkpoint.get(name), kind):
            raise ValueError(
                f"{path}: is not a complete checkpoint: its {name!r} is a {type(checkpoint.get(name)).__name__}"
            )
    levels = checkpoint.get("levels")
    kinds = list(map(type, levels)) if isinstance(levels, (list, tuple)) else []
    if levels is not None and not (len(kinds) == 2 and {int, float}.issuperset(kinds)):
        raise ValueError(f"{path}: its levels must be two numbers, got {str(levels)[:100]}")
    if checkpoint["format"] == 1:  # this format has no config; its priors are the default ones
        known = {name: checkpoint.pop(name) for name in ("width", "batch_norm") if name in checkpoint}
        checkpoint["config"] = {"n_classes": len(checkpoint["classes"]) + 1, **known}
    return checkpoint


def levels_of(checkpoint: dict[str, Any]) -> tuple[float, float] | None:
    """The levels of the pictures that the network was trained on, see `ssd.data.BoxDataset`; None if there are none."""
    levels = checkpoint.get("levels")
    return None if levels is None else (levels[0], levels[1])


def build_model(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> Network:
    """Builds the network of a checkpoint, on the CPU.

    Args:
        checkpoint: see `load_checkpoint`.
        path: the file, for error messages.

    Raises:
        ValueError: config, parameters and class names do not fit together.
    """
    try:
        _check_parts(checkpoint)
        model = build_network(checkpoint["network"], **checkpoint["config"])
        model.load_state_dict(checkpoint["model"])
        return model
    except Exception as error:  # a file by somebody else can fail in any way
        raise ValueError(
            f"{path}: its config, parameters and class names do not fit together: {' '.join(str(error).split())[:300]}"
        ) from error


def _check_parts(checkpoint: dict[str, Any]) -> None:
    """Checks that config, parameters and class names fit together.

    Raises:
        ValueError: the number of class names is wrong, they are not strings, or an argument is out of range.
        Exception: the parameters have other names or shapes than those of the network, or the file is damaged.
    """
    network, config, state, names = (checkpoint[name] for name in ("network", "config", "model", "classes"))
    if len(names) != config["n_classes"] - 1 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected {config['n_classes'] - 1} class names, got {str(names)[:100]}")
    shapes = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    _bare_network(network, json.dumps(config)).load_state_dict(shapes, assign=True)


@lru_cache(maxsize=1)  # a run saves the same network many times
def _bare_network(name: str, config: str) -> Network:
    """Builds a network without allocating memory, which a wrong width could exhaust; `config` is JSON."""
    with torch.device("meta"):
        return build_network(name, **json.loads(config))


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `torch.save` or a .safetensors file onto the CPU. Runs no code from the file.

    Returns:
        Plain values and tensors as they were saved. For a file with a pickled network: {"model": its state dict}. For a
        .safetensors file of `save_checkpoint`: the checkpoint, with lists for tuples; for another one its tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is a folder or an empty file, or damaged, or was not written by `torch.save`.
        ImportError: the file ends in .safetensors, and the package safetensors is not installed.
    """
    if Path(path).is_dir():
        best = next((file for name in BEST if (file := Path(path, name)).is_file()), None)
        raise ValueError(f"{path}: is a folder; choose {best or 'a file of weights, such as best.pt'}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not Path(path).stat().st_size:
        raise ValueError(f"{path}: cannot be read as a checkpoint: the file is empty")
    package = _safetensors(path) if Path(path).suffix == SAFETENSORS else None
    try:
        if package is not None:
            with package.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
                entries = (file.metadata() or {}).get(METADATA)
            return tensors if entries is None else {**json.loads(entries), "model": tensors}
        _check_archive(Path(path))
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # the file holds other objects, or was not written by torch.save
            return {"model": read_parameters(path)}
    except Exception as error:  # other files fail with many kinds of errors, such as KeyError
        reason = ((isinstance(error, ValueError) and str(error)) or repr(error)).splitlines()[0][:200]
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from error


def _safetensors(path: str | os.PathLike[str]) -> Any:  # the package
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{path}: needs safetensors ({error}): pip install 'ssd-ext[safetensors]'") from None
    return safetensors


def _check_archive(path: Path) -> None:
    """Checks what torch does not: the checksums of the archive, and that unpacking would not make it larger."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("it is compressed, which torch.save never does")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged: checksum mismatch")
