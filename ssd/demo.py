"""`ssd demo`: the whole path on drawn shapes: write pictures, train, evaluate, draw. No network, no download."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ssd.data import open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.detector import Detector
from ssd.draw import draw_detections, save_png, side_by_side
from ssd.evaluate import EvalResult, evaluate
from ssd.precision import pick_device
from ssd.shapes import write_shapes
from ssd.train import BEST, Settings, train
from ssd.weights import load_weights
from ssd_ext import DetectionOptions, LossOptions

N_TRAIN, N_TEST = 400, 100
N_DRAWN = 12
DRAWN = DetectionOptions(min_score=0.5)
CPU_WIDTH = 0.25
SETTINGS = {
    "split": "train",
    "val_split": "test",
    "batch_norm": True,
    "epochs": 10,
    "lr": 1e-2,
    "clip_grad": 5.0,
    "schedule": "onecycle",
    "loss": LossOptions(loc_loss="smooth_l1"),
    "eval_every": 5,
}


def demo(
    out: str | os.PathLike[str] = "demo",
    *,
    device: str | None = None,
    workers: int | None = None,
    **settings: Any,
) -> EvalResult:
    """Trains and tests a detector on drawn circles, squares and triangles, through the ordinary training path.

    Args:
        out: folder for the pictures (`shapes`), the run (`run_<n>`) and the drawings of held-out pictures (`held_out`).
        device, workers: see `ssd.train.train`.
        settings: fields of `Settings` other than in `SETTINGS`; width is by default 0.25 on a CPU and 1 on a GPU.

    Returns:
        The evaluation on the held-out pictures.
    """
    started = time.perf_counter()
    out = Path(out)
    data = out / "shapes"
    if not data.exists():
        write_shapes(data, N_TRAIN, N_TEST)
    run = next(folder for n in range(1, 10_000) if not (folder := out / f"run_{n}").exists())
    width = CPU_WIDTH if pick_device(device).type == "cpu" else 1.0
    chosen = Settings((str(data),), **{"width": width, **SETTINGS, **settings})
    train(chosen, run, device=device, workers=workers)

    model, classes = load_weights(run / BEST, device=device)
    test_set = open_dataset(data, "test", classes, EvalTransform())
    result = evaluate(model, test_set, classes, bf16=chosen.bf16, workers=workers)
    print(result)

    folder = out / "held_out"
    folder.mkdir(exist_ok=True)
    held_out = open_dataset(data, "test", classes)
    detector = Detector(model, classes, DRAWN, bf16=chosen.bf16)
    for index, found in enumerate(detector(held_out.pictures[:N_DRAWN])):
        image, truth = held_out[index]
        right = draw_detections(image, truth["boxes"], truth["labels"], classes=classes)
        save_png(side_by_side(found.draw(), right, ("found", "truth")), folder / f"{found.picture.path.stem}.png")
    minutes = (time.perf_counter() - started) / 60
    print(
        f"mAP {result.mAP:.3f} after {minutes:.1f} minutes. Look at {folder}/*.png (found beside truth) "
        f"and {run / 'curve.png'}.\n"
        f"Detect elsewhere: ssd detect {data / 'JPEGImages'} --weights {run / BEST} --out {out / 'found'}"
    )
    return result
