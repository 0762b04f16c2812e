"""`ssd demo`: the whole path on drawn shapes: write pictures, train, evaluate, draw. No network, no download."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ssd.data import open_dataset
from ssd.data.shapes import write_shapes
from ssd.drawing import draw_detections, save_png, side_by_side
from ssd.inference.detector import Detector
from ssd.runtime.device import pick_device
from ssd.training.run import BEST, train
from ssd.training.settings import Settings
from ssd_ext import DetectionOptions

N_TRAIN, N_TEST = 400, 100
N_DRAWN = 12
DRAWN = DetectionOptions(min_score=0.5)
CPU_WIDTH = 0.25
SETTINGS = {"epochs": 10, "eval_every": 5}


def demo(
    out: str | os.PathLike[str] = "demo",
    *,
    device: str | None = None,
    workers: int | None = None,
    **settings: Any,
) -> float:
    """Trains and tests a detector on drawn circles, squares and triangles, through the ordinary training path.

    Args:
        out: folder for the pictures (`shapes`), the run (`run_<n>`) and the drawings of held-out pictures (`held_out`).
        device, workers: see `ssd.training.run.train`.
        settings: fields of `Settings` other than in `SETTINGS`; width is by default 0.25 on a CPU and 1 on a GPU.

    Returns:
        The mAP on the held-out pictures.
    """
    started = time.perf_counter()
    out = Path(out)
    data = out / "shapes"
    if not data.exists():
        write_shapes(data, N_TRAIN, N_TEST)
    run = next(folder for n in range(1, 10_000) if not (folder := out / f"run_{n}").exists())
    width = CPU_WIDTH if pick_device(device).type == "cpu" else 1.0
    chosen = Settings((str(data),), **{"width": width, **SETTINGS, **settings})
    (mean,) = train(chosen, run, device=device, workers=workers)["test_mAP"]

    folder = out / "held_out"
    folder.mkdir(exist_ok=True)
    detector = Detector.load(run / BEST, defaults=DRAWN, device=device, bf16=chosen.bf16)
    held_out = open_dataset(data, "test", detector.classes)
    for index, found in enumerate(detector(held_out.pictures[:N_DRAWN])):
        image, truth = held_out[index]
        right = draw_detections(image, truth["boxes"], truth["labels"], classes=detector.classes)
        save_png(side_by_side(found.draw(), right, ("found", "truth")), folder / f"{found.picture.path.stem}.png")
    minutes = (time.perf_counter() - started) / 60
    print(
        f"mAP {mean:.3f} after {minutes:.1f} minutes. Look at {folder}/*.png (found beside truth) "
        f"and {run / 'curve.png'}.\n"
        f"Detect elsewhere: ssd detect {data / 'JPEGImages'} --weights {run / BEST} --out {out / 'found'}"
    )
    return mean
