"""The CUDA kernels on a real GPU: equal to the CPU's, in graphs, without synchronisation, on any stream and device."""

import pytest
import torch
from cuda_cases import OnGPU
from cuda_on_cpu import cases
from test_registry import samples

import ssd_ext
from ssd.detect import predict_padded
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.train import Settings, make_optimizer, train_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")

COMPILED = [name for name, devices in ssd_ext.info().kernels.items() if "cuda" in devices]
OUTPUT_SIZE_ON_THE_HOST = ("nms", "batched_nms")  # so these two must wait for the GPU
ASYNCHRONOUS = [name for name in COMPILED if name in samples("cpu") and name not in OUTPUT_SIZE_ON_THE_HOST]


def call(name, args):
    function, _, kwargs, _ = samples("cpu")[name]
    result = function(*args, **kwargs)
    return result if isinstance(result, tuple) else (result,)


def arguments(name, seed=None):
    """Arguments on the GPU; with a seed, the rows of every floating tensor in another order."""
    args = samples("cuda")[name][1]
    if seed is None:
        return args
    torch.manual_seed(seed)
    return tuple(
        a[torch.randperm(len(a), device="cuda")] if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


@pytest.mark.parametrize("op", [name for name in COMPILED if name in cases.CASES])
def test_gpu_equals_cpu_to_the_bit(op):
    for args in cases.CASES[op]():
        cases.check(op, args, {"CPU": torch.ops.ssd_ext, "GPU": OnGPU()})


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_graph_replays_on_changed_inputs(name):
    args = arguments(name)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call(name, args)  # what happens once only must not happen in the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(name, args)
    for seed in range(3):
        changed = arguments(name, seed)
        for static, new in zip(args, changed, strict=True):
            if isinstance(static, torch.Tensor):
                static.copy_(new)
        graph.replay()
        for replayed, eager in zip(outputs, call(name, changed), strict=True):
            assert torch.equal(replayed, eager)


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_no_synchronisation(name):
    args = arguments(name)
    call(name, args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(name, args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def training():
    """A small network on the GPU, its loss, and packed targets of two pictures; the last box is padding."""
    torch.manual_seed(0)
    model = SSD300(3, width=0.125).cuda()
    images = torch.randn(2, 3, 300, 300, device="cuda")
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.8], [0, 0, 1, 1]], device="cuda")
    targets = boxes, torch.tensor([1, 2, 1], device="cuda"), torch.tensor([0, 1, 2], dtype=torch.int32, device="cuda")
    return model, MultiBoxLoss(model.priors_cxcy), images, targets


def test_network_loss_and_gradients_in_one_graph(training, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    model, criterion, images, targets = training

    def step():
        loss = criterion(*model(images), *targets)
        return loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    boxes, labels, offsets = targets
    for seed, rows in enumerate(([0, 2, 3], [0, 0, 1], [0, 0, 0], [0, 3, 3])):
        torch.manual_seed(seed)
        images.normal_()
        boxes.copy_(torch.tensor([[0.2, 0.3, 0.6, 0.5], [0.5, 0.5, 0.9, 0.7], [0.1, 0, 0.3, 0.4]]).roll(seed, 0))
        labels.copy_(torch.tensor([2, 1, 2]).roll(seed))
        offsets.copy_(torch.tensor(rows, dtype=torch.int32))
        graph.replay()
        torch.testing.assert_close(outputs, step(), rtol=1e-3, atol=1e-5)


def test_training_and_evaluation_do_not_wait_for_the_gpu(training):
    model, criterion, images, (boxes, labels, _) = training
    settings = Settings(data=("",))
    optimizer = make_optimizer(model, settings)
    images = images.cpu().pin_memory()
    targets = [{"boxes": b[None].cpu(), "labels": n[None].cpu()} for b, n in zip(boxes[:2], labels[:2], strict=True)]

    def both():
        model.train()
        train_step(model, criterion, optimizer, images, targets, settings, 1.0, torch.device("cuda"))
        predict_padded(model, images)

    both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [n for n in COMPILED if n in samples("cpu")])
def test_runs_on_the_current_stream(name):
    """The inputs are written late on another stream: a kernel on the default stream would read too early."""
    args = arguments(name)
    expected = call(name, args)
    late = tuple(torch.zeros_like(a) if isinstance(a, torch.Tensor) else a for a in args)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for static, new in zip(late, args, strict=True):
            if isinstance(static, torch.Tensor):
                static.copy_(new)
        outputs = call(name, late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@pytest.mark.parametrize("name", [n for n in COMPILED if n in samples("cpu")])
def test_a_tensor_on_the_second_gpu(name):
    args = arguments(name)
    second = tuple(a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in args)
    for ours, expected in zip(call(name, second), call(name, args), strict=True):
        assert ours.device == torch.device("cuda:1")
        assert torch.equal(ours.cpu(), expected.cpu())
