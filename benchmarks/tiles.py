"""Compares `ssd.Detector(tiles=)` with SAHI: the same network, the same large pictures, in the same process.

pip install sahi
python benchmarks/tiles.py demo/run_1/best.pt                  weights of `ssd demo`; draws 30 scenes
python benchmarks/tiles.py run/best.pt DATA --tiles 640        pictures of the split "test" of a data set
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

import ssd
from ssd.data import open_dataset
from ssd.data.shapes import write_shapes
from ssd.detection import Found
from ssd.evaluation.evaluate import score
from ssd.runtime.device import one_thread

Contender = Callable[[np.ndarray], Found]
SCENES = {"n_train": 0, "n_test": 30, "size": (1600, 1200), "most": 90, "sides": (0.023, 0.4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("data", nargs="?", help="default: drawn scenes")
    parser.add_argument("--tiles", type=int, default=0, help="side of the tiles (default: the network's input size)")
    parser.add_argument("--min-score", type=float, nargs="+", default=[0.5, 0.2, 0.05])
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder, one_thread():
        data = arguments.data or write_shapes(Path(folder) / "scenes", **SCENES)
        print("| min_score | contender | mAP@0.5 | mAP@0.75 | s per picture | ratio |\n|---|---|---|---|---|---|")
        for min_score in arguments.min_score:
            compare(arguments.weights, str(data), arguments.tiles, min_score)


def compare(weights: str, data: str, side: int, min_score: float) -> None:
    tiled = ssd.Detector.load(weights, device="cpu", min_score=min_score, tiles=side)
    whole = ssd.Detector.load(weights, device="cpu", min_score=min_score)
    dataset = open_dataset(data, "test", tiled.classes)
    contenders: dict[str, Contender] = {"ssd": columns(tiled), "ssd without tiles": columns(whole)}
    contenders |= sahi_contenders(whole, int(tiled.tiles or 0), min_score)
    found: dict[str, list[Found]] = {name: [] for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(len(dataset)):
        image = dataset.picture(i).pixels().permute(1, 2, 0).numpy()
        for name, detect in contenders.items():
            started = time.perf_counter()
            found[name].append(detect(image))
            seconds[name].append(time.perf_counter() - started)
    for name in contenders:
        ap50, ap75 = (score(found[name], dataset.truths, dataset.classes, iou).mAP for iou in (0.5, 0.75))
        ratio = median(its / ours for its, ours in zip(seconds[name], seconds["ssd"], strict=True))
        print(f"| {min_score} | {name} | {ap50:.3f} | {ap75:.3f} | {median(seconds[name]):.2f} | {ratio:.2f} |")
        sys.stdout.flush()


def columns(detector: ssd.Detector) -> Contender:
    def detect(image: np.ndarray) -> Found:
        found = detector(image)
        return Found(found.boxes, found.labels, found.scores)

    return detect


def sahi_contenders(detector: ssd.Detector, side: int, min_score: float) -> dict[str, Contender]:
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    from sahi.predict import get_sliced_prediction
    from sahi_detect import SsdModel

    model = SsdModel(model=detector, confidence_threshold=min_score)

    def contender(**options: object) -> Contender:
        def detect(image: np.ndarray) -> Found:
            given = {"slice_height": side, "slice_width": side, "batch_size": 8, "verbose": 0, **options}
            objects = get_sliced_prediction(np.ascontiguousarray(image), model, **given).object_prediction_list
            objects.sort(key=lambda each: -each.score.value)
            boxes = torch.tensor([each.bbox.to_xyxy() for each in objects], dtype=torch.float32).reshape(-1, 4)
            labels = torch.tensor([each.category.id + 1 for each in objects], dtype=torch.int64)
            return Found(boxes, labels, torch.tensor([float(each.score.value) for each in objects]))

        return detect

    return {
        "SAHI (GREEDYNMM, IOS)": contender(),
        "SAHI (NMS, IOS)": contender(postprocess_type="NMS", force_postprocess_type=True),
    }


if __name__ == "__main__":
    main()
