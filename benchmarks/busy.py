"""Small work beside busy processes: how long a call takes on a machine that has other things to do.

    .venv/bin/python benchmarks/busy.py [--processes 2] [--seconds 2]

Prints the median and the 99th percentile in ms, of one thread and of all, first alone and then beside processes that
keep a processor busy each. Contenders are called in turn.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import peers
import torch
import torchvision
from inputs import PRIORS, PRIORS_XYXY, clustered_boxes, objects, trained_like

import ssd_ext
from ssd.loss import pack_targets


def cases() -> dict[str, tuple[Callable, Callable]]:
    """Name -> ours and torchvision's."""
    locs, logits = trained_like(1, 21)
    ssd = peers.ssd(21, score_thresh=0.01, nms_thresh=0.45, detections_per_img=200, topk_candidates=400)
    boxes, scores, _ = clustered_boxes(1000)
    lists, labels = objects(1, 21, 1, 20)
    packed, _, row_splits = pack_targets(lists, labels, torch.device("cpu"))
    return {
        "detection, 1 image": (
            lambda: ssd_ext.postprocess_detections(locs, logits, PRIORS, 0.01, 0.45, 200),
            lambda: peers.detect(ssd, locs, logits, PRIORS_XYXY),
        ),
        "nms, 1000 boxes": (
            lambda: ssd_ext.nms(boxes, scores, 0.45),
            lambda: torchvision.ops.nms(boxes, scores, 0.45),
        ),
        "match_priors, 1 image": (
            lambda: ssd_ext.match_priors(packed, row_splits, PRIORS_XYXY),
            lambda: peers.match(lists, PRIORS_XYXY),
        ),
    }


@contextmanager
def busy(processes: int):
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(contenders: dict[tuple[str, int], Callable], seconds: float) -> dict[tuple[str, int], list[float]]:
    """Sorted milliseconds of the calls of each contender (name, threads)."""
    times = {key: [] for key in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for (name, threads), call in contenders.items():
            torch.set_num_threads(threads)
            started = time.perf_counter()
            call()
            times[name, threads].append((time.perf_counter() - started) * 1e3)
    return {key: sorted(values[1:]) for key, values in times.items()}  # the first call warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4, help="for each case")
    args = parser.parse_args()
    most = torch.get_num_threads()
    for processes in (0, args.processes):
        print(f"beside {processes} busy processes; ms: median / 99th percentile")
        for name, (ours, theirs) in cases().items():
            contenders = {("ssd_ext", 1): ours, ("ssd_ext", most): ours, ("torchvision", most): theirs}
            with busy(processes):
                results = measure(contenders, args.seconds)
            cells = (
                f"{who}, {threads} thread{'s' * (threads > 1)}: {t[len(t) // 2]:.3f} / {t[int(0.99 * len(t))]:.3f}"
                for (who, threads), t in results.items()
            )
            print(f"{name:22} " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
