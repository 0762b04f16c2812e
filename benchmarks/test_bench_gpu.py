"""Large batches and bfloat16, which would take minutes on a CPU; runs only on a GPU.

python -m pytest benchmarks/test_bench_gpu.py -k "training-step-32-images-21"
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from harness import CUDA, Case, each
from inputs import Inputs
from test_bench_detection import detection
from test_bench_loss import loss_case
from test_bench_network import inference, training_step

from ssd.runtime.device import autocast

BATCHES = (1, 8, 32, 128)
CLASSES = (21, 81)
pytestmark = pytest.mark.skipif(not CUDA, reason="no GPU that torch can use")


def in_bf16(case: Case, torchvision: Callable | str) -> Case:
    """The case with predictions in bfloat16; `torchvision` is a function, or the reason why torchvision is left out."""

    def inputs() -> Inputs:
        x = case.inputs()
        half = {name: getattr(x, name).detach().bfloat16() for name in ("pred_offsets", "pred_logits")}
        return x._replace(**{name: h.requires_grad_(x.pred_logits.requires_grad) for name, h in half.items()})

    contenders = {name: case.contenders[name] for name in ("ssd_ext", "plain_pytorch")} | {"torchvision": torchvision}
    return replace(case, op=f"{case.op}, bf16", inputs=inputs, contenders=contenders)


def loss_in_bf16(images: int, classes: int) -> Case:
    case = loss_case(images, classes, backward=True)

    def torchvision(x):
        with autocast(x.pred_logits.device, enabled=True):  # as in training; it then computes losses in float32
            return case.contenders["torchvision"](x)

    return in_bf16(case, torchvision)


def detection_in_bf16(images: int, classes: int) -> Case:
    return in_bf16(detection("trained", images, classes), "decodes boxes in bfloat16, see inference")


CASES = [
    *(loss_case(128, classes, backward=backward) for backward in (False, True) for classes in CLASSES),
    *(detection("trained", 128, classes) for classes in CLASSES),
    *(
        make(images, classes)
        for make in (loss_in_bf16, detection_in_bf16, training_step, inference)
        for classes in CLASSES
        for images in BATCHES
    ),
]
test_on_gpu = each([replace(case, gpu_only=True) for case in CASES])
