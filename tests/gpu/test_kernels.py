"""The CUDA kernels on a real GPU: equal to the CPU's, in graphs, without synchronisation, on any stream and device."""

import faulthandler

import adversarial as adv
import pytest
import torch
from compare import as_tuple, compare_gpu, needs_gpu, same_bits, same_view
from cuda_graphs import captured
from ops import OPS
from ops.multibox_loss import inputs as loss_inputs
from own_process import printed_by

import ssd_ext
from ssd_ext import LossOptions

COMPILED = [name for name, devices in ssd_ext.info().kernels.items() if "cuda" in devices]
PUBLIC = [name for name in COMPILED if OPS[name].sample]
ASYNCHRONOUS = [name for name in PUBLIC if not OPS[name].data_dependent]  # else the host has to know the size


def call(name, args):
    return as_tuple(getattr(ssd_ext, name)(*args))


def arguments(name, seed=None):
    """Arguments on the GPU; with a seed, the rows of every floating tensor in another order."""
    args = tuple(a.to("cuda") if isinstance(a, torch.Tensor) else a for a in OPS[name].sample())
    if seed is None:
        return args
    torch.manual_seed(seed)
    return tuple(
        a[torch.randperm(len(a), device="cuda")] if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


def copy_into(static, new):
    with torch.no_grad():
        for a, b in zip(static, new, strict=True):
            if isinstance(a, torch.Tensor):
                a.copy_(b)


@needs_gpu
@pytest.mark.parametrize("op", COMPILED)
def test_gpu_equals_cpu(op):
    compare_gpu([op])


@needs_gpu
@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_graph_replays_on_changed_inputs(name):
    args = arguments(name)
    graph, outputs = captured(lambda: call(name, args))
    for seed in range(3):
        changed = arguments(name, seed)
        copy_into(args, changed)
        graph.replay()
        for replayed, eager in zip(outputs, call(name, changed), strict=True):
            assert torch.equal(replayed, eager)


@needs_gpu
@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_no_synchronisation(name):
    args = arguments(name)
    call(name, args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(name, args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------------------ the loss in a graph


def loss_and_gradients(pred_offsets, pred_logits, *targets):
    inputs = pred_offsets, pred_logits
    conf, loc, n_pos = ssd_ext.multibox_loss(*inputs, *targets, LossOptions(loc_loss="smooth_l1", matching="bipartite"))
    return conf.detach(), loc.detach(), n_pos, *torch.autograd.grad(conf + loc, inputs)


def loss_arguments(counts, seed, dtype, device):
    """Of three images with twelve objects, of which those that no image owns are padding."""
    *predictions, boxes, labels, _, priors = loss_inputs((4, 4, 4), adv.N_PRIORS, 21, seed)
    predictions = (x.to(device, dtype).requires_grad_() for x in predictions)
    return *predictions, *(x.to(device) for x in (boxes, labels, adv.pack(counts), priors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_loss_and_gradients_in_one_graph(dtype, device):
    """On the CPU without a graph: that the inputs are what the test needs."""
    static = loss_arguments((4, 4, 4), 0, dtype, device)
    if device == "cuda":
        graph, outputs = captured(lambda: loss_and_gradients(*static))
    seen = set()
    for seed, counts in enumerate(((3, 0, 9), (0, 12, 0), (0, 0, 0), (5, 4, 3), (1, 1, 1))):
        copy_into(static, loss_arguments(counts, seed, dtype, device))
        if device == "cuda":
            graph.replay()
            assert same_bits(outputs, loss_and_gradients(*static))
        else:
            outputs = loss_and_gradients(*static)
        expected = loss_and_gradients(*loss_arguments(counts, seed, dtype, "cpu"))
        assert same_bits(tuple(x.cpu() for x in outputs), expected)
        assert all(x.isfinite().all() for x in expected)
        seen.add(int(expected[2]))
    assert len(seen) == 5


# -------------------------------------------------------------------------------------- again and again, in company


class Neighbour:
    """Work on a stream of its own: products of matrices, and copies through the memory."""

    def __init__(self):
        self.matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        self.product = torch.empty_like(self.matrix)
        self.blocks = torch.zeros(2, 64 << 20, device="cuda")  # 256 MB each
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())

    def work(self):
        with torch.cuda.stream(self.stream):
            torch.mm(self.matrix, self.matrix, out=self.product)
            self.blocks[1].copy_(self.blocks[0])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_the_same_bits_a_hundred_times_beside_a_busy_stream(op, device):
    gpu = device == "cuda"
    sizes = (tuple(i % 20 for i in range(32)), adv.N_PRIORS, 4000) if gpu else ((0, 1), 300, 100)
    args = OPS[op].full_size(*sizes)
    function = getattr(torch.ops.ssd_ext, op)
    expected = as_tuple(function(*args))
    assert all(x.numel() and not x.isnan().any() for x in expected)
    args = [same_view(x, device) if isinstance(x, torch.Tensor) else x for x in args]
    expected = [x.to(device) for x in expected]
    neighbour = Neighbour() if gpu else None
    different = []
    for i in range(100 if gpu else 3):
        if gpu:
            neighbour.work()
            neighbour.work()  # twice: it is still at it when the op has ended
        if not same_bits(function(*args), expected):
            different.append(i)
    if gpu:
        torch.cuda.synchronize()
    assert not different


# ---------------------------------------------------------------------------------------------- invalid row splits


def match_with_invalid_row_splits(device, runs, n_priors, seconds):
    """Images that share objects, or whose row splits fall: what they match is open, but every kernel ends."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    g = adv.generator(0)
    n_images, n_boxes = 64, 40
    *predictions, boxes, labels, _, priors = loss_inputs((n_boxes,) + (0,) * (n_images - 1), n_priors, 3, 0)
    *predictions, boxes, labels, priors = (x.to(device) for x in (*predictions, boxes, labels, priors))
    corners = adv.random_boxes(n_priors, 1).to(device)
    for run in range(runs):
        if run % 2:
            row_splits = torch.randint(-9, 50, (n_images + 1,), generator=g)
        else:  # all images have the same objects
            row_splits = torch.tensor([0, n_boxes - run % 40] * n_images)[: n_images + 1]
        row_splits = row_splits.int().to(device)
        matches = [torch.ops.ssd_ext.match_priors(boxes, row_splits, corners, 0.5, "bipartite")]
        options = LossOptions(matching="bipartite")
        matches.append(torch.ops.ssd_ext.multibox_loss(*predictions, boxes, labels, row_splits, priors, *options)[3])
        for match in matches:
            assert -1 <= int(match.min()) <= int(match.max()) < n_boxes  # waits for the kernels
    print(runs, "runs have ended")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_bipartite_matching_ends_whatever_the_row_splits(device):
    """In a process of its own, for a kernel that hangs hangs its process."""
    runs, n_priors = (200, adv.N_PRIORS) if device == "cuda" else (10, 300)
    code = f"from runpy import run_path; match = run_path({__file__!r})[{match_with_invalid_row_splits.__name__!r}]"
    call = f"{code}; match({device!r}, {runs}, {n_priors}, 120)"
    assert f"{runs} runs have ended" in printed_by(call, timeout=300)


# ----------------------------------------------------------------------------------------- streams and devices


@needs_gpu
@pytest.mark.parametrize("name", PUBLIC)
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


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@pytest.mark.parametrize("name", PUBLIC)
def test_a_tensor_on_the_second_gpu(name):
    args = arguments(name)
    second = tuple(a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in args)
    for ours, expected in zip(call(name, second), call(name, args), strict=True):
        assert ours.device == torch.device("cuda:1")
        assert torch.equal(ours.cpu(), expected.cpu())
