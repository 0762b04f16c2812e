"""Profiles a step of this project and of torchvision: parts, kernels or operators, calls into the driver.

    python benchmarks/training_step.py [--what training] [--images 8] [--classes 21] [--bf16] [--device cpu]
    python benchmarks/training_step.py --data FOLDER [--images 8] [--steps 50] [--width 1] [--workers 4]

--what is "training" (a whole step of `ssd train`), "inference", "loss" (with gradients) or "detection" (of predictions
like those of a trained network), the same work as in the benchmarks. For a training step, the network (forward and
backward) and the optimizer are also timed alone; the rest of the step is the loss, copies and Python.

With --data, trains on the pictures of a folder like `ssd train`, with each of its augmentations. Prints pictures per
second, and the share of the time in which the network waits for pictures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import test_bench_network as network
import torch
from harness import OURS, copied
from test_bench_detection import detection
from test_bench_loss import loss_case
from torch.profiler import profile
from torch.utils.benchmark import Timer

from ssd.data import AUGMENTATIONS, open_dataset
from ssd.data.loader import train_loader, worker_count
from ssd.loss import MultiBoxLoss
from ssd.networks.ssd300 import SSD300
from ssd.runtime.device import pick_device, place
from ssd.training.optimizer import make_optimizer
from ssd.training.run import LOG_EVERY, train_step
from ssd.training.settings import Settings

WARM_UP = LOG_EVERY  # steps

CASES = {
    "training": network.training_step,
    "inference": network.inference,
    "loss": partial(loss_case, backward=True),
    "detection": partial(detection, "trained"),
}


def milliseconds(step: Callable, steps: int) -> float:
    """The mean time of one call; the timer waits for the device."""
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.timeit(steps).mean  # warms up first


def parts(name: str, inputs: network.Images, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of the network alone, with ones as the gradients of its outputs, and of the optimizer."""
    how = network.How(args.device, args.bf16, training=True, classes=args.classes)
    net, optimizer = network.networks(how)[name], network.optimizers(how)[name]
    images = place(inputs.normalized, args.device) if name == OURS else inputs.normalized  # as train_step does

    def forward_and_backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = network.raw_predictions(net, images, bf16=args.bf16)
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    steps = {"network": forward_and_backward, "optimizer": optimizer.step}
    return {part: milliseconds(step, args.steps) for part, step in steps.items()}


def profiled(step: Callable, steps: int, device: torch.device) -> str:
    """The calls into the driver per step, and torch's table of the operators or kernels that take most time."""
    with profile() as profiler:
        for _ in range(steps):
            step()
    events = profiler.key_averages()
    calls = (f"{e.count / steps:g} {e.key}" for e in events if e.key.startswith(("cuda", "cuLaunch")))
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return ", ".join(calls) + "\n" + events.table(sort_by=by, row_limit=10, max_name_column_width=60)


def from_disk(args: argparse.Namespace) -> None:
    """Trains on the pictures of a folder with each augmentation, and prints the speed."""
    for augment, transform in AUGMENTATIONS.items():
        data = open_dataset(args.data, transform=transform(SSD300.input_size))
        torch.manual_seed(0)
        model = place(SSD300(len(data.classes) + 1, width=args.width, batch_norm=True), args.device).train()
        criterion = MultiBoxLoss(model.priors_cxcy)
        settings = Settings((args.data,), network="ssd300", bf16=args.bf16 or None)
        optimizer = make_optimizer(model, settings)
        workers = worker_count(args.workers)
        batches = train_loader(data, args.images, 0, range(WARM_UP + args.steps), workers)
        asked = started = time.perf_counter()
        waited = 0.0
        for step, batch in enumerate(batches, 1):
            waited += time.perf_counter() - asked
            loss = train_step(model, criterion, optimizer, batch, settings, 1e-3, args.device)
            if step % LOG_EVERY == 0 or step == len(batches):
                loss.item()  # waits for the device
            asked = time.perf_counter()
            if step == WARM_UP:
                started, waited = asked, 0.0
        seconds = asked - started
        rate, share = args.images * args.steps / seconds, waited / seconds
        print(f"--augment {augment}: {rate:.1f} pictures/s with {workers} workers, {share:.0%} of the time waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=CASES, default="training", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=8, help="in a batch (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=21, help="with background (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast; only for training and inference")
    parser.add_argument("--device", type=pick_device, default=pick_device(), help="default: the GPU if there is one")
    parser.add_argument("--data", metavar="FOLDER", help="train on the pictures of this data set")
    parser.add_argument("--width", type=float, default=1.0, help="of the network, with --data (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="loader processes, with --data (default: as in ssd train)")
    args = parser.parse_args()
    if args.data:
        return from_disk(args)
    if args.bf16 and args.what in ("loss", "detection"):
        parser.error("--bf16 is only for training and inference")
    where = torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    precision = "bf16" if args.bf16 else "float32"
    print(f"{args.what}, {args.images} images, {args.classes} classes, {precision}, {where}, {args.steps} steps")
    case = CASES[args.what](args.images, args.classes)
    inputs = copied(case.inputs(), args.device)
    for name in (OURS, case.baseline):
        function = case.contenders[f"{name}_bf16" if args.bf16 else name]
        if isinstance(function, str):
            parser.error(f"{name}: {function}")
        step = partial(function, inputs)
        step()  # builds the networks
        ms = milliseconds(step, args.steps)
        print(f"\n{name}: {ms:.2f} ms, {1e3 * args.images / ms:.1f} images/s")
        own = parts(name, inputs, args) if args.what == "training" else {}
        rest = {"loss and the rest": ms - sum(own.values())} if own else {}
        for part, its in (own | rest).items():
            print(f"  {part:18} {its:9.2f} ms {its / ms:6.1%}")
        print(profiled(step, args.steps, args.device))


if __name__ == "__main__":
    main()
