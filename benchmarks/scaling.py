"""How many pictures a second `ssd train` takes in several processes, one core for each, on a quiet machine.

    .venv/bin/python benchmarks/scaling.py [--processes 1 2] [--batch-size 16] [--accumulate 1] [--repeats 3]

Trains on drawn shapes. The rate is that of the run's own closing line: of training steps with the reading of their
pictures, without start, validation and checkpoints. Runs of all numbers of processes are made in turn; the median
counts. The processes share each batch, so that all runs take the same steps.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ssd.data.shapes import write_shapes

REPOSITORY = Path(__file__).parents[1]


def pictures_per_second(processes: int, data: Path, options: list[str]) -> float:
    """The rate of one run, on the first cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))[:processes]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    with tempfile.TemporaryDirectory() as out:
        run = ["ssd", "train", str(data), "--out", f"{out}/run", "--device", "cpu", "--workers", "0", *options]
        command = [sys.executable, "-m", *(launcher if processes > 1 else []), *run]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return float(re.search(r"trained on \d+ pictures, ([\d.]+) a second", done.stdout)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if max(args.processes) > cores:
        parser.error(f"one core for each process: there are {cores}")
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in ("width", "batch_size", "accumulate")]
    options += [f"--epochs={args.epochs}", "--split=train", "--batch-norm"]
    rates: dict[int, list[float]] = {n: [] for n in args.processes}
    with tempfile.TemporaryDirectory() as folder:
        data = write_shapes(Path(folder), args.pictures, 0)
        for _ in range(args.repeats):
            for n, its in rates.items():
                its.append(pictures_per_second(n, data, options))
    one = statistics.median(rates[args.processes[0]])
    print(f"width {args.width}, batches of {args.batch_size}, {args.epochs * args.pictures} pictures, {cores} cores\n")
    print("| processes | pictures/s | all runs | ratio |\n|---|---|---|---|")
    for n, its in rates.items():
        rate = statistics.median(its)
        print(f"| {n} | {rate:.2f} | {', '.join(f'{r:.2f}' for r in its)} | {rate / one:.2f}x |")


if __name__ == "__main__":
    main()
