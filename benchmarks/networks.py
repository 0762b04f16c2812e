"""Prints a table of the networks: their size, and how fast they train and detect on this machine.

    python benchmarks/networks.py [NAME[@SIZE] ...] [--images 8] [--seconds 10] [--device cpu] [--return-memory]

Each network has random weights, batch norm in its heads and 21 classes. "training": whole steps as in `ssd train`, from
pictures in memory. "detection": from pictures in memory to detections, as in `ssd detect`, with random weights whose
heads predict mostly background. Both are medians, in pictures per second. As in the commands, the process keeps the
memory that it frees (`ssd.runtime.memory`), unless --return-memory is given. GMAC: the multiplications of the layers
for one picture.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from inputs import objects
from report import markdown, number
from test_bench_network import BACKGROUND, CLASSES
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssd.data.loader import Batch
from ssd.inference.prediction import predict_padded
from ssd.loss import MultiBoxLoss
from ssd.networks import Network, build_network, network_class
from ssd.runtime.device import pick_device, place
from ssd.runtime.memory import keep_freed_memory
from ssd.training.optimizer import make_optimizer
from ssd.training.settings import Settings
from ssd.training.step import train_step

NETWORKS = ("ssdlite320", "ssdlite@512", "resnet34", "resnet50", "timm:mobilenetv3_large_100", "ssd300", "ssd512")


def build(name: str) -> Network:
    """The network, with batch norm as for training from random weights. "NAME@SIZE" has this size."""
    name, _, size = name.partition("@")
    options = network_class(name).options()
    norms = {option: True for option in ("batch_norm", "head_batch_norm") if option in options}
    return build_network(name, CLASSES, **norms, **({"size": int(size)} if size else {}))


def mostly_background(model: Network) -> Network:
    """Makes background the likeliest class of nearly every prior, as after training."""
    n_priors = model.prior_spec.boxes_per_cell
    outputs = {n * CLASSES for n in n_priors}
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.num_features in outputs):
        norm.bias.data.view(-1, CLASSES)[:, 0] = BACKGROUND
    return model


def rate(step: Callable[[], object], images: int, seconds: float, device: torch.device) -> float:
    """Median number of pictures per second."""

    def timed() -> float:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(timed())
    return images / statistics.median(times)


def training(name: str, images: int, seconds: float, device: torch.device) -> float:
    model = place(build(name), device).train()
    settings = Settings(("none",), network=name.partition("@")[0], lr=1e-30)  # the weights stay as they are
    optimizer, criterion = make_optimizer(model, settings), MultiBoxLoss(model.priors_cxcy).to(device)
    truth = objects(images, CLASSES, 1, 8)
    pixels = torch.randint(0, 256, (images, 3, model.input_size, model.input_size), dtype=torch.uint8)
    batch = Batch(pixels, None, truth.boxes, truth.labels, truth.labels < 0, truth.row_splits)
    return rate(lambda: train_step(model, criterion, optimizer, batch, settings, 1.0, device), images, seconds, device)


def detection(name: str, images: int, seconds: float, device: torch.device) -> float:
    model = place(mostly_background(build(name)).fuse(), device)
    pixels = torch.randint(0, 256, (images, 3, model.input_size, model.input_size), dtype=torch.uint8)

    def step() -> None:
        with torch.inference_mode():
            predict_padded(model, pixels)

    return rate(step, images, seconds, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NAME[@SIZE]")
    parser.add_argument("--images", type=int, default=8, help="pictures of a batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement (default: %(default)s)")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--return-memory", action="store_true", help="return freed memory to the system")
    args = parser.parse_args()
    if not args.return_memory:
        keep_freed_memory()
    device = pick_device(args.device)
    rows = []
    for name in args.networks:
        with torch.device("meta"):
            model = build(name).eval()
            picture = torch.empty(1, 3, model.input_size, model.input_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(picture)
        sizes = counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters()) / 1e6
        speeds = [measure(name, args.images, args.seconds, device) for measure in (training, detection)]
        rows.append(
            [name, str(model.input_size), *map(number, sizes), str(len(model.priors_cxcy)), *map(number, speeds)]
        )
        print(rows[-1], flush=True)
    print(markdown(["network", "pixels", "GMAC", "million parameters", "priors", "training", "detection"], rows))


if __name__ == "__main__":
    main()
