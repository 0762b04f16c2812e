"""What would take minutes on a CPU: large batches and bfloat16, on a GPU only.

python -m pytest benchmarks/test_bench_gpu.py -k "training-step-32-images-21"
"""

import pytest
import torch
from harness import Case, each, measure
from test_bench_detection import detection
from test_bench_loss import loss_case
from test_bench_network import inference, training_step

from ssd.precision import autocast

BATCHES = (1, 8, 32, 128)
CLASSES = (21, 81)


class OnGPU(Case):
    """A case without the places of the CPU."""

    def places(self, contender):
        return [place for place in super().places(contender) if place.device == "cuda"]


def in_bf16(case: Case, torchvision) -> Case:
    """The case with predictions in bfloat16; torchvision is a function, or the reason why it is left out."""
    make = case.inputs

    def inputs():
        *predictions, rest = *(x := make())[:2], x[2:]
        half = (x.detach().bfloat16().requires_grad_(x.requires_grad) for x in predictions)
        return *half, *rest

    ours = {name: case.contenders[name] for name in ("ssd_ext", "plain_pytorch")}
    changes = {"op": f"{case.op}, bf16", "inputs": inputs, "contenders": ours | {"torchvision": torchvision}}
    return Case(**vars(case) | changes)


def loss_in_bf16(images: int, classes: int) -> Case:
    case = loss_case(images, classes, backward=True)
    its = case.contenders["torchvision"]

    def torchvision(locs, *rest):
        with autocast(locs.device, True):  # as in training: its losses are then computed in float32
            return its(locs, *rest)

    return in_bf16(case, torchvision)


def detection_in_bf16(images: int, classes: int) -> Case:
    return in_bf16(detection("trained", images, classes), "decodes boxes in bfloat16: see inference")


CASES = [
    *(loss_case(128, classes, backward) for backward in (False, True) for classes in CLASSES),
    *(detection("trained", 128, classes) for classes in CLASSES),
    *(
        make(images, classes)
        for make in (loss_in_bf16, detection_in_bf16, training_step, inference)
        for classes in CLASSES
        for images in BATCHES
    ),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@each([OnGPU(**vars(case)) for case in CASES])
def test_on_gpu(benchmark, case, contender, place):
    measure(benchmark, case, contender, place)
