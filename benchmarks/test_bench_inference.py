"""From the bytes of pictures to detections: the network in PyTorch, and the files of `ssd export`.

.venv/bin/python -m pytest benchmarks/test_bench_inference.py -k 8-images

`ssd_ext` runs like `ssd detect`, in bfloat16 if the CPU supports it; `ssd_ext_compiled` like `--compile`. The weights
are random, so int8 and bfloat16 are measured for speed only. The files run on the CPU, with as many threads as torch.
"""

import copy
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from harness import Case, each
from test_bench_detection import check as same_but_for_rounding
from test_bench_network import CLASSES, FOLDER, IMAGE_SIZE, How, as_lists, networks, smooth_images, ten_best_differ
from torch import Tensor

from ssd.export import FORMATS, DetectionProgram, Metadata
from ssd.inference.detector import predict_padded
from ssd_ext import DetectionOptions

N_CALIBRATION = 16  # pictures; accuracy is not measured


class Pictures(NamedTuple):
    images: Tensor  # (B, 3, 300, 300) uint8


def network(name: str):
    return networks(How(torch.device("cpu"), bf16=False, classes=CLASSES))[name]


def bytes_of(images: int) -> Tensor:
    return (smooth_images(images).raw * 255).to(torch.uint8)


@cache
def written(format: str, precision: str = "float32") -> Path:
    """Writes the exported file of the network; returns its path."""
    path = Path(FOLDER.name) / f"{precision}{FORMATS[format].suffix}"
    metadata = Metadata(format, tuple(map(str, range(1, CLASSES))), DetectionOptions(), IMAGE_SIZE, precision=precision)
    FORMATS[format].save(DetectionProgram(network("ssd_ext")), path, metadata)
    if precision == "int8":
        FORMATS[format].quantize(path, bytes_of(N_CALIBRATION), metadata)
    return path


@cache
def loaded(format: str, precision: str, threads: int):
    """A function that runs a file; for bfloat16, OpenVINO compiles the float32 file."""
    if precision != "bfloat16":
        return FORMATS[format].load(written(format, precision))[0]
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(written(format), "CPU", settings)
    return lambda images: [torch.from_numpy(array) for array in compiled(images.numpy()).to_tuple()]


def run_file(x: Pictures, format: str, precision: str) -> tuple[Tensor, ...]:
    if x.images.is_cuda:
        pytest.skip("runs on the CPU")
    return tuple(loaded(format, precision, torch.get_num_threads())(x.images))


def run_ours(x: Pictures, bf16: bool | None) -> tuple[Tensor, ...]:
    how = How(x.images.device, bf16 is not False, classes=CLASSES)
    return predict_padded(networks(how)["ssd_ext"], x.images, bf16=bf16)


@cache
def compiled(how: How) -> torch.nn.Module:
    """The network compiled as with `--compile`."""
    network = copy.deepcopy(networks(how)["ssd_ext"])
    network.compile(dynamic=True)
    return network


def run_compiled(x: Pictures) -> tuple[Tensor, ...]:
    return predict_padded(compiled(How(x.images.device, True, classes=CLASSES)), x.images)


def run_torchvision(x: Pictures) -> list[tuple[Tensor, Tensor, Tensor]]:
    network = networks(How(x.images.device, bf16=False, classes=CLASSES))["torchvision"]
    with torch.inference_mode():  # not while the networks are built: they are exported too
        found = network(list(x.images / 255))
    return [(d["boxes"] / IMAGE_SIZE, d["labels"], d["scores"]) for d in found]


def from_bytes(images: int) -> Case:
    def check(name, got, expected):
        assert len(as_lists(got)) == images
        here = Pictures(bytes_of(images).to(expected[0].device))
        if name == "torchvision":
            wrong = ten_best_differ(run_ours(here, False), got)
            assert max(wrong) <= 2, f"{name}: of ten detections {wrong} have no partner"
        elif name in ("ssd_ext_float32", "aoti", "onnx", "openvino"):
            same_but_for_rounding(name, got, run_ours(here, False))

    contenders = {
        "ssd_ext": partial(run_ours, bf16=None),
        "ssd_ext_float32": partial(run_ours, bf16=False),
        "ssd_ext_compiled": run_compiled,
        "aoti": partial(run_file, format="aoti", precision="float32"),
        "onnx": partial(run_file, format="onnx", precision="float32"),
        "openvino": partial(run_file, format="openvino", precision="float32"),
        "openvino_bf16": partial(run_file, format="openvino", precision="bfloat16"),
        "openvino_int8": partial(run_file, format="openvino", precision="int8"),
        "torchvision": run_torchvision,
    }
    for name in contenders:
        form = name.partition("_")[0]
        if form in FORMATS and (missing := [m for m in FORMATS[form].modules if find_spec(m) is None]):
            contenders[name] = f"needs {', '.join(missing)}: pip install 'ssd-ext[{form}]'"

    def inputs():
        return Pictures(bytes_of(images))

    how = {"graphs": (), "one_thread": False, "sets_up": True}
    return Case("shipping", "bytes to detections", {"images": images}, inputs, contenders, check, **how)


CASES = [from_bytes(images) for images in (1, 8)]
test_inference = each(CASES)
