"""Arguments for every op that has a kernel: what the CPU and the CUDA kernels are compared on.

`python cases.py SANITIZER [KERNEL ...]` compares them under a sanitizer, in a process of its own, and then
runs these kernels of selftest.cu: see test_sanitizers.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import adversarial as adv
import torch
from torch import Tensor
from torch.testing import assert_close


def box_iou() -> Iterator[tuple[Tensor, Tensor]]:
    for n in adv.SIZES:
        for seed, m in enumerate((0, 1, 2, 3, 33, 64, 65)):
            for boxes in (adv.grid_boxes, adv.hostile_boxes):
                a, b = boxes(n, seed), boxes(m, seed + 100)
                yield a, b
                yield adv.sliced(a), adv.sliced(b)
    for m in (4, 5, 8, 127, 511, 512, 513, 1030):  # around the tiles of both kernels
        for dtype in (torch.float32, torch.float64):
            yield adv.hostile_boxes(33, m).to(dtype), adv.hostile_boxes(m, 1).to(dtype)
    for dtype in (torch.float16, torch.bfloat16):
        yield adv.hostile_boxes(40, 1).to(dtype), adv.random_boxes(130, 2).to(dtype)
    yield adv.random_boxes(2), adv.random_boxes(adv.N_PRIORS, 1)
    yield adv.random_boxes(adv.N_PRIORS, 1), adv.random_boxes(2)
    # A view that starts in the middle of a 16-byte unit.
    yield adv.random_boxes(9).flatten()[1:33].view(8, 4), adv.random_boxes(5).flatten()[3:19].view(4, 4)


def match_priors() -> Iterator[tuple[Tensor, Tensor, Tensor, float, str]]:
    for mode in ("per_prior", "bipartite"):
        for counts in (*adv.BATCHES.values(), (1, 0, 2) * 25):
            for seed, p in enumerate((0, 1, 33, 130)):
                for boxes in (adv.grid_boxes, adv.hostile_boxes):
                    a, b = boxes(sum(counts), seed), boxes(p, seed + 100)
                    yield a, adv.pack(counts), b, 0.25, mode
                    yield adv.sliced(a), adv.sliced(adv.pack(counts)), adv.sliced(b), 0.25, mode
        for n in (63, 64, 65, 128, 255, 256, 257, 513):  # around what is in shared memory at once
            few = adv.grid_boxes(n, n, cells=5), adv.pack((n // 3, n - n // 3))
            yield *few, adv.grid_boxes(70, 1, cells=5), 0.75, mode
        # Alike objects want the same priors; the next best lies anywhere.
        yield adv.random_boxes(1).repeat(20, 1), adv.pack((20,)), adv.random_boxes(600, 1), 1.0, mode
        for p in (63, 64, 127, 129, 255, 256, 257, 513, 1025):  # around tiles and chunks
            yield adv.grid_boxes(30, p, cells=4), adv.pack((12, 0, 18)), adv.grid_boxes(p, 1, cells=4), 0.5, mode
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            boxes = adv.random_boxes(40, 1).to(dtype), adv.pack((15, 25))
            yield *boxes, adv.hostile_boxes(300, 2).to(dtype), 0.3, mode
        yield adv.random_boxes(7), adv.pack((3, 4)), adv.random_boxes(adv.N_PRIORS, 1), 0.75, mode
        # More priors than an image's blocks take in one go, the best ones in the last and in the first.
        far = adv.random_boxes(40_000, 1) + torch.linspace(8, 0, 40_000)[:, None]
        yield adv.random_boxes(2), adv.pack((2,)), far, 1.0, mode
        yield adv.random_boxes(2), adv.pack((2,)), far.flip(0), 1.0, mode
        # Offsets that end after the boxes; and wild ones, with which nothing that is read can match.
        yield adv.grid_boxes(5), torch.tensor([0, 2, 9], dtype=torch.int32), adv.grid_boxes(40, 1), 0.5, mode
        wild = torch.tensor([7, -3, 2**31 - 1, 0, -(2**31), 2, 1], dtype=torch.int32)
        for n in (0, 1, 70):
            yield torch.full((n, 4), adv.NAN), wild, adv.grid_boxes(300), 0.0, mode


def _per_prior(values, priors, rest: list[tuple]) -> Iterator[tuple]:
    """Rows values(n, seed) for priors priors(n, seed) in all shapes and dtypes, each followed by one of `rest`."""
    for n in (*adv.SIZES, 255, 256, 257, 513):  # a tile on the CPU and a block on the GPU have 256 rows
        for seed, leading in enumerate(((), (0,), (1,), (3,), (2, 3))):
            rows = values(math.prod(leading) * n, seed).view(*leading, n, 4)
            yield rows, priors(n, seed), *rest[seed % len(rest)]
            yield adv.sliced(rows), adv.sliced(priors(n, seed)), *rest[0]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for n in (33, 300):
            yield values(2 * n, n).view(2, n, 4).to(dtype), priors(n, n).to(dtype), *rest[-1]
    yield values(2 * adv.N_PRIORS, 1).view(2, -1, 4), priors(adv.N_PRIORS, 2), *rest[0]
    # Views that start in the middle of a 16-byte unit.
    yield values(9, 0).flatten()[1:33].view(8, 4), priors(8, 1), *rest[0]
    yield values(8, 0), priors(9, 1).flatten()[3:35].view(8, 4), *rest[0]


def encode_boxes() -> Iterator[tuple]:
    for boxes in (adv.grid_boxes, adv.hostile_boxes):
        yield from _per_prior(boxes, lambda n, seed: adv.to_cxcywh(adv.random_boxes(n, seed)), [(0.1, 0.2), (1, 0.3)])
    hostile = adv.to_cxcywh(torch.tensor(adv.NOT_BOXES + adv.ODD_BOXES))
    yield adv.hostile_boxes(5 * len(hostile)).view(5, -1, 4), hostile, 0.1, 0.2


def decode_boxes() -> Iterator[tuple]:
    def normal(n: int, seed: int) -> Tensor:
        return torch.randn(n, 4, generator=adv.generator(seed)) * 3

    def hostile(n: int, seed: int) -> Tensor:
        return adv.hostile_values((n, 4), seed)

    rest = [(0.1, 0.2, None), (1, 0.3, 0.5), (0.1, 0.2, 4.0)]
    for pred_offsets in (normal, hostile):
        yield from _per_prior(pred_offsets, lambda n, seed: adv.to_cxcywh(adv.random_boxes(n, seed)), rest)
    priors = adv.to_cxcywh(torch.tensor(adv.NOT_BOXES + adv.ODD_BOXES))
    yield normal(5 * len(priors), 0).view(5, -1, 4), priors, 0.1, 0.2, None


def select_hard_negatives() -> Iterator[tuple]:
    def positive(shape: tuple[int, int], seed: int) -> Tensor:
        return torch.rand(shape, generator=adv.generator(seed)) < (0.0, 0.05, 0.2, 0.6, 1.1)[seed]

    for n in adv.SIZES:
        for seed, n_images in enumerate((1, 2, 0, 5, 1)):
            shape = (n_images, n)
            for loss in (adv.hostile_values(shape, seed), torch.zeros(shape)):
                for ratio, min_negatives in ((3, 0), (0.5, 7), (1e9, 0), (0, 0)):
                    yield loss, positive(shape, seed), ratio, min_negatives
            yield adv.sliced(adv.hostile_values(shape, seed)), adv.sliced(positive(shape, seed)), 3, 0
    for n in (adv.N_PRIORS, 9216, 9217, 20000):  # up to 9216 the CUDA kernel has the keys in registers
        shape = (2, n)
        for loss in (adv.hostile_values(shape), torch.rand(shape, generator=adv.generator(1)), torch.full(shape, 3.0)):
            yield loss, positive(shape, 1), 3, 0
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        loss = torch.randn(3, 700, dtype=torch.float64, generator=adv.generator(0))
        loss[:, :300] = 1 + loss[:, :300] * 1e-12  # float64 tells them apart
        yield loss.to(dtype), positive((3, 700), 1), 3, 0
        yield adv.hostile_values((3, 700)).to(dtype), positive((3, 700), 1), 3, 0
    steps = torch.randperm(100, generator=adv.generator(0))[None] // 2  # neighbouring numbers, each twice
    for k in (7, 8, 9, 10):
        for sign in (1, -1):
            loss = sign * (1 + steps.double() * torch.finfo(torch.float32).eps)
            yield loss.float(), torch.zeros(1, 100, dtype=torch.bool), 0, k


def _scores(n: int, seed: int) -> Tensor:
    return (adv.hostile_values((n,), seed), torch.zeros(n), torch.rand(n, generator=adv.generator(seed)))[seed % 3]


def _coarse_boxes(n: int, seed: int) -> Tensor:
    return adv.grid_boxes(n, seed, cells=4)


def nms() -> Iterator[tuple]:
    from ssd_ext import reference

    for n in (*adv.SIZES, 255, 256, 257):
        for seed, boxes in enumerate((_coarse_boxes, adv.random_boxes, adv.hostile_boxes)):
            yield boxes(n, seed), _scores(n, seed), 0.5
        yield adv.sliced(_coarse_boxes(n, 3)), adv.sliced(_scores(n, 3)), 0.0
    for threshold in (-1.0, -0.0, 1.0, adv.INF, adv.NAN):
        yield adv.hostile_boxes(70), adv.hostile_values((70,)), threshold
    for dtype in (torch.float32, torch.float64):  # the number below the IoU is the largest that suppresses
        for box in adv.random_boxes(8).to(dtype):
            pair = torch.stack([box, box + (box[2:] - box[:2]).repeat(2) * 0.2])
            iou = reference.box_iou(*pair[:, None])[0, 0]
            yield pair, torch.zeros(2), iou.item()
            yield pair, torch.zeros(2), iou.nextafter(torch.zeros_like(iou)).item()
    for n in (511, 512, 513, 1024, 1025, 2100):  # around the bands and the tiles of the sort
        yield adv.random_boxes(n, n), _scores(n, n), 0.6
    for boxes_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for scores_dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            scores = 1 + 1e-12 * adv.hostile_values((70,)).double()  # float64 tells them apart
            yield adv.hostile_boxes(70).to(boxes_dtype), scores.to(scores_dtype), 0.4


def batched_nms() -> Iterator[tuple]:
    def ids(n: int, n_classes: int) -> Tensor:
        return torch.randint(n_classes, (n,), generator=adv.generator(n)) * 7 - 10

    for n in (*adv.SIZES, 255, 256, 257):
        for seed, boxes in enumerate((_coarse_boxes, adv.random_boxes, adv.hostile_boxes)):
            yield boxes(n, seed), _scores(n, seed), ids(n, (1, 3, 1000)[seed]), 0.4
    for n, n_classes in ((600, 1), (1300, 2), (1300, 9), (1300, 40), (700, 5000)):
        yield adv.random_boxes(n) + 1e4, _scores(n, 0), ids(n, n_classes) * 2**40, 0.3
        yield _coarse_boxes(n, 1), adv.sliced(_scores(n, 2)), adv.sliced(ids(n, n_classes).int()), 0.3
    limits = torch.iinfo(torch.int64)
    idxs = torch.tensor([limits.max, limits.min, 0, -1, limits.max, limits.min])
    yield adv.grid_boxes(1).expand(6, 4), torch.zeros(6), idxs, 0.5


CASES = {
    "box_iou": box_iou,
    "match_priors": match_priors,
    "encode_boxes": encode_boxes,
    "decode_boxes": decode_boxes,
    "select_hard_negatives": select_hard_negatives,
    "nms": nms,
    "batched_nms": batched_nms,
}

# Ops with exp or log: all kernels give the same bits. Plain PyTorch has other functions, which like ours are right to
# one unit in the last place: two such units (2.4e-7, 4.4e-16) of a size up to 10 remain in a corner near 0.
CLOSE = {"encode_boxes", "decode_boxes"}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 4e-15}


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of the numbers, for a NaN those of one NaN: its sign and payload differ between processors."""
    tensor = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    if tensor.is_floating_point():
        tensor[tensor.isnan()] = math.nan
    return tensor.view(torch.uint8)


def same_bits(actual, expected) -> bool:
    """Equal dtypes, shapes and bits, -0 and 0 told apart; tensors or tuples of them."""
    if isinstance(expected, Tensor):
        actual, expected = [actual], [expected]
    return len(actual) == len(expected) and all(
        a.dtype == e.dtype and a.shape == e.shape and torch.equal(_bits(a), _bits(e))
        for a, e in zip(actual, expected, strict=True)
    )


def check(op: str, arguments: tuple, kernels: dict[str, object]) -> None:
    """Fails unless the op of all these namespaces gives the bits of plain PyTorch.

    For an op of CLOSE: unless they all give the same bits, close to those of plain PyTorch.
    """
    from ssd_ext import reference

    expected = getattr(reference, op)(*arguments)
    results = {name: getattr(namespace, op)(*arguments) for name, namespace in kernels.items()}
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in arguments]
    first, bits = "plain PyTorch", expected
    if op in CLOSE:
        first, bits = next(iter(results.items()))
        limit = TOLERANCE[expected.dtype]
        assert_close(bits, expected, rtol=limit, atol=limit, equal_nan=True, msg=lambda m: f"{op} for {shapes}: {m}")
    for name, result in results.items():
        if not same_bits(result, bits):
            raise AssertionError(f"{op}: {name} differs from {first} for {shapes}")


def compare(kernels: dict[str, object]) -> int:
    """Checks all ops of these namespaces; returns the number of calls."""
    calls = 0
    for op, cases in CASES.items():
        for arguments in cases():
            check(op, arguments, kernels)
            calls += len(kernels)
    return calls


def main(sanitizer: str, *selftests: str) -> None:
    from cuda_on_cpu import build

    kernels = {"CUDA": build.load(sanitizer)}
    if sanitizer == "address":
        torch.ops.load_library(build.library(build.CPU_KERNELS, sanitizer))
        kernels["CPU"] = torch.ops.ssd_ext
    calls = compare(kernels)
    for kernel in selftests:
        build.load_selftest(sanitizer)(torch.arange(64, dtype=torch.int32), kernel)
    print("done,", calls, "calls")


if __name__ == "__main__":
    main(*sys.argv[1:])
