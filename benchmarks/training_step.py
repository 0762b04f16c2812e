"""Where the time of a step goes, for ours and torchvision's: parts, kernels or operators, calls into the driver.

    python benchmarks/training_step.py [--what training] [--images 8] [--classes 21] [--bf16] [--device cpu]

What: "training" (a whole step of `ssd train`), "inference", "loss" (with gradients) or "detection" (of predictions like
those of a trained network), as the benchmarks of these names do it. The network is also timed alone, forward and
backward, and so is the optimiser; what is left of a training step is the loss, copies and Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import test_bench_network as network
import torch
from harness import OURS, copied
from test_bench_detection import detection
from test_bench_loss import loss_case
from torch.profiler import profile
from torch.utils.benchmark import Timer

from ssd.precision import pick_device, place

CASES = {
    "training": network.training_step,
    "inference": network.inference,
    "loss": partial(loss_case, backward=True),
    "detection": partial(detection, "trained"),
}


def milliseconds(step: Callable, steps: int) -> float:
    """Of one call, on average; the device has ended."""
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.timeit(steps).mean  # warms up first


def parts(name: str, inputs: network.Images, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of the network alone, with ones as the gradients of its outputs, and of the optimiser."""
    how = network.How(args.device, args.bf16, training=True, classes=args.classes)
    net, optimizer = network.networks(how)[name], network.optimizers(how)[name]
    images = place(inputs.normalized, args.device) if name == OURS else inputs.normalized  # as train_step does

    def forward_and_backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = network.raw_predictions(net, images, bf16=args.bf16)
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    steps = {"network": forward_and_backward, "optimiser": optimizer.step}
    return {part: milliseconds(step, args.steps) for part, step in steps.items()}


def profiled(step: Callable, steps: int, device: torch.device) -> str:
    """The torch profiler's table of what takes most time, and the calls into the driver per step."""
    with profile() as profiler:
        for _ in range(steps):
            step()
    events = profiler.key_averages()
    calls = (f"{e.count / steps:g} {e.key}" for e in events if e.key.startswith(("cuda", "cuLaunch")))
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return ", ".join(calls) + "\n" + events.table(sort_by=by, row_limit=10, max_name_column_width=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=CASES, default="training")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast; of training and inference")
    parser.add_argument("--device", type=pick_device, default=pick_device())
    args = parser.parse_args()
    if args.bf16 and args.what in ("loss", "detection"):
        parser.error("--bf16 goes with training and inference")
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
