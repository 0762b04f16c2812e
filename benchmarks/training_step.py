"""Where the time of a step goes, for ours and torchvision's: launches, waits for the device, parts, kernels.

    python benchmarks/training_step.py [--what training] [--images 8] [--classes 21] [--bf16] [--device cpu] [--json F]

What: "training" (a whole step of `ssd train`), "inference", "loss" (with gradients) or "detection" (of predictions like
those of a trained network), as the benchmarks of these names do it. The network is also timed alone, forward and
backward, and so is the optimiser; what is left of a training step is the loss, copies and Python. On the CPU operators
are counted and listed in the place of kernels.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from functools import partial

import test_bench_network as network
import torch
from harness import OURS, copied
from test_bench_detection import detection
from test_bench_loss import loss_case
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer

from ssd.precision import pick_device, place

CASES = {
    "training": network.training_step,
    "inference": network.inference,
    "loss": lambda images, classes: loss_case(images, classes, backward=True),
    "detection": lambda images, classes: detection("trained", images, classes),
}
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
COPIES = ("cudaMemcpy", "cudaMemset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
RANGE = "one step"


def milliseconds(step: Callable, steps: int) -> float:
    """Of one call, on average; the device has ended."""
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.timeit(steps).mean  # warms up first


def profiled(step: Callable, steps: int, device: torch.device) -> dict:
    """Calls into the driver per step, and the ten kernels (on the CPU: operators) that take the most time."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            with record_function(RANGE):
                step()
            if gpu:
                torch.cuda.synchronize()
    events = list(profiler.events())
    on_host = [e for e in events if e.device_type == DeviceType.CPU]
    spans = [e.time_range for e in on_host if e.name == RANGE]
    inside = [e for e in on_host if any(s.start <= e.time_range.start <= s.end for s in spans) and e.name != RANGE]

    def per_step(names: tuple[str, ...]) -> float:
        return sum(e.name.startswith(names) for e in inside) / steps

    microseconds, calls = Counter(), Counter()
    if gpu:
        listed = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    else:
        listed = [e for e in inside if e.name.startswith(("aten::", "ssd_ext::", "torchvision::"))]
    for e in listed:
        microseconds[e.name] += (e.time_range.elapsed_us() if gpu else e.self_cpu_time_total) / steps
        calls[e.name] += 1 / steps
    return {
        "launches": per_step(LAUNCHES) if gpu else sum(calls.values()),
        "copies": per_step(COPIES),
        "waits": per_step(WAITS),
        "busy_ms": sum(microseconds.values()) / 1e3,
        "top": [{"name": n, "ms": us / 1e3, "calls": calls[n]} for n, us in microseconds.most_common(10)],
    }


def parts(name: str, inputs: network.Images, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of the network alone, with ones as the gradients of its outputs, and of the optimiser."""
    how = {"bf16": args.bf16, "classes": args.classes}
    net = network.networks(args.device, training=True, **how)[name]
    optimizer = network.optimizers(args.device, **how)[name]
    images = place(inputs.normalized, args.device) if name == "ssd_ext" else inputs.normalized  # as train_step does

    def forward_and_backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = network.raw_predictions(net, images, bf16=args.bf16)
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    steps = {"network": forward_and_backward, "optimiser": optimizer.step}
    return {part: milliseconds(step, args.steps) for part, step in steps.items()}


def measure(args: argparse.Namespace) -> list[dict]:
    case = CASES[args.what](args.images, args.classes)
    inputs = copied(case.inputs(), args.device)
    results = []
    for name in (OURS, case.baseline):
        function = case.contenders[f"{name}_bf16" if args.bf16 else name]
        if isinstance(function, str):
            raise SystemExit(f"{name}: {function}")
        step = partial(function, inputs)
        step()  # builds the networks
        ms = milliseconds(step, args.steps)
        result = {"contender": name, "ms": ms, "images_per_s": 1e3 * args.images / ms}
        if args.what == "training":
            own = parts(name, inputs, args)
            result["parts_ms"] = {**own, "loss and the rest": ms - sum(own.values())}
        results.append(result | profiled(step, args.steps, args.device))
    return results


def table(results: list[dict], gpu: bool) -> str:
    kind = "kernels" if gpu else "operators"
    lines = []
    for r in results:
        lines.append(f"{r['contender']}: {r['ms']:.2f} ms, {r['images_per_s']:.1f} images/s")
        counts = [f"{r['launches']:.0f} {'launches' if gpu else kind}", f"{kind} take {r['busy_ms']:.2f} ms"]
        lines.append("  per step: " + ", ".join([*counts, f"{r['copies']:.0f} copies, {r['waits']:.0f} waits"]))
        shares = r.get("parts_ms", {})
        lines += [f"  {name:18} {ms:9.2f} ms {ms / r['ms']:6.1%}" for name, ms in shares.items()]
        lines += [f"  {k['ms']:9.3f} ms {k['calls']:6.0f} x  {k['name'][:90]}" for k in r["top"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=CASES, default="training")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast; of training and inference")
    parser.add_argument("--device", type=pick_device, default=pick_device())
    parser.add_argument("--json", type=argparse.FileType("w"), help="file for the same as JSON")
    args = parser.parse_args()
    if args.bf16 and args.what in ("loss", "detection"):
        parser.error("--bf16 goes with training and inference")
    results = measure(args)
    gpu = args.device.type == "cuda"
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    head = f"{args.what}, {args.images} images, {args.classes} classes, {'bf16' if args.bf16 else 'float32'}, {where}"
    print(f"{head}\n{table(results, gpu)}")
    if args.json:
        json.dump({"what": head, "results": results}, args.json, indent=1)


if __name__ == "__main__":
    main()
