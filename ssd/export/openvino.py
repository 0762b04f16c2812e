"""OpenVINO: an .xml of the graph and a .bin of the weights, in float32 or in int8."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from copy import copy
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from ssd.export.onnx import OUTPUTS, trace
from ssd.export.program import DetectionProgram, Metadata, as_input
from ssd_ext._boxes import rounded_down

METADATA = ["ssd"]  # where the metadata is in rt_info


def save(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes a model for any number of pictures, and its weights beside it as .bin."""
    import openvino

    # Its NonMaxSuppression drops an IoU that equals the threshold too: the next number up makes it ours.
    overlap = torch.tensor(rounded_down(program.options.max_overlap, torch.float32)).nextafter(torch.tensor(torch.inf))
    program = copy(program)
    program.options = program.options._replace(max_overlap=float(overlap))
    traced = BytesIO(trace(program, metadata).model_proto.SerializeToString())
    _write(openvino.Core().read_model(traced), path, metadata)


def quantize(path: Path, images: Tensor, metadata: Metadata) -> None:
    """Rewrites a file: its convolutions in int8, all after them in float32.

    Args:
        images: (n, 3, 300, 300) uint8, from which the ranges of all activations are taken.
        metadata: of the new file.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.WARNING)  # not a line for every operation that stays float32
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the .bin is overwritten
    model = core.read_model(path)
    pictures = nncf.Dataset([as_input(image[None], metadata.input_dtype).numpy() for image in images])
    ignored = nncf.IgnoredScope(names=_after_convolutions(model))
    preset = nncf.QuantizationPreset.MIXED  # activations that are not all positive, of the heads' inputs, asymmetric
    model = nncf.quantize(model, pictures, subset_size=len(images), preset=preset, ignored_scope=ignored)
    _write(model, path, metadata)


def load(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], Metadata]:
    """A model compiled for the CPU, with as many threads as torch has, and the metadata.

    float32 is float32 here; what int8 leaves of a network runs in what OpenVINO takes for the fastest.

    Raises:
        ValueError: the file is none of ours, or its .bin is missing.
    """
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(path)
        metadata = Metadata.from_json(model.get_rt_info(METADATA).astype(str))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if metadata.precision == "float32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"  # and not bfloat16 where the CPU has it
        compiled = core.compile_model(model, "CPU", settings)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be loaded: {str(error).strip().splitlines()[-1][:200]}") from error
    own = threading.local()  # threads that shared a request would get the results of each other

    def run(images: Tensor) -> list[Tensor]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        results = own.request.infer({"images": images.numpy(force=True)}, share_inputs=True)
        return [torch.from_numpy(results[name]) for name in OUTPUTS]

    return run, metadata


def _write(model, path: Path, metadata: Metadata) -> None:
    import openvino

    model.set_rt_info(metadata.to_json(), METADATA)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # all that it says of a full disk
        raise OSError(f"cannot be written: {error}") from error


def _after_convolutions(model) -> list[str]:
    """The names of all operations from which no way leads to a convolution: the detection."""
    before, after = set(), []
    for node in reversed(model.get_ordered_ops()):
        readers = [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]
        name, kind = node.get_friendly_name(), node.get_type_name()
        if any(r.get_type_name() == "Convolution" or r.get_friendly_name() in before for r in readers):
            before.add(name)
        elif kind not in ("Convolution", "Constant", "Result"):
            after.append(name)
    return after
