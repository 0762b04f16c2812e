"""`ssd detect` in this process: weights and pictures for it, and what it leaves in a folder."""

import torch
from PIL import Image

from ssd.cli import main
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint


def detect(*arguments, weights, out):
    return main(["detect", *map(str, arguments), "--weights", str(weights), "--out", str(out), "--device", "cpu"])


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_untrained(path):
    """A network that never trained: its scores are all near 1 / 4, so it finds plenty."""
    torch.manual_seed(0)
    model = SSD300(4, width=0.01)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("pred_convs"):
                p.mul_(0.01)
    save_checkpoint(path, model, classes=["circle", "square", "triangle"])
    return path


def write_spread(path, width=0.01):
    """A network that never trained, with scores that spread from 0 to 1."""
    torch.manual_seed(0)
    save_checkpoint(path, SSD300(4, width=width), classes=["circle", "square", "triangle"])
    return path


def write_photos(root, shapes):
    """A folder of pictures that belong to somebody, and a link to it."""
    folder = root / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name, picture in zip(
        ("a.png", "b.jpg", "deeper/c.PNG"), sorted((shapes / "JPEGImages").iterdir()), strict=False
    ):
        with Image.open(picture) as image:
            image.save(folder / name)
    (root / "link").symlink_to(folder)
    return folder
