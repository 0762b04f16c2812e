"""The formats of torch itself: a graph that torch runs (pt2), and compiled code (aoti). Both are `.pt2` archives."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from ssd.export.program import DetectionProgram, Metadata

LARGEST_BATCH = 65535  # of the batch norm of cuDNN, which a trace for a GPU takes
METADATA = "ssd.json"  # name of the extra file of a pt2, and of the entry of an aoti's metadata


def save_pt2(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes a graph, for any number of pictures; see `torch.export.save`."""
    graph = _trace(program, metadata)
    graph.example_inputs = None  # a megabyte or two of zeros
    content = io.BytesIO()  # written by torch, a full disk would abort the process
    with _quiet():
        torch.export.save(graph, content, extra_files={METADATA: metadata.to_json()})
    path.write_bytes(content.getbuffer())


def save_aoti(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes a library, compiled here for the likes of this machine and any number of pictures.

    Raises:
        OSError: it cannot be compiled, for want of a C++ compiler for one.
    """
    configs = {"aot_inductor.metadata": {METADATA: metadata.to_json()}}
    graph = _trace(program, metadata)
    try:
        torch._inductor.aoti_compile_and_package(graph, package_path=str(path), inductor_configs=configs)
    except Exception as error:  # of torch._inductor.exc, in which versions differ
        raise OSError(f"aoti needs a C++ compiler that works: {str(error).strip().splitlines()[0]}") from error


def load(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], Metadata]:
    """The program of either format, and its metadata.

    Raises:
        ValueError: the file is none of ours, or of a torch that this one cannot read.
    """
    if not is_zipfile(path):
        raise ValueError(f"{path}: not an archive of torch")
    try:
        with ZipFile(path) as archive:
            compiled = any("/data/aotinductor/" in name for name in archive.namelist())
        if compiled:
            program = torch._inductor.aoti_load_package(str(path))
            text = program.loader.get_metadata().get(METADATA, "")
        else:
            extra = {METADATA: ""}
            with _quiet():
                program = torch.export.load(path, extra_files=extra).module()
            text = extra[METADATA]
        return program, Metadata.from_json(text)
    except Exception as error:  # what is damaged fails in many ways
        raise ValueError(f"{path}: cannot be loaded: {str(error).strip().splitlines()[0][:200]}") from error


def _trace(program: DetectionProgram, metadata: Metadata) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", max=LARGEST_BATCH)}
    with torch.no_grad():
        return torch.export.export(program, (program.example(metadata.input_dtype),), dynamic_shapes=(batch,))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about weights in channels_last, which it writes and reads well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
