"""Speed of `ssd train` in several processes, with one core for each. Needs a machine without other work.

    .venv/bin/python benchmarks/scaling.py [--processes 1 2] [--batch-size 16] [--accumulate 1] [--repeats 3]

Trains on generated shapes. The rate is the one that `ssd train` prints at its end: it includes the training steps and
the reading of their pictures, not the start, validation and checkpoints. Runs with different numbers of processes
alternate, and the table has their medians. The processes share each batch, so all runs take the same steps.
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
    """The rate of one run, on the first cores that this process may use, one for each process."""
    cores = sorted(os.sched_getaffinity(0))[:processes]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    with tempfile.TemporaryDirectory() as out:
        run = ["ssd", "train", str(data), "--out", f"{out}/run", "--device", "cpu", "--workers", "0"]
        run += ["--network", "ssd300", *options]
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
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers to compare (default: 1 2)")
    parser.add_argument("--width", type=float, default=0.25, help="of the network (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together (default: %(default)s)")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=64, help="training pictures (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each number (default: %(default)s)")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if max(args.processes) > cores:
        parser.error(f"{max(args.processes)} processes need as many cores, and there are {cores}")
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
