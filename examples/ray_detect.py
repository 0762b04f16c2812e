"""Finds objects in a folder of pictures with Ray: on this machine, or on a cluster whose machines share the folder.

pip install "ssd-ext[ray]"
python examples/ray_detect.py photos/ run/best.pt found/        # writes Parquet files with one row per object
"""

import sys
from pathlib import Path

import numpy as np
import ray

from ssd import Detector


class Detect:
    """A detector, loaded once per worker."""

    def __init__(self, weights: str) -> None:
        self.detector = Detector.load(weights)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.detector(batch["path"].tolist())
        boxes, labels, scores = (np.concatenate([getattr(f, n) for f in found]) for n in ("boxes", "labels", "scores"))
        paths = np.repeat(batch["path"], [len(f.labels) for f in found])
        corners = dict(zip(("x0", "y0", "x1", "y1"), boxes.T, strict=True))
        return {"path": paths, "name": np.array(self.detector.classes)[labels - 1], "score": scores, **corners}


def detect(folder: str, weights: str, workers: int = 2, gpus: float = 0) -> "ray.data.Dataset":
    """The objects in all pictures; each of `workers` processes uses the fraction `gpus` of a GPU."""
    pictures = ray.data.from_items([{"path": str(path.resolve())} for path in sorted(Path(folder).iterdir())])
    weights = str(Path(weights).resolve())
    return pictures.map_batches(Detect, fn_constructor_args=[weights], batch_size=8, concurrency=workers, num_gpus=gpus)


if __name__ == "__main__":
    detect(*sys.argv[1:3]).write_parquet(sys.argv[3])
