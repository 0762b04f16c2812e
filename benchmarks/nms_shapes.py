"""Time of NMS against the number of boxes, for boxes in several shapes, beside other packages.

    pip install lsnms powerboxes opencv-python-headless
    .venv/bin/python benchmarks/nms_shapes.py [--boxes 1000 10000 100000] [--shapes ...] [--threads 1]

Prints the median of alternating calls in ms, and how many boxes are kept. A package is left out of larger inputs once
a call has taken more than --slow seconds, and marked with "!" if it keeps other boxes: more than 1 in 1000, since it
may round an IoU in another way.
"""

import argparse
import statistics
import time

import torch
from inputs import SHAPES, shaped_boxes
from peers import nms_peers

import ssd_ext

THRESHOLD = 0.45


def differ(got: torch.Tensor, expected: torch.Tensor) -> bool:
    both = int(torch.isin(got, expected).sum())
    return len(got) + len(expected) - 2 * both > len(expected) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contenders = {"ssd_ext": ssd_ext.nms} | {name: f for name, f in nms_peers().items() if callable(f)}
    print("| shape | boxes | kept |", *contenders, sep=" | ", end=" |\n")
    print("|---" * (3 + len(contenders)) + "|")
    for shape in args.shapes:
        left = dict(contenders)
        for n in args.boxes:
            x = shaped_boxes(shape, n)
            expected = ssd_ext.nms(x.boxes, x.scores, THRESHOLD)
            times, marks = {name: [] for name in left}, {}
            for name, nms in left.items():  # also the first call, which compiles lsnms
                marks[name] = "!" * differ(nms(x.boxes, x.scores, THRESHOLD), expected)
            for _ in range(args.rounds):
                for name, nms in left.items():
                    if times[name] and times[name][0] > 1:  # seconds; one call is enough
                        continue
                    since = time.perf_counter()
                    nms(x.boxes, x.scores, THRESHOLD)
                    times[name].append(time.perf_counter() - since)
            medians = {name: statistics.median(its) for name, its in times.items()}
            cells = [f"{1000 * medians[name]:.3g}{marks[name]}" if name in medians else "-" for name in contenders]
            print(f"| {shape} | {n} | {len(expected)} | {' | '.join(cells)} |", flush=True)
            left = {name: nms for name, nms in left.items() if medians[name] < args.slow / 12 or name == "ssd_ext"}


if __name__ == "__main__":
    main()
