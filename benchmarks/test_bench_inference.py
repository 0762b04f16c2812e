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
from test_bench_network import (
    CLASSES,
    FOLDER,
    How,
    as_lists,
    named,
    networks,
    side,
    smooth_images,
    ten_best_differ,
)
from torch import Tensor

from ssd.export import FORMATS, DetectionProgram, Metadata
from ssd.inference.prediction import predict_padded
from ssd_ext import DetectionOptions

N_CALIBRATION = 16  # pictures; accuracy is not measured


class Pictures(NamedTuple):
    network: str
    images: Tensor  # (B, 3, size, size) uint8


def bytes_of(network: str, images: int) -> Tensor:
    return (smooth_images(images, network).raw * 255).to(torch.uint8)


def how_of(x: Pictures, bf16: bool) -> How:
    return How(x.images.device, bf16, classes=CLASSES, network=x.network)


@cache
def written(network: str, format: str, precision: str = "float32") -> Path:
    """Writes the exported file of the network; returns its path."""
    path = Path(FOLDER.name) / f"{network}_{precision}{FORMATS[format].suffix}"
    names = tuple(map(str, range(1, CLASSES)))
    metadata = Metadata(format, names, DetectionOptions(), side(network), precision=precision)
    ours = networks(How(torch.device("cpu"), bf16=False, classes=CLASSES, network=network))["ssd_ext"]
    FORMATS[format].save(DetectionProgram(ours), path, metadata)
    if precision == "int8":
        FORMATS[format].quantize(path, bytes_of(network, N_CALIBRATION), metadata)
    return path


@cache
def loaded(network: str, format: str, precision: str, threads: int):
    """A function that runs a file; for bfloat16, OpenVINO compiles the float32 file."""
    if precision != "bfloat16":
        return FORMATS[format].load(written(network, format, precision))[0]
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(written(network, format), "CPU", settings)
    return lambda images: [torch.from_numpy(array) for array in compiled(images.numpy()).to_tuple()]


def run_file(x: Pictures, format: str, precision: str) -> tuple[Tensor, ...]:
    if x.images.is_cuda:
        pytest.skip("runs on the CPU")
    return tuple(loaded(x.network, format, precision, torch.get_num_threads())(x.images))


def run_ours(x: Pictures, bf16: bool | None) -> tuple[Tensor, ...]:
    return predict_padded(fused(how_of(x, bf16 is not False)), x.images, bf16=bf16)


@cache
def fused(how: How) -> torch.nn.Module:
    """The network as `Detector.load` makes it."""
    return copy.deepcopy(networks(how)["ssd_ext"]).fuse()


@cache
def compiled(how: How) -> torch.nn.Module:
    """The network compiled as with `--compile`."""
    network = copy.deepcopy(fused(how))
    network.compile(dynamic=True)
    return network


def run_compiled(x: Pictures) -> tuple[Tensor, ...]:
    return predict_padded(compiled(how_of(x, True)), x.images)


def run_torchvision(x: Pictures) -> list[tuple[Tensor, Tensor, Tensor]]:
    network = networks(how_of(x, False))["torchvision"]
    with torch.inference_mode():  # not while the networks are built: they are exported too
        found = network(list(x.images / 255))
    return [(d["boxes"] / side(x.network), d["labels"], d["scores"]) for d in found]


def from_bytes(images: int, network: str) -> Case:
    def check(name, got, expected):
        assert len(as_lists(got)) == images
        here = inputs()._replace(images=bytes_of(network, images).to(expected[0].device))
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
        return Pictures(network, bytes_of(network, images))

    how = {"graphs": (), "one_thread": False, "sets_up": True}
    sizes = {"images": images} | named(network)
    return Case("shipping", "bytes to detections", sizes, inputs, contenders, check, **how)


CASES = [from_bytes(images, network) for network in ("ssd300", "ssdlite320") for images in (1, 8)]
test_inference = each(CASES)
