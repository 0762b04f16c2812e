"""The CUDA kernels, compiled for the CPU, against plain PyTorch; and the runner that they run on."""

import re

import adversarial as adv
import pytest
import torch
from compare import check, same_bits
from cuda_on_cpu import build
from ops import OPS, Undecided
from own_process import printed_by

import ssd_ext
from ssd_ext import DetectionOptions, LossOptions

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


# ------------------------------------------------------------------------------------------------ the kernels


@pytest.fixture
def order(request, monkeypatch):
    """In which order blocks and threads run: no result may depend on it."""
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", request.param)


in_every_order = pytest.mark.parametrize("order", ["forward", "reverse", "interleaved"], indirect=True)


def test_every_kernel_has_cases():
    registered = {op for path in build.CUDA_KERNELS for op in re.findall(r'm\.impl\("(\w+)"', path.read_text())}
    assert registered <= OPS.keys()


def cuda_and_cpu():
    kernels = {"CUDA": build.load()}
    if ssd_ext._load.missing["cpu"] is None:
        kernels["CPU"] = torch.ops.ssd_ext
    return kernels


@pytest.mark.parametrize("order", ["forward", "reverse"], indirect=True)  # interleaved takes three times as long
@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("order")
def test_kernel_equals_plain_pytorch(op):
    """And so does the C++ kernel, where it is built; with exp or log both are equal, and close to plain PyTorch."""
    kernels = cuda_and_cpu()
    for arguments in OPS[op].cases():
        before = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
        check(op, arguments, kernels)
        for x, y in zip(arguments, before, strict=True):
            assert same_bits(x, y) if isinstance(x, torch.Tensor) else x is y


@pytest.mark.parametrize("n_classes", [23, 24, 47, 48, 95, 97, 130, 384, 400])  # around the tiles of float rows
def test_the_size_of_a_tile_does_not_matter(n_classes):
    generator = adv.generator(n_classes)
    pred_offsets = torch.randn(2, 70, 4, generator=generator)
    logits = torch.randn(2, 70, n_classes, generator=generator) * 2
    boxes, priors = adv.random_boxes(3), adv.to_cxcywh(adv.random_boxes(70, 1))
    detection = pred_offsets, logits, priors, *DetectionOptions(0.001, 0.3, 100)
    check("postprocess_detections", Undecided(detection), cuda_and_cpu())
    objects = boxes, torch.tensor([1, 2, 3]), adv.pack((2, 1)), priors
    loss = pred_offsets, logits, *objects, *LossOptions()
    check("multibox_loss", loss, cuda_and_cpu())


@pytest.mark.parametrize("spread", [1, 3, 100])  # few, many and nearly all boxes are kept
def test_bands_of_nms(spread):
    """Each of several groups has several bands, and the last box of a band is often one that is suppressed."""
    generator = adv.generator(spread)
    corners = spread * torch.rand(5000, 2, generator=generator)
    boxes = torch.cat([corners, corners + 0.2 + 0.2 * torch.rand(5000, 2, generator=generator)], 1)
    scores = torch.rand(5000, generator=generator)
    check("nms", (boxes, scores, 0.3), cuda_and_cpu())
    check("batched_nms", (boxes, scores, torch.randint(3, (5000,), generator=generator), 0.3), cuda_and_cpu())


@pytest.mark.parametrize("count", [1025, 4 * 1024 + 1, 17 * 1024 + 5])  # tiles: 2, 5, 18; merges: 1, 2, 3
def test_boxes_of_groups_of_their_own_are_returned_by_score(count):
    generator = adv.generator(count)
    scores = torch.randint(count // 2, (count,), generator=generator).float()  # with ties
    boxes = adv.random_boxes(1).repeat(count, 1)
    kept = build.load().batched_nms(boxes, scores, torch.randperm(count, generator=generator), 0.3)
    assert torch.equal(kept, scores.sort(descending=True, stable=True).indices)


def test_where_bands_and_sub_batches_of_detection_end_does_not_matter(tmp_path):
    source = (build.CSRC / "postprocess_detections" / "postprocess_detections.cu").read_text()
    for usual, small in (
        ("kBand = 1024", "kBand = 64"),
        ("kListBytes = 1 << 30", "kListBytes = 4096"),
        ("kNearKept = kWalkThreads", "kNearKept = 7"),
        ("kNearLabels = 512", "kNearLabels = 8"),
    ):
        assert usual in source
        source = source.replace(usual, small)
    changed = tmp_path / "postprocess_detections.cu"
    changed.write_text(source)
    script = """
import sys
from pathlib import Path
import torch, ssd_ext
from compare import compare
from cuda_on_cpu import build
kernels = {"CUDA": build.load(None, (Path(sys.argv[1]),))}
if ssd_ext._load.missing["cpu"] is None:
    kernels["CPU"] = torch.ops.ssd_ext
compare(kernels, ["postprocess_detections"])
"""
    printed_by(script, changed)  # in a process of its own: the usual kernel has the name here


def test_images_that_share_objects_do_not_wait_for_each_other():
    """Row splits that nobody has checked let two blocks of bipartite matching change the same candidates."""
    script = """
import os
import torch, adversarial as adv
from cuda_on_cpu import build
row_splits, priors = torch.tensor([0, 20, 0, 20], dtype=torch.int32), adv.random_boxes(600, 1)
for seed in range(10):
    for boxes in (adv.random_boxes(1, seed).repeat(20, 1), adv.random_boxes(20, seed)):
        results = []
        for order in ("forward", "interleaved"):
            os.environ["CUDA_ON_CPU_ORDER"] = order
            results.append(build.load().match_priors(boxes, row_splits, priors, 0.5, "bipartite"))
        assert torch.equal(*results)
"""
    build.load()  # compiles, which is not to count
    printed_by(script, timeout=100)  # in a process of its own: it may never end


@pytest.fixture(params=["cpu", "cuda_on_cpu"])
def kernels(request):
    """The ops without the checks of the public functions."""
    if request.param == "cuda_on_cpu":
        return build.load()
    if ssd_ext._load.missing["cpu"]:
        pytest.skip(f"CPU library: {ssd_ext._load.missing['cpu']}")
    return torch.ops.ssd_ext


def test_a_direct_call_of_box_iou_cannot_read_out_of_bounds(kernels):
    box_iou = kernels.box_iou
    good = torch.rand(2, 4)
    with pytest.raises(RuntimeError, match=r"boxes1 must have the shape \(N, 4\), got \(3, 5\)"):
        box_iou(torch.rand(3, 5), good)
    with pytest.raises(RuntimeError, match=r"boxes2 must have the shape \(N, 4\), got \(4\)"):
        box_iou(good, torch.rand(4))
    with pytest.raises(RuntimeError, match="same dtype, got Float and Double"):
        box_iou(good, good.double())
    with pytest.raises(RuntimeError, match="expected a floating dtype, got Bool"):
        box_iou(good.bool(), good.bool())


def test_a_direct_call_of_match_priors_cannot_read_out_of_bounds(kernels):
    boxes, row_splits = torch.rand(2, 4), torch.tensor([0, 2], dtype=torch.int32)
    for message, *arguments in (
        (r"boxes must have the shape \(N, 4\), got \(3, 5\)", torch.rand(3, 5), row_splits, boxes),
        (r"priors_xyxy must have the shape \(N, 4\), got \(4\)", boxes, row_splits, torch.rand(4)),
        (r"row_splits must be \(B \+ 1,\) int32, got \(2\) Long", boxes, row_splits.long(), boxes),
        (r"row_splits must be \(B \+ 1,\) int32, got \(0\) Int", boxes, row_splits[:0], boxes),
        ("same dtype, got Float and Double", boxes, row_splits, boxes.double()),
        ("expected a floating dtype, got Int", boxes.int(), row_splits, boxes.int()),
    ):
        with pytest.raises(RuntimeError, match=message):
            kernels.match_priors(*arguments, 0.5, "per_prior")
    with pytest.raises(RuntimeError, match="mode must be one of per_prior, bipartite, got best"):
        kernels.match_priors(boxes, row_splits, boxes, 0.5, "best")
    wild = torch.tensor([7, -3, 2**31 - 1, 0, -(2**31), 2, 1], dtype=torch.int32)
    for mode in ("per_prior", "bipartite"):
        assert set(kernels.match_priors(boxes, wild, boxes, 0.0, mode).flatten().tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize(("op", "rest"), [("encode_boxes", (0.1, 0.2)), ("decode_boxes", (0.1, 0.2, None))])
def test_a_direct_call_per_prior_cannot_read_out_of_bounds(kernels, op, rest):
    run, good = getattr(kernels, op), torch.rand(2, 4)
    with pytest.raises(RuntimeError, match=r"priors_cxcywh must have the shape \(N, 4\), got \(2, 5\)"):
        run(good, torch.rand(2, 5), *rest)
    for shape in ((4,), (3, 4), (2, 5), (2, 3, 4)):
        with pytest.raises(RuntimeError, match=r"(boxes|offsets) must have the shape \(\.\.\., 2, 4\), got \("):
            run(torch.rand(shape), good, *rest)
    with pytest.raises(RuntimeError, match="same dtype, got Float and Double"):
        run(good, good.double(), *rest)
    with pytest.raises(RuntimeError, match="expected a floating dtype, got Int"):
        run(good.int(), good.int(), *rest)


PREDICTIONS = {
    "pred_offsets": torch.zeros(2, 9, 4),
    "pred_logits": torch.zeros(2, 9, 3),
    "boxes": torch.tensor([[0.1, 0.1, 0.9, 0.9]]),
    "labels": torch.tensor([1]),
    "row_splits": torch.tensor([0, 1, 1], dtype=torch.int32),
    "priors_cxcywh": torch.full((9, 4), 0.5),
}
RESULTS = {
    "match": torch.zeros(2, 9, dtype=torch.int32),
    "selected": torch.zeros(2, 9, dtype=torch.bool),
    "n_pos": torch.tensor(1),
}


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("pred_offsets", torch.zeros(2, 9, 5), r"pred_offsets must have the shape \(2, 9, 4\), got \(2, 9, 5\)"),
        ("pred_offsets", torch.zeros(3, 9, 4), r"pred_offsets must have the shape \(2, 9, 4\), got \(3, 9, 4\)"),
        ("pred_offsets", torch.zeros(2, 9, 4).double(), "compute dtype"),
        ("pred_logits", torch.zeros(2, 9), r"pred_logits must have the shape \(B, P, C\) with C >= 1"),
        ("pred_logits", torch.zeros(2, 9, 0), r"pred_logits must have the shape \(B, P, C\) with C >= 1"),
        ("pred_logits", torch.zeros(2, 9, 3, dtype=torch.int32), "floating dtype"),
        ("boxes", torch.zeros(1, 5), r"boxes must have the shape \(N, 4\)"),
        ("boxes", torch.zeros(1, 4).double(), "boxes and priors_cxcywh must be in the compute dtype"),
        ("labels", torch.tensor([1, 1]), r"labels must be \(1,\) int64, got \(2\) Long"),
        ("labels", torch.tensor([1], dtype=torch.int32), r"labels must be \(1,\) int64, got \(1\) Int"),
        ("row_splits", torch.tensor([0, 1], dtype=torch.int32), r"row_splits must be \(3,\) int32, got \(2\) Int"),
        ("priors_cxcywh", torch.zeros(8, 4), r"priors_cxcywh must have 9 rows, got \(8, 4\)"),
        ("match", torch.zeros(2, 8, dtype=torch.int32), r"match and selected must have the shape \(2, 9\)"),
        ("match", torch.zeros(2, 9), "match, selected and n_pos must be Int, Bool and Long"),
        ("selected", torch.zeros(1, 9, dtype=torch.bool), r"match and selected must have the shape \(2, 9\)"),
        ("n_pos", torch.tensor([1, 1]), "must be one number each"),
    ],
)
def test_a_direct_call_of_the_loss_cannot_read_out_of_bounds(kernels, name, bad, message):
    one = torch.ones(())
    arguments = {**PREDICTIONS, **RESULTS, name: bad}
    if name in PREDICTIONS:
        with pytest.raises(RuntimeError, match=message):
            kernels.multibox_loss(*list(arguments.values())[:6], *LossOptions())
    with pytest.raises(RuntimeError, match=message):
        kernels.multibox_loss_backward(one, one, *arguments.values(), *LossOptions())


def test_a_match_out_of_range_is_background_for_the_backward(kernels):
    one = torch.ones(())
    wild = torch.tensor([0, 1, 2**31 - 1, -(2**31), -2] + [-1] * 4, dtype=torch.int32).repeat(2, 1)
    arguments = {**PREDICTIONS, **RESULTS, "match": wild}
    for grad in kernels.multibox_loss_backward(one, one, *arguments.values(), *LossOptions()):
        assert grad.any(dim=2).nonzero().tolist() == [[0, 0]]  # the one object of the first image


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("pred_offsets", torch.zeros(2, 8, 4), r"pred_offsets must have the shape \(2, 9, 4\), got \(2, 8, 4\)"),
        ("pred_offsets", torch.zeros(2, 9, 4, dtype=torch.int64), "floating dtype"),
        ("pred_logits", torch.zeros(2, 9), r"pred_logits must have the shape \(B, P, C\) with C >= 1"),
        ("pred_logits", torch.zeros(2, 9, 3, dtype=torch.int32), "floating dtype"),
        ("priors_cxcywh", torch.zeros(8, 4), r"priors_cxcywh must have 9 rows, got \(8, 4\)"),
        ("top_k", -1, "top_k must be >= 0, got -1"),
        ("pre_nms_top_k", -1, "pre_nms_top_k must be >= 0, got -1"),
    ],
)
def test_a_direct_call_of_detection_cannot_read_out_of_bounds(kernels, name, bad, message):
    tensors = {k: PREDICTIONS[k] for k in ("pred_offsets", "pred_logits", "priors_cxcywh")}
    arguments = {**tensors, **DetectionOptions()._asdict(), name: bad}
    with pytest.raises(RuntimeError, match=message):
        kernels.postprocess_detections(*arguments.values())


# ------------------------------------------------------------------------------------------------- the runner


def run(kernel, x=None):
    return build.load_selftest()(torch.arange(64, dtype=torch.int32) if x is None else x, kernel)


@in_every_order
@pytest.mark.usefixtures("order")
def test_barriers_and_shared_memory():
    for n in (1, 63, 64, 65, 1000):
        x = torch.arange(n, dtype=torch.int32)
        expected = [part.sum().item() for part in x.split(64)]
        assert run("block_sum", x).tolist() == expected


@in_every_order
@pytest.mark.usefixtures("order")
def test_warp_collectives():
    x = torch.randperm(32, generator=torch.Generator().manual_seed(0)).int()
    v, lanes = x.tolist(), range(32)
    ballot = sum(1 << i for i in lanes if v[i] % 2)
    expected = [
        [ballot - (1 << 32 if ballot >> 31 else 0)] * 32,
        [1] * 32,
        [v[5]] * 32,
        [v[i // 8 * 8 + 5] for i in lanes],
        [v[i + 3] if i + 3 < 32 else v[i] for i in lanes],
        [v[i ^ 9] for i in lanes],
        [sum(v)] * 32,
        [31] * 32,
        [63] * 32,
        [max(v[:16])] * 16 + [-(1 << 16)] * 16,
        [20] * 20 + [0] * 12,
    ]
    assert run("warp", x).view(-1, 32).tolist() == expected


@in_every_order
@pytest.mark.usefixtures("order")
def test_votes_and_atomics():
    x = torch.arange(64) - 3
    for votes, expected in ((x, [60, 1, 0]), (torch.ones(64), [64, 1, 1]), (torch.zeros(64), [0, 0, 0])):
        assert run("votes", votes.int()).tolist()[:3] == expected
    assert run("atomics", x.int()).tolist()[:2] == [x.sum().item(), 60]


@in_every_order
@pytest.mark.usefixtures("order")
def test_indices_in_three_dimensions():
    ranges = [torch.arange(n) for n in (4, 2, 3, 5)]  # grid, block z, y, x
    bx, tz, ty, tx = torch.meshgrid(*ranges, indexing="ij")
    expected = bx + 1000 * tx + 10000 * ty + 100000 * tz
    assert run("index").tolist() == expected.flatten().tolist()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", r"different barriers .*32 thread.* from \(0, 0, 0\) .*32 thread.* from \(32, 0, 0\)"),
        ("deadlock", "deadlock .*16 thread.* __syncthreads .*16 thread.* __syncwarp"),
        ("mask", "different masks .*0x0000ffff.*0xffffffff"),
        ("call_site", "different collectives .*__ballot_sync .*__ballot_sync"),
        ("own_mask", r"lane \d+ is not in its own mask 0x0000ffff"),
        ("exited_source", "reads lane 5, which did not take part"),
        ("shared_overrun", "a write after the shared array first .*before the shared array second"),
        ("shared_too_large", "more than 49152 bytes"),
        ("too_many_threads", r"invalid launch: .*block \(1025, 1, 1\)"),
        ("too_many_blocks", "too large for a GPU: 4294967297 blocks"),
    ],
)
@in_every_order
@pytest.mark.usefixtures("order")
def test_mistakes_are_errors_with_a_reason(kernel, message):
    with pytest.raises(RuntimeError, match=message):
        run(kernel)
    assert run("block_sum").tolist() == [64 * 63 // 2]  # the next launch is not disturbed


def test_shared_memory_is_not_zero_at_first():
    assert set(run("unset_shared").tolist()) == {int.from_bytes(b"\xcd" * 4, "little", signed=True)}


def test_a_missing_barrier_shows_in_the_order_of_threads(monkeypatch):
    results = set()
    for order in ("forward", "reverse"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        results.add(run("block_sum_without_barrier").item())
    assert results != {64 * 63 // 2}
