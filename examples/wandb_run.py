"""Trains a detector, and logs its losses, mAP and report to Weights & Biases.

pip install wandb
python examples/wandb_run.py my_pictures run        # without an account: WANDB_MODE=offline
"""

import json
import sys
from pathlib import Path

import wandb

from ssd.training.records import METRICS, Step, Validation
from ssd.training.run import train
from ssd.training.settings import Settings


def main(data: str, out: str, **settings: object) -> None:
    """Trains on a folder of pictures. `settings` are fields of `Settings`, such as epochs."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with wandb.init(project="ssd", name=Path(out).name, dir=out) as run:
        run.define_metric("*", step_metric="step")  # a validation comes after its step was logged

        def on_step(step: Step) -> None:
            run.log(step._asdict())

        def on_eval(validation: Validation) -> None:
            aps = {f"AP/{name}": ap for name, ap in validation.ap.items()}
            run.log({"step": validation.step, "mAP": validation.mAP, **aps})

        train(Settings((data,), **settings), out, resume="auto", on_step=on_step, on_eval=on_eval)
        results = json.loads((Path(out) / METRICS).read_text())
        run.config.update({name: results[name] for name in ("network", "size", "epochs", "settings")})
        run.summary.update({name: results[name] for name in ("best_mAP", "test_mAP")})
        if (report := Path(out) / "report.html").exists():  # not if nothing was held out
            run.log({"report": wandb.Html(str(report))})


if __name__ == "__main__":
    main(*sys.argv[1:3])
