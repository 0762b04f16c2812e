"""The format ONNX: the network and the detection as standard operators, for ONNX Runtime and others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ssd.export.program import DetectionProgram, Metadata

METADATA = "ssd"  # key of the metadata in the file
OUTPUTS = ["boxes", "labels", "scores", "counts"]
OPSET = 18


def save(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes an ONNX model for any number of pictures."""
    trace(program, metadata).save(path)


def trace(program: DetectionProgram, metadata: Metadata) -> torch.onnx.ONNXProgram:
    """Converts the program to ONNX, with its metadata.

    Raises:
        ValueError: top_k is 0.
    """
    if program.options.top_k < 1:
        raise ValueError(f"top_k must be at least 1 for ONNX, got {program.options.top_k}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter, which a user cannot act on
        traced = torch.onnx.export(
            program,
            (program.example(metadata.input_dtype),),
            input_names=["images"],
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    traced.model.metadata_props[METADATA] = metadata.to_json()
    return traced


def load(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], Metadata]:
    """Loads a file into ONNX Runtime on the CPU, with as many threads as torch has.

    Returns:
        A function that takes images and returns boxes, labels, scores and counts; and the metadata.

    Raises:
        ValueError: the file was not written by this package.
    """
    import onnxruntime

    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, how, providers=["CPUExecutionProvider"])
        metadata = Metadata.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA, ""))
    except Exception as error:  # onnxruntime has its own classes of errors
        raise ValueError(f"{path}: cannot be loaded: {str(error).splitlines()[0][:200]}") from error

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(OUTPUTS, {"images": images.numpy(force=True)})]

    return run, metadata
