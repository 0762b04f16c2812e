"""The format OpenVINO: an .xml file with the graph and a .bin file with the weights, in float32 or in int8."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from copy import copy
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssd.export.onnx import OUTPUTS, trace
from ssd.export.program import DetectionProgram, Metadata, as_input
from ssd_ext._boxes import rounded_down

if TYPE_CHECKING:
    import openvino

METADATA = ["ssd"]  # path of the metadata in rt_info


def save(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes a model for any number of pictures, and its weights to a .bin file beside it."""
    import openvino

    # NonMaxSuppression of OpenVINO also drops IoUs that equal the threshold. With the next larger number as the
    # threshold it keeps them, as postprocess_detections does.
    overlap = torch.tensor(rounded_down(program.options.max_overlap, torch.float32)).nextafter(torch.tensor(torch.inf))
    overlap = overlap.clamp(min=torch.finfo(torch.float32).tiny)  # OpenVINO takes smaller numbers for 0
    program = copy(program)
    program.options = program.options._replace(max_overlap=float(overlap))
    traced = BytesIO(trace(program, metadata).model_proto.SerializeToString())
    _write(openvino.Core().read_model(traced), path, metadata)


def quantize(path: Path, images: Tensor, metadata: Metadata) -> None:
    """Rewrites a file with int8 convolutions; everything after the convolutions stays in float32.

    Args:
        path: the file.
        images: (n, 3, size, size) uint8, from which the ranges of all activations are computed.
        metadata: metadata of the new file.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.WARNING)  # without a line for every operation that stays in float32
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the .bin file is overwritten, so it must not be mapped
    model = core.read_model(path)
    pictures = nncf.Dataset([as_input(image[None], metadata.input_dtype).numpy() for image in images])
    ignored = nncf.IgnoredScope(names=_after_convolutions(model))
    # asymmetric for activations with negative values, such as the inputs of the heads
    preset = nncf.QuantizationPreset.MIXED
    model = nncf.quantize(model, pictures, subset_size=len(images), preset=preset, ignored_scope=ignored)
    _write(model, path, metadata)


def load(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], Metadata]:
    """Compiles a model for the CPU, with as many threads as torch has.

    A float32 model runs in float32. In an int8 model, OpenVINO chooses the fastest precision for the operations that
    are not int8.

    Returns:
        A function that takes images and returns boxes, labels, scores and counts; and the metadata.

    Raises:
        ValueError: the file was not written by this package, or its .bin file is missing.
    """
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(path)
        metadata = Metadata.from_json(model.get_rt_info(METADATA).astype(str))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if metadata.precision == "float32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"  # the default is bfloat16 on CPUs that support it
        compiled = core.compile_model(model, "CPU", settings)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be loaded: {str(error).strip().splitlines()[-1][:200]}") from error
    own = threading.local()  # one request per thread: threads that share a request get each other's results

    def run(images: Tensor) -> list[Tensor]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        results = own.request.infer({"images": images.numpy(force=True)}, share_inputs=True)
        return [torch.from_numpy(results[name]) for name in OUTPUTS]

    return run, metadata


def _write(model: openvino.Model, path: Path, metadata: Metadata) -> None:
    import openvino

    model.set_rt_info(metadata.to_json(), METADATA)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's error for a full disk
        raise OSError(f"cannot be written: {error}") from error


def _after_convolutions(model: openvino.Model) -> list[str]:
    """Finds the operations from which no path leads to a convolution: the detection. Returns their names."""
    before: set[str] = set()
    after: list[str] = []
    for node in reversed(model.get_ordered_ops()):
        readers = [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]
        name, kind = node.get_friendly_name(), node.get_type_name()
        if any(r.get_type_name() == "Convolution" or r.get_friendly_name() in before for r in readers):
            before.add(name)
        elif kind not in ("Convolution", "Constant", "Result"):
            after.append(name)
    return after
