"""`ssd demo`: the whole path on drawn shapes: write pictures, train, evaluate, draw. No network, no download."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from ssd.checkpoint import load_model
from ssd.data import VOCDataset, read_image
from ssd.detect import predict
from ssd.draw import draw_detections, save_png, side_by_side
from ssd.evaluate import EvalResult, evaluate
from ssd.precision import pick_device
from ssd.shapes import write_shapes
from ssd.train import Settings, train
from ssd.transforms import eval_transform

N_TRAIN, N_TEST = 400, 100
N_DRAWN = 12
MIN_SCORE = 0.5  # of the detections drawn


def demo(
    out: str | os.PathLike[str] = "demo",
    *,
    epochs: int | None = None,
    width: float | None = None,
    device: str | None = None,
    workers: int | None = None,
    bf16: bool | None = None,
) -> EvalResult:
    """Trains and tests a detector on drawn circles, squares and triangles, through the ordinary training path.

    Args:
        out: folder for the pictures (`shapes`), the run (`run_<n>`) and the drawings of held-out pictures (`held_out`).
        epochs: passes over the 400 training pictures; by default 10.
        width: factor on all channels; by default 0.25 on a CPU and 1 on a GPU.
        device, workers, bf16: see `ssd.train.train` and `ssd.train.Settings`.

    Returns:
        The evaluation on the held-out pictures.
    """
    started = time.perf_counter()
    out = Path(out)
    on_cpu = pick_device(device).type == "cpu"
    data = out / "shapes"
    if not data.exists():
        write_shapes(data, N_TRAIN, N_TEST)
    run = next(folder for n in range(1, 10_000) if not (folder := out / f"run_{n}").exists())
    settings = Settings(
        data=(str(data),),
        split="train",
        val_split="test",
        width=width or (0.25 if on_cpu else 1.0),
        batch_norm=True,
        epochs=epochs or 10,
        lr=1e-2,
        clip_grad=5.0,
        schedule="onecycle",
        loc_loss="smooth_l1",
        eval_every=5,
        bf16=bf16,
    )
    train(settings, run, device=device, workers=workers)

    model, classes = load_model(run / "best.pt", device)
    held_out = VOCDataset(data, "test", classes)
    result = evaluate(model, VOCDataset(data, "test", classes, eval_transform()), classes, bf16=bf16, workers=workers)
    print(result)

    folder = out / "held_out"
    folder.mkdir(exist_ok=True)
    prepare = eval_transform()
    for index in range(min(N_DRAWN, len(held_out))):
        path = held_out.pictures[index]
        image, truth = read_image(path), held_out[index][1]
        height, width_px = image.shape[-2:]
        (found,) = predict(model, prepare(image)[None], min_score=MIN_SCORE, bf16=bf16)
        left = draw_detections(image, *found, classes=classes)
        fractions = truth["boxes"].as_subclass(torch.Tensor) / torch.tensor([width_px, height] * 2)
        right = draw_detections(image, fractions, truth["labels"], classes=classes)
        save_png(side_by_side(left, right, ("found", "truth")), folder / f"{path.stem}.png")
    minutes = (time.perf_counter() - started) / 60
    print(
        f"mAP {result.mAP:.3f} after {minutes:.1f} minutes. Look at {folder}/*.png (found beside truth) "
        f"and {run / 'curve.png'}.\n"
        f"Detect elsewhere: ssd detect {data / 'JPEGImages'} --weights {run / 'best.pt'} --out {out / 'found'}"
    )
    return result
