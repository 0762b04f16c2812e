"""Trains a detector, and logs its losses, mAP and files to MLflow.

pip install mlflow
python examples/mlflow_run.py my_pictures run        # then: mlflow ui
"""

import json
import math
import re
import sys
from pathlib import Path

import mlflow

from ssd.training.records import METRICS, Step, Validation
from ssd.training.run import train
from ssd.training.settings import Settings


def on_step(step: Step) -> None:
    mlflow.log_metrics({"loss": step.loss, "lr": step.lr, "epoch": step.epoch}, step=step.step)


def on_eval(validation: Validation) -> None:
    names = {name: re.sub(r"[^\w./ :-]", "_", name) for name in validation.ap}  # MLflow allows no other characters
    values = {"mAP": validation.mAP, **{f"AP/{names[name]}": ap for name, ap in validation.ap.items()}}
    mlflow.log_metrics({name: ap for name, ap in values.items() if math.isfinite(ap)}, step=validation.step)


def main(data: str, out: str, **settings: object) -> None:
    """Trains on a folder of pictures. `settings` are fields of `Settings`, such as epochs."""
    with mlflow.start_run(run_name=Path(out).name):
        train(Settings((data,), **settings), out, resume="auto", on_step=on_step, on_eval=on_eval)
        results = json.loads((Path(out) / METRICS).read_text())
        mlflow.log_params({name: results[name] for name in ("network", "size", "epochs", "pictures_seen")})
        mlflow.log_artifacts(out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
