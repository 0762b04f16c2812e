"""Where the time of a training step goes: the network, the loss, the optimiser, the rest.

    .venv/bin/python benchmarks/training_step.py [--batch 8] [--width 1] [--steps 5] [--device cpu]

Runs `ssd.train.train_step`, the step of `ssd train`, on random pictures with 1 to 8 objects each and prints the median
time of each part over the steps.
"""

import argparse
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager

import torch

from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.precision import pick_device, place
from ssd.train import Settings, make_optimizer, train_step


class Clock:
    """Seconds by name, of one step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str):
        started = self.now()
        yield
        self.seconds[name] += self.now() - started

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, name: str, function):
        def timed(*args, **kwargs):
            with self(name):
                return function(*args, **kwargs)

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", type=pick_device, default=pick_device())
    args = parser.parse_args()

    torch.manual_seed(0)
    settings = Settings(data=("",), batch_size=args.batch, width=args.width)
    model = place(SSD300(args.classes, width=args.width), args.device)
    criterion = MultiBoxLoss(model.priors_cxcy)
    optimizer = make_optimizer(model, settings)
    images = torch.randn(args.batch, 3, 300, 300)
    targets = []
    for n in torch.randint(1, 9, (args.batch,)).tolist():
        centre, size = torch.rand(n, 2), 0.1 + 0.4 * torch.rand(n, 2)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1).clamp(0, 1)
        targets.append({"boxes": boxes, "labels": torch.randint(1, args.classes, (n,))})

    clock = Clock(args.device)
    model.forward = clock.wrap("network forward", model.forward)
    criterion.forward = clock.wrap("loss forward", criterion.forward)
    optimizer.step = clock.wrap("optimiser", optimizer.step)
    torch.Tensor.backward = clock.wrap("backward", torch.Tensor.backward)
    ops = torch.ops.ssd_ext
    ops.multibox_loss_backward = clock.wrap("loss backward", ops.multibox_loss_backward)

    steps = []
    for _ in range(1 + args.steps):  # the first one warms up
        clock.seconds.clear()
        with clock("step"):
            train_step(model, criterion, optimizer, images, targets, settings, 1.0, args.device)
        seconds = dict(clock.seconds)
        seconds["network backward"] = seconds.pop("backward") - seconds["loss backward"]
        seconds["rest"] = 2 * seconds["step"] - sum(seconds.values())
        steps.append(seconds)
    median = {name: statistics.median(step[name] for step in steps[1:]) for name in steps[-1]}

    step = median.pop("step")
    print(f"batch {args.batch}, width {args.width}, {args.device}, {torch.get_num_threads()} threads")
    for name, seconds in [*sorted(median.items(), key=lambda item: -item[1]), ("step", step)]:
        print(f"{name:17} {seconds * 1e3:9.2f} ms {seconds / step:7.2%}")
    ours = median["loss forward"] + median["loss backward"] + median["rest"]
    print(f"outside network and optimiser: {ours / step:.2%}")


if __name__ == "__main__":
    main()
