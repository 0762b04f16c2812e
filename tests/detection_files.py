"""Data in COCO layout, and detections for it as COCO and `ssd detect` write them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from ssd.data.reading import PictureFile
from ssd.inference.detections import Detections
from ssd.inference.results import as_line, coco_results

IDS = {"a": 30, "b": 10, "c": 20}
TRUTHS = {"a": [(7, [0, 0, 20, 20])], "b": [(2, [5, 5, 30, 10]), (7, [30, 20, 25, 15])], "c": []}


def write_coco(root: Path) -> Path:
    """Three pictures with cats and dogs in COCO's JSON."""
    root.mkdir()
    for name in IDS:
        Image.new("RGB", (60, 40)).save(root / f"{name}.png")
    rows = [{"image_id": IDS[name], "category_id": c, "bbox": box} for name, its in TRUTHS.items() for c, box in its]
    content = {
        "images": [{"id": image_id, "file_name": f"{name}.png"} for name, image_id in IDS.items()],
        "annotations": rows,
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    (root / "truth.json").write_text(json.dumps(content))
    return root


def results() -> list[dict]:
    """A list as COCO has it: all objects but that of the picture a."""
    rows = [(IDS[name], c, box) for name, its in TRUTHS.items() for c, box in its if name != "a"]
    return [{"image_id": i, "category_id": c, "bbox": box, "score": 0.5} for i, c, box in rows]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_own(out: Path, pictures: list[Path]) -> Path:
    """What `ssd detect` writes of them, by a detector of dogs, cows and cats that finds all but the dog of a."""
    classes = ("dog", "cow", "cat")
    with coco_results(out, classes) as file:
        for path in pictures:
            rows = [row for row in TRUTHS.get(path.stem, []) if path.stem != "a"]
            boxes = torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h) in rows], dtype=torch.float32)
            labels = torch.tensor([{7: 1, 2: 3}[c] for c, _ in rows], dtype=torch.int64)
            scores = torch.full((len(rows),), 0.5)
            file.add(as_line(Detections(PictureFile(path), boxes.reshape(-1, 4), labels, scores, classes)))
    return out / "detections.json"
