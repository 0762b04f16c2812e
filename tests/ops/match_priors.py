"""match_priors."""

from __future__ import annotations

from collections.abc import Iterator

import adversarial as adv
import numpy as np
import torch
from torch import Tensor

from ops import Op, box_iou


def oracle(boxes: Tensor, row_splits: Tensor, priors_xyxy: Tensor, threshold: float, mode: str) -> Tensor:
    table = box_iou.oracle(boxes, priors_xyxy).numpy()
    row_splits = row_splits.tolist()
    match = np.full((len(row_splits) - 1, len(priors_xyxy)), -1, np.int32)
    for image in range(len(row_splits) - 1):
        _match_image(table[row_splits[image] : row_splits[image + 1]], table.dtype.type(threshold), mode, match[image])
    return torch.from_numpy(match)


def _match_image(ious: np.ndarray, threshold: np.floating, mode: str, match: np.ndarray) -> None:
    objects, priors = range(ious.shape[0]), range(ious.shape[1])
    for prior in priors:
        best, owner = 0, -1
        for obj in objects:
            if ious[obj, prior] > best:
                best, owner = ious[obj, prior], obj
        if owner >= 0 and best >= threshold:
            match[prior] = owner
    if mode == "per_prior":
        for obj in objects:  # upwards: the highest object has the last word
            best, forced = 0, -1
            for prior in priors:
                if ious[obj, prior] > best:
                    best, forced = ious[obj, prior], prior
            if forced >= 0:
                match[forced] = obj
        return
    pairs = sorted((-ious[o, p], o, p) for o in objects for p in priors if ious[o, p] > 0)
    done, taken = set(), set()
    for _, obj, prior in pairs:
        if obj not in done and prior not in taken:
            done.add(obj)
            taken.add(prior)
            match[prior] = obj


def cases() -> Iterator[tuple[Tensor, Tensor, Tensor, float, str]]:
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
        yield adv.random_boxes(7).repeat(6, 1), adv.pack((15, 27)), adv.random_boxes(20, 1), 0.5, mode
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
        # Row splits that end after the boxes; and wild ones, with which nothing that is read can match.
        yield adv.grid_boxes(5), torch.tensor([0, 2, 9], dtype=torch.int32), adv.grid_boxes(40, 1), 0.5, mode
        wild = torch.tensor([7, -3, 2**31 - 1, 0, -(2**31), 2, 1], dtype=torch.int32)
        for n in (0, 1, 70):
            yield torch.full((n, 4), adv.NAN), wild, adv.grid_boxes(300), 0.0, mode


def full_size(counts: tuple[int, ...], n_priors: int, n_boxes: int) -> tuple:
    return adv.random_boxes(sum(counts), 1), adv.pack(counts), adv.random_boxes(n_priors, 2), 0.4, "bipartite"


OPS = [
    Op(
        "match_priors",
        cases,
        full_size,
        golden="73ac7feeda22460114b02a15001ae5e9d739488a0ef40841c508df35af8448db",
        sample=lambda: (adv.random_boxes(5), adv.pack((3, 2)), adv.random_boxes(40, 1), 0.5, "bipartite"),
        oracle=oracle,
    )
]
