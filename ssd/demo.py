"""The demonstration `ssd demo`: writes pictures of shapes, trains a detector, evaluates it and draws its detections.

It needs no network connection.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ssd.data import open_dataset
from ssd.data.shapes import write_shapes
from ssd.drawing import draw_detections, save_png, side_by_side
from ssd.inference.detector import Detector
from ssd.runtime.device import one_thread, pick_device
from ssd.runtime.files import check_writable
from ssd.training.resuming import BEST
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.training.summary import REPORT
from ssd_ext import DetectionOptions

N_TRAIN, N_TEST = 400, 100
N_DRAWN = 12
DRAWN = DetectionOptions(min_score=0.5)
# Fields of Settings; each value has the type of its field.
SETTINGS: dict[str, Any] = {"epochs": 15, "eval_every": 5}
ON_CPU: dict[str, Any] = {"network": "ssdlite", "size": 224, "width": 0.35, "mosaic": 0.0}  # mosaics take longer


def demo(
    out: str | os.PathLike[str] = "demo",
    *,
    device: str | None = None,
    workers: int | None = None,
    **settings: Any,  # each value has the type of its field in Settings
) -> float:
    """Trains and tests a detector on drawn circles, squares and triangles, with the same code as `ssd train`.

    Args:
        out: folder for the pictures (`shapes`), the run (`run_<n>`) and the drawings of test pictures (`held_out`).
        device, workers: see `ssd.training.run.train`.
        settings: fields of `Settings`. By default 15 epochs with validation every 5. On a CPU the network is `ssdlite`
            of width 0.35 at 224 pixels, and on a GPU the default of `ssd train`.

    Returns:
        The mAP on the test pictures, in 0..1.
    """
    started = time.perf_counter()
    folder = Path(out)
    check_writable(folder)
    data = folder / "shapes"
    if not data.exists():
        write_shapes(data, N_TRAIN, N_TEST)
    run = next(free for n in range(1, 10_000) if not (free := folder / f"run_{n}").exists())
    on_cpu = pick_device(device).type == "cpu"
    chosen = Settings((str(data),), **{**(ON_CPU if on_cpu else {}), **SETTINGS, **settings})
    # The network is so small that threads would mostly wait for each other: on two idle cores, of which the processes
    # that read the pictures take a part, two threads are no faster, and beside two busy processes a third as fast.
    with one_thread() if on_cpu else nullcontext():
        (mean,) = train(chosen, run, device=device, workers=workers)["test_mAP"]

    drawings = folder / "held_out"
    drawings.mkdir(exist_ok=True)
    detector = Detector.load(run / BEST, defaults=DRAWN, device=device, bf16=chosen.bf16)
    held_out = open_dataset(data, "test", detector.classes)
    paths = held_out.pictures[:N_DRAWN]
    for index, (path, found) in enumerate(zip(paths, detector(paths), strict=True)):
        image, truth = held_out[index]
        right = draw_detections(image, truth["boxes"], truth["labels"], classes=detector.classes)
        save_png(side_by_side(found.draw(), right, ("found", "truth")), drawings / f"{path.stem}.png")
    minutes = (time.perf_counter() - started) / 60
    print(
        f"mAP {mean:.3f} after {minutes:.1f} minutes. Look at {drawings}/*.png (found beside truth) "
        f"and {run / REPORT}.\n"
        f"Detect objects in other pictures: "
        f"ssd detect {data / 'JPEGImages'} --weights {run / BEST} --out {folder / 'found'}"
    )
    return mean
