"""The measuring programs of gpu_check.py: `python tools/gpu_steps.py NAME --out FILE.json [--small]`.

A program rewrites its file after every measurement, and skips measurements for which too little time is left. A program
that is ended early therefore loses at most one measurement. --small uses small sizes, to test a program on a CPU.
Cases, inputs and peers come from tests/ and benchmarks/. Each program imports only what it needs, so that a missing
module stops no other program.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
ENDS = float(os.environ.get("GPU_CHECK_ENDS", "inf"))  # time.time() when gpu_check.py ends this program
VARIANT = "SSD_EXT_VARIANT"


class Results:
    """The measurements so far, in a JSON file."""

    def __init__(self, file: Path) -> None:
        self.file, self.values = file, {}

    def add(self, name: str, value: Any) -> None:
        self.values[name] = value
        temporary = self.file.with_name(f".{self.file.name}")
        temporary.write_text(json.dumps(self.values, indent=1))
        os.replace(temporary, self.file)
        print(f"{name}: {value}", flush=True)

    def measure(self, name: str, measured: Callable[[], Any], seconds: float = 5) -> None:
        """Adds the result of a function or its error; does not call the function if less than `seconds` are left."""
        if ENDS - time.time() < seconds:
            self.add(name, "not measured: no time was left")
            return
        try:
            self.add(name, measured())
        except Exception as error:  # the other measurements are still useful
            self.add(name, f"failed: {type(error).__name__}: {str(error)[:500]}")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------- machine


def info(results: Results, small: bool) -> None:
    """The GPU, the versions, and the reasons if a library of ssd_ext does not load."""
    gpu = torch.cuda.is_available()
    results.add("gpu", torch.cuda.get_device_name() if gpu else None)
    results.add("capability", "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else "9.0")
    results.add("versions", {"torch": torch.__version__, "python": sys.version.split()[0], "cuda": torch.version.cuda})
    try:
        import ssd_ext

        results.add("missing", ssd_ext.info().missing)
        print(ssd_ext.info())
    except ImportError as error:  # the CPU library was built for another machine
        results.add("missing", {"cpu": str(error), "cuda": str(error)})


# ---------------------------------------------------------------------------------------------------- kernels


def cases(small: bool) -> dict[str, Any]:
    """Cases of the benchmarks: the loss with its gradients, detection, nms."""
    from test_bench_detection import detection
    from test_bench_loss import loss_case
    from test_bench_nms import nms

    sizes = [(1, 3)] if small else [(images, classes) for images in (8, 32, 128) for classes in (21, 81)]
    losses = {f"loss {images}x{classes}": loss_case(images, classes, backward=True) for images, classes in sizes}
    found = {f"detection {images}x21": detection("trained", images, 21) for images in ((1,) if small else (1, 8, 32))}
    found |= {f"nms {n}": nms(n) for n in ((200,) if small else (1000, 5000, 20000))}
    return dict(list(losses.items())[:4]) | found | losses  # the slowest cases last


def microseconds(calls: int, step: Callable) -> float:
    """Time of one call, from the median of ten steps; a step makes `calls` calls and waits for the device."""
    from harness import timed

    return round(statistics.median(timed(step)[1] for _ in range(10)) / calls * 1e6, 2)


def kernel_times(case, tables: bool = True) -> dict[str, Any]:
    """Microseconds of a call from Python and in a CUDA graph; with `tables`, also of each kernel."""
    from harness import OURS, copied, rotating

    function, inputs = case.contenders[OURS], copied(case.inputs(), device())
    if device().type == "cuda":
        how = partial(rotating, function, inputs, quick=True)
        calls, step = how(graph=False)
        found = {"eager_us": microseconds(calls, step)}
        if OURS in case.graphs:
            found["graph_us"] = microseconds(*how(graph=True))
    else:
        calls, step = 1, partial(function, inputs)
        found = {"eager_us": microseconds(calls, step)}
    return found | ({"kernels": kernel_table(calls, step)} if tables else {})


def kernel_table(calls: int, step: Callable) -> list[dict[str, Any]]:
    """Launches and microseconds per call of each kernel (on a CPU, of each operator), from torch's profiler."""
    from torch.profiler import profile

    step()
    with profile() as profiler:
        step()
    on_gpu = device().type == "cuda"
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [e for e in profiler.key_averages() if not on_gpu or str(e.device_type).endswith("CUDA")]
    events.sort(key=lambda e: -getattr(e, attribute))
    return [
        {"name": e.key[:120], "launches": e.count / calls, "us": round(getattr(e, attribute) / calls, 2)}
        for e in events[:20]
    ]


def kernels(results: Results, small: bool) -> None:
    for name, case in cases(small).items():
        results.measure(name, partial(kernel_times, case))


def graph_times(results: Results, small: bool) -> None:
    for name, case in cases(small).items():
        results.measure(name, partial(kernel_times, case, tables=False))


def variants(results: Results, small: bool) -> None:
    """Times the variants of the library's kernels in turn, twice, each in its own process.

    A library with variants reads the environment variable SSD_EXT_VARIANT once, and contains the text
    "SSD_EXT_VARIANT=name" for each of them.
    """
    import ssd_ext

    libraries = Path(ssd_ext.__file__).parent.glob("_cuda*.so")
    names = sorted(
        {name.decode() for path in libraries for name in re.findall(rb"SSD_EXT_VARIANT=(\w+)", path.read_bytes())}
    )
    if not names:
        return results.add("variants", "no variants in this library")
    for turn in (1, 2):
        for name in ("", *names):

            def times(name: str = name) -> dict[str, Any]:
                out = results.file.with_name(f".{name}.json")
                command = [sys.executable, __file__, "graph_times", "--out", str(out), *(["--small"] if small else [])]
                subprocess.run(command, check=True, env={**os.environ, VARIANT: name})
                return json.loads(out.read_text())

            results.measure(f"{name or 'without'}, turn {turn}", times, seconds=8)


def counted(results: Results, small: bool) -> None:
    """Calls the loss of 81 classes and detection once each, for a profiler that counts instructions."""
    from harness import OURS, copied
    from test_bench_detection import detection
    from test_bench_loss import loss_case

    images = 1 if small else 32
    for case in (loss_case(images, 81, backward=True), detection("trained", images, 21)):
        case.contenders[OURS](copied(case.inputs(), device()))
        synchronize()
        results.add(case.name, "called")


def every_case(results: Results, small: bool) -> None:
    """Calls every op on every case of the tests, for a sanitizer; the ops alternate, so that each is called early."""
    from compare import OnGPU
    from ops import OPS

    namespace = OnGPU() if device().type == "cuda" else torch.ops.ssd_ext
    calls = {op: list(OPS[op].cases()) for op in OPS}
    total, done = sum(map(len, calls.values())), 0
    turns = chain.from_iterable(zip_longest(*([(op, case) for case in found] for op, found in calls.items())))
    for call in filter(None, turns):
        if ENDS - time.time() < 5:
            break
        op, arguments = call
        getattr(namespace, op)(*arguments)
        done += 1
        if done % 100 == 0:
            print(f"{done} of {total} calls", flush=True)
    synchronize()
    results.add("calls", f"{done} of {total}")


def options(results: Results, small: bool) -> None:
    """Compares what no other step calls on a GPU: some options, priors_xyxy, and accelerated models of torchvision."""
    import compare
    from harness import OURS, copied
    from inputs import PRIORS, PRIORS_XYXY, trained_like
    from test_bench_accelerate import CASES
    from test_bench_loss import loss_case

    from ssd_ext import DetectionOptions, LossOptions

    namespaces = {"CPU": torch.ops.ssd_ext} | ({"GPU": compare.OnGPU()} if device().type == "cuda" else {})
    images = 1 if small else 8

    def same(op: str, *arguments: Any) -> str:
        compare.check(op, arguments, namespaces, one_library=False)
        return "the same bits in " + " and ".join(namespaces)

    predictions = trained_like(images, 21)
    # Sigmoids of logits near 0 give thousands of candidates; a score of 0.9 leaves as many as a trained network has.
    for changed in (
        {"score": "sigmoid", "min_score": 0.9},
        {"clip": True},
        {"max_log_scale": 0.1},
        {"pre_nms_top_k": 3},
    ):
        chosen = DetectionOptions(**changed)
        results.measure(f"detection {changed}", partial(same, "postprocess_detections", *predictions, PRIORS, *chosen))
    x = loss_case(images, 21, backward=False).inputs()
    targets = x.boxes, x.labels, x.row_splits
    arguments = *predictions, *targets, PRIORS, *LossOptions(), PRIORS_XYXY
    results.measure("loss with priors_xyxy", partial(same, "multibox_loss", *arguments))

    def accelerated(case) -> str:
        inputs = copied(case.inputs(), device())
        theirs, ours = (case.contenders[name](inputs) for name in ("torchvision", OURS))
        case.check("torchvision", theirs, ours)
        return "agrees with torchvision"

    for case in CASES:
        if case.sizes["images"] == 1 or not small:
            results.measure(f"accelerate: {case.name}", partial(accelerated, case))


# ---------------------------------------------------------------------------------------------------- network


@cache
def built(width: float, **layers: bool) -> torch.nn.Module:
    """A network with weights that are the same in every run."""
    from ssd.networks.ssd300 import SSD300

    torch.manual_seed(0)
    return SSD300(21, width=width, **layers)


class Training:
    """Steps of `ssd train` on random batches, which are the same in every run.

    Args:
        width: width of the network.
        images: images in a batch.
        bf16: whether to use autocast.
        recipe: whether to use the layers and the learning rate of `ssd train`. Otherwise the network is SSD300 without
            batch norm, with a learning rate of almost 0, as in the benchmark of a training step.
    """

    def __init__(self, width: float, images: int, bf16: bool, recipe: bool) -> None:
        from ssd.loss import MultiBoxLoss
        from ssd.runtime.device import place
        from ssd.training.optimizer import make_optimizer
        from ssd.training.settings import Settings

        self.images = images
        self.settings = Settings(("made",), network="ssd300", bf16=bf16, **({} if recipe else {"lr": 1e-30}))
        layers = {name: getattr(self.settings, name) for name in ("batch_norm", "head_batch_norm")} if recipe else {}
        self.model = place(copy.deepcopy(built(width, **layers)), device()).train()
        self.network: torch.nn.Module = self.model  # or a wrapper of it
        self.criterion = MultiBoxLoss(self.model.priors_cxcy, **self.settings.loss._asdict(), normalize="global")
        self.optimizer = make_optimizer(self.model, self.settings)

    def batch(self, index: int):
        """A batch as from a loader: bytes and objects, on the CPU."""
        from inputs import generator, objects

        from ssd.data.loader import Batch

        images = torch.randint(256, (self.images, 300, 300, 3), dtype=torch.uint8, generator=generator(index))
        truth = objects(self.images, 21, 1, 8)
        labels = 1 + (truth.labels + index) % 20
        columns = images.permute(0, 3, 1, 2), None, truth.boxes, labels, labels < 0, truth.row_splits
        if device().type == "cuda":
            columns = [column if column is None else column.pin_memory() for column in columns]
        return Batch(*columns)

    def step(self, batch) -> Tensor:
        from ssd.training.step import train_step

        factor = 0.1  # scales the learning rate, since there is no warm-up
        return train_step(self.network, self.criterion, self.optimizer, batch, self.settings, factor, device())


def milliseconds(prepare: Callable[[], Callable], autotune: bool = False) -> dict[str, Any]:
    """Two times of a step, and its loss; `autotune` sets cudnn.benchmark."""
    import training_step
    from harness import timed

    def waiting() -> None:
        step()
        synchronize()

    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, autotune
    try:
        step = prepare()
        loss = step()  # builds, compiles, allocates
        waiting()
        steps = max(2, min(20, int(0.3 / timed(waiting)[1])))
        times = [round(training_step.milliseconds(step, steps), 3) for _ in range(2)]
        return {"ms": times} | ({"loss": float(loss)} if isinstance(loss, Tensor) else {})
    finally:
        torch.backends.cudnn.benchmark = before


def prepared_training(width: float, images: int, bf16: bool, *flags: str) -> Callable:
    """A training step; the flags may be "fused" (SGD), "graph" (the whole step in a CUDA graph) and "compile"."""
    from harness import captured

    from ssd.runtime.device import compile_network

    run = Training(width, images, bf16, recipe=False)
    for group in run.optimizer.param_groups:
        group["fused"] = "fused" in flags or None
    if "compile" in flags:
        compile_network(run.model)
    batch = run.batch(0)
    if "graph" not in flags:
        return partial(run.step, batch)
    there = batch.to(device())
    losses: list[Tensor] = []
    replay = captured(lambda: losses.append(run.step(there)))  # also makes one step before the capture

    def step() -> Tensor:
        replay()
        return losses[-1]

    return step


def prepared_inference(width: float, images: int, bf16: bool, *flags: str) -> Callable:
    """Inference; the only flag is "compile"."""
    from ssd.inference.prediction import predict_padded
    from ssd.runtime.device import compile_network

    run = Training(width, images, bf16, recipe=False)
    if "compile" in flags:
        compile_network(run.model)
    there = run.batch(0).images.to(device())
    return partial(torch.inference_mode()(predict_padded), run.model, there, bf16=bf16)


def network(results: Results, small: bool) -> None:
    """Milliseconds of a training step and of inference, without flags and with each of them."""
    width, batches = (0.02, (1,)) if small else (1.0, (8, 32, 128))
    changes = {"training": [(), ("cudnn.benchmark",), ("fused",)], "inference": [(), ("cudnn.benchmark",)]}
    in_a_graph = {"training": [("fused", "graph"), ("fused", "graph", "cudnn.benchmark")], "inference": []}
    prepare = {"training": prepared_training, "inference": prepared_inference}
    for bf16, plan in product((True, False), (changes, in_a_graph) if device().type == "cuda" else (changes,)):
        for images, what in product(batches, plan):
            for flags in plan[what]:
                name = ", ".join([f"{what} {images} {'bf16' if bf16 else 'float32'}", *flags])
                step = partial(prepare[what], width, images, bf16, *flags)
                results.measure(name, partial(milliseconds, step, "cudnn.benchmark" in flags))


def compiled(results: Results, small: bool) -> None:
    """Milliseconds of a training step and of inference with a compiled network; compiling takes most of the time."""
    if small:
        return results.add("compiled", "not measured: it takes minutes on a CPU")
    for images in (8, 32):
        for what, prepare in (("training", prepared_training), ("inference", prepared_inference)):
            step = partial(prepare, 1.0, images, True, "fused", "compile")
            results.measure(f"{what} {images} bf16, fused, compile", partial(milliseconds, step), seconds=15)


Run = tuple[list[float], dict[str, Tensor]]  # losses of all steps, and the final state of the network


def apart(one: Run, other: Run) -> str | dict[str, Any]:
    """Where two runs differ, or "equal bits"."""
    if not all(map(math.isfinite, one[0] + other[0])):
        return f"no comparison: losses are not finite: {one[0]} and {other[0]}"
    pairs = {name: (x, other[1][name]) for name, x in one[1].items()}
    differ = {
        name: float((a.double() - b.double()).norm() / a.double().norm())
        for name, (a, b) in pairs.items()
        if not torch.equal(a, b)
    }
    steps = [i for i, (a, b) in enumerate(zip(one[0], other[0], strict=True), 1) if a != b]
    if not differ and not steps:
        return "equal bits"
    worst = sorted(differ, key=differ.get, reverse=True)[:8]
    return {
        "losses differ from step": steps[0] if steps else None,
        "last losses": (one[0][-1], other[0][-1]),
        "tensors that differ": f"{len(differ)} of {len(pairs)}",
        "the worst, relative": {name: differ[name] for name in worst},
    }


def repeat(results: Results, small: bool) -> None:
    """Whether two runs, a resumed run and a step with DistributedDataParallel give the same bits."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    width, images, steps = (0.02, 2, 2) if small else (1.0, 8, 30)

    def trained(bf16: bool, steps: int, resumed: bool = False) -> Run:
        run = Training(width, images, bf16, recipe=True)
        losses = []
        for index in range(steps):
            if resumed and index == steps // 2:
                file = io.BytesIO()
                torch.save((run.model.state_dict(), run.optimizer.state_dict()), file)
                run = Training(width, images, bf16, recipe=True)
                states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
                run.model.load_state_dict(states[0])
                run.optimizer.load_state_dict(states[1])
            losses.append(run.step(run.batch(index)))
        return torch.stack(losses).tolist(), run.model.state_dict()

    def compared(bf16: bool, deterministic: bool) -> dict[str, Any]:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        try:
            once = trained(bf16, steps)
            return {
                "after one step": apart(trained(bf16, 1), trained(bf16, 1)),
                "two runs": apart(once, trained(bf16, steps)),
                "resumed": apart(once, trained(bf16, steps, resumed=True)),
            }
        finally:
            torch.use_deterministic_algorithms(False)

    def shared() -> dict[str, Any]:
        """Compares a step with DistributedDataParallel and normalize="global" in one process with an ordinary step."""
        with tempfile.TemporaryDirectory() as folder:
            backend = "nccl" if device().type == "cuda" else "gloo"
            alone = Training(width, images, False, recipe=True)
            losses = [alone.step(alone.batch(0))]
            dist.init_process_group(backend, init_method=f"file://{folder}/join", rank=0, world_size=1)
            try:
                run = Training(width, images, False, recipe=True)
                run.network = DistributedDataParallel(run.model)
                losses.append(run.step(run.batch(0)))
                synchronize()
            finally:
                dist.destroy_process_group()
            states = alone.model.state_dict(), run.model.state_dict()
            return {"backend": backend} | {
                "alone and shared": apart(*zip([[float(x)] for x in losses], states, strict=True))
            }

    for bf16 in (True, False):
        results.measure(f"{'bf16' if bf16 else 'float32'}", partial(compared, bf16, False))
    results.measure("one process of several", shared)
    for bf16 in (True, False):
        results.measure(f"{'bf16' if bf16 else 'float32'}, deterministic", partial(compared, bf16, True))


def demo(results: Results, small: bool) -> None:
    """`ssd demo` with two epochs: drawing, training, evaluation."""
    import ssd.demo

    settings = {"epochs": 2}
    if small:
        ssd.demo.N_TRAIN = ssd.demo.N_TEST = 16
        settings = {"epochs": 1, "width": 0.01, "bf16": False}
    with tempfile.TemporaryDirectory() as folder:
        results.add("mAP", ssd.demo.demo(folder, workers=0 if small else None, **settings))


PROGRAMS = {
    program.__name__: program
    for program in (
        info, kernels, graph_times, variants, counted, every_case, options, network, compiled, repeat, demo,
    )
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PROGRAMS, help="the program")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file for the measurements")
    parser.add_argument("--small", action="store_true", help="use small sizes, for a CPU")
    arguments = parser.parse_args()
    results = Results(arguments.out)
    PROGRAMS[arguments.name](results, arguments.small)
    wrong = [name for name, value in results.values.items() if str(value).startswith("failed: ")]
    if wrong:
        print("failed:", *wrong, sep="\n  ")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
