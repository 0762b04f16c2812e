"""Trains from random weights with different settings, and with torchvision's network, loss and augmentation.

    python benchmarks/recipes.py BCCD                                   settings of `ssd train`, and torchvision
    python benchmarks/recipes.py BCCD --runs "lr=0.01" "augment=ssd priors=tutorial"
    python benchmarks/recipes.py BCCD --runs "network=ssdlite320" "torchvision network=ssdlite320"

"torchvision" stands for its SSD300 with batch norm, or for its SSDlite320. Runs of one seed see the same pictures;
`--jobs` runs work at the same time. The mAP is measured at the end of each run, on the test pictures, which the run
uses for nothing else; with "held_out=SHARE" among its changes, on the pictures that it holds out. Each result is
appended to results.jsonl in --out as one JSON line, and a run whose result is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ssd.data import v2_transform
from ssd.data.loader import eval_loader, steps_per_epoch, train_loader, worker_count
from ssd.evaluation.evaluate import evaluate
from ssd.evaluation.voc import average_precision
from ssd.networks import DEFAULT
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD
from ssd.networks.ssdlite import SSDLite320
from ssd.runtime.device import autocast, pick_device
from ssd.training.optimizer import lr_factor
from ssd.training.recipes import epochs_for
from ssd.training.resuming import BEST, LAST, load_run
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.training.splits import Sets, open_sets, whole_of
from ssd.weights.loading import load_weights

TORCHVISION = "torchvision"
# torchvision's references train SSDlite with another weight decay and less augmentation than SSD300: without changes of
# colour and without zooming out, which are the first two transforms.
SSDLITE_WEIGHT_DECAY, SSD300_TRANSFORMS = 4e-5, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set with a test list")
    parser.add_argument(
        "--runs",
        nargs="*",
        default=["", TORCHVISION],
        metavar="CHANGES",
        help="one run for each text: NAME=VALUE of changed settings, after 'torchvision' for its network "
        "(default: two runs without changes, '' and 'torchvision')",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each run (default: 0 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="loader processes of each run (default: as in ssd train)")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("build/recipes"), help="folder (default: %(default)s)")
    parser.add_argument("--one", nargs=2, metavar=("CHANGES", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    if arguments.one:
        result = run(arguments, arguments.one[0], int(arguments.one[1]))
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        return

    done = {(row["changes"], row["seed"]) for row in read(results)}
    wanted = [(changes, seed) for changes in arguments.runs for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        commands = [[sys.executable, *sys.argv, "--one", changes, str(seed)] for changes, seed in wanted]
        commands = [command for command, key in zip(commands, wanted, strict=True) if key not in done]
        for command, code in zip(commands, pool.map(subprocess.call, commands), strict=True):
            if code:
                print(f"failed: {command[-2:]}", file=sys.stderr)
    print(table(read(results)))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with mean and range over the seeds, best first."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["changes"]].append(row)
    lines = [
        "| changes | runs | mAP of last.pt | range | mAP of best.pt | AP of each class | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for changes, of in sorted(groups.items(), key=lambda item: -mean(row["mAP"] for row in item[1])):
        maps = [row["mAP"] for row in of]
        classes = ", ".join(f"{name} {mean(row['ap'][name] for row in of):.3f}" for name in of[0]["ap"])
        best = f"{mean(row['best_mAP'] for row in of):.3f}" if of[0]["best_mAP"] is not None else "-"
        seconds = mean(row["seconds"] for row in of)
        cells = changes or "none", len(of), f"{mean(maps):.3f}", f"{min(maps):.3f}-{max(maps):.3f}", best, classes
        lines.append(f"| {' | '.join(map(str, cells))} | {seconds:.0f} |")
    return "\n".join(lines)


def run(arguments: argparse.Namespace, changes: str, seed: int) -> dict[str, Any]:
    started, device, best = time.perf_counter(), pick_device(arguments.device), None
    if changes.startswith(TORCHVISION):
        settings = settings_of(arguments.data, changes.removeprefix(TORCHVISION), seed, {"augment": "v2", "lr": 0.01})
        if settings.network == SSDLite320.name:
            settings = replace(settings, weight_decay=SSDLITE_WEIGHT_DECAY)
        result = train_torchvision(settings, device, arguments.workers, measured(changes))
    else:
        settings = settings_of(arguments.data, changes, seed)
        out = arguments.out / f"{changes.replace('/', '_') or 'default'} {seed}"
        train(settings, out, device=arguments.device, workers=arguments.workers, quiet=True)
        settings = Settings.from_dict(load_run(out / LAST)["settings"])  # now with network, size ...
        test = getattr(open_sets(settings), measured(changes))
        scores = []
        for name in (LAST, BEST):
            model, classes = load_weights(out / name, device=arguments.device)
            scores.append(evaluate(model, test, classes, bf16=settings.bf16, workers=0, quiet=True))
        result, best = scores[0], scores[1].mAP
    seconds = time.perf_counter() - started
    return {
        "changes": changes, "seed": seed, "mAP": result.mAP, "ap": result.ap, "best_mAP": best, "seconds": seconds
    }  # fmt: skip


def measured(changes: str) -> str:
    """The field of `Sets` with the pictures on which a run is measured."""
    return "val" if "held_out=" in changes else "test"


def settings_of(data: str, changes: str, seed: int, base: dict[str, Any] | None = None) -> Settings:
    """The settings from a text such as "lr=0.01 augment=ssd loss.matching=bipartite"; `base` has other defaults."""
    values: dict[str, Any] = dict(base or {})
    known = {field.name for field in fields(Settings)}
    for change in changes.split():
        name, _, text = change.partition("=")
        try:
            value = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            value = text
        if name.startswith("loss."):
            values.setdefault("loss", {})[name.removeprefix("loss.")] = value
        elif name in known:
            values[name] = value
        else:
            raise ValueError(f"{name} is not a setting")
    if not values.keys() & {"network", "weights"}:
        values["network"] = DEFAULT
    return Settings((data,), seed=seed, **values)


# ------------------------------------------------------------------------------------------------------ torchvision


def torchvision_network(name: str | None, n_classes: int, size: int) -> nn.Module:
    """torchvision's SSDlite320, or its SSD300 with a VGG16 with batch norm, from random weights."""
    if name == SSDLite320.name:
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=n_classes)
    from torchvision.models import vgg16_bn
    from torchvision.models.detection.ssd import SSD, DefaultBoxGenerator, _vgg_extractor

    backbone = _vgg_extractor(vgg16_bn(weights=None), False, 5)
    anchors = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    mean, std = [0.48235, 0.45882, 0.40784], [1 / 255] * 3  # as in its ssd300_vgg16
    return SSD(backbone, anchors, (size, size), n_classes, image_mean=mean, image_std=std)


def train_torchvision(settings: Settings, device: torch.device, workers: int | None, test: str = "test") -> Any:
    """Trains like torchvision's references, except for the learning rate schedule, on the pictures of `ssd train`."""
    sets: Sets = open_sets(settings)
    torch.manual_seed(settings.seed)
    size = settings.input_size
    if settings.network == SSDLite320.name:
        dataset, _ = whole_of(sets.train)
        dataset.transform = v2.Compose(v2_transform(size).transforms[SSD300_TRANSFORMS:])
    model = torchvision_network(settings.network, len(sets.classes) + 1, size)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    epochs = settings.epochs or epochs_for(settings.recipe, settings.network, len(sets.train))
    total = epochs * steps_per_epoch(len(sets.train), settings.batch_size)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    loader = train_loader(sets.train, settings.batch_size, settings.seed, range(total), worker_count(workers))
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, total, "onecycle", 0)
        batch = batch.to(device)
        images = batch.images * std + mean  # like the output of its own transforms
        targets = [{"boxes": t["boxes"] * size, "labels": t["labels"]} for t in batch.targets()]
        with autocast(device, settings.bf16):
            losses = model(list(images), targets)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        if settings.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()

    model.eval()
    detections: list[tuple[Tensor, Tensor, Tensor]] = []
    targets = []
    for batch in eval_loader(getattr(sets, test), settings.batch_size, 0):
        with torch.inference_mode(), autocast(device, settings.bf16):
            found = model(list(batch.images.to(device) / 255))
        detections += [((f["boxes"] / size).cpu(), f["labels"].cpu(), f["scores"].float().cpu()) for f in found]
        targets += batch.targets()
    return average_precision(detections, targets, sets.classes)


if __name__ == "__main__":
    main()
