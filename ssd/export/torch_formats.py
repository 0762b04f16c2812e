"""The two formats of torch: a graph that torch runs (pt2), and compiled code (aoti). Both are `.pt2` archives."""

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

LARGEST_BATCH = 65535  # limit of the batch norm of cuDNN, which is part of a trace for a GPU
METADATA = "ssd.json"  # name of the extra file in a pt2, and key of the metadata in an aoti


def save_pt2(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes a graph for any number of pictures, see `torch.export.save`."""
    graph = _trace(program, metadata)
    graph.example_inputs = None  # zeros, which would take one or two megabytes
    content = io.BytesIO()  # if torch writes to a file itself, a full disk aborts the process
    with _quiet():
        torch.export.save(graph, content, extra_files={METADATA: metadata.to_json()})
    path.write_bytes(content.getbuffer())


def save_aoti(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes a library for any number of pictures. It is compiled here, and runs on machines like this one.

    Raises:
        OSError: it cannot be compiled, for example because there is no C++ compiler.
    """
    configs = {"aot_inductor.metadata": {METADATA: metadata.to_json()}}
    graph = _trace(program, metadata)
    try:
        torch._inductor.aoti_compile_and_package(graph, package_path=str(path), inductor_configs=configs)
    except Exception as error:  # classes of torch._inductor.exc, which depend on the version of torch
        raise OSError(f"aoti needs a working C++ compiler: {str(error).strip().splitlines()[0]}") from error


def load(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], Metadata]:
    """Loads a file of either format: returns the program and its metadata.

    Raises:
        ValueError: the file was not written by this package, or was written by a version of torch whose files this
            version cannot read.
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
    except Exception as error:  # damaged files raise many kinds of errors
        raise ValueError(f"{path}: cannot be loaded: {str(error).strip().splitlines()[0][:200]}") from error


def _trace(program: DetectionProgram, metadata: Metadata) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", max=LARGEST_BATCH)}
    with torch.no_grad():
        return torch.export.export(program, (program.example(metadata.input_dtype),), dynamic_shapes=(batch,))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides torch's warnings about weights in channels_last. They are written and read correctly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
