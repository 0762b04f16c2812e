"""Keeps of a pytest-benchmark run what a reader needs: machine, versions and medians; prints them as a table.

.venv/bin/python -m pytest benchmarks --benchmark-json=build/bench.json
.venv/bin/python benchmarks/compact.py build/bench.json benchmarks/results/NAME.json
"""

import json
import platform
import sys
from collections import defaultdict
from pathlib import Path

import torch
import torchvision


def compact(run: dict) -> dict:
    rows = [
        {
            **{k: bench["extra_info"][k] for k in ("case", "contender", "device", "threads")},
            "median_ms": round(bench["stats"]["median"] * 1e3, 4),
            "rounds": bench["stats"]["rounds"],
        }
        for bench in run["benchmarks"]
    ]
    machine = run["machine_info"]
    return {
        "cpu": machine["cpu"].get("brand_raw", machine["machine"]),
        "cores": machine["cpu"].get("count"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": run["datetime"][:10],
        "commit": run["commit_info"].get("id"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "results": rows,
    }


def table(rows: list[dict]) -> str:
    cases = defaultdict(dict)
    for row in rows:
        cases[row["case"], row["device"], row["threads"]][row["contender"]] = row["median_ms"]
    lines = [
        "| case | device | threads | ssd_ext ms | plain PyTorch ms | peer ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for (case, device, threads), ms in cases.items():
        ratio = ms["peer"] / ms["ssd_ext"]
        cells = (f"{ms[name]:.3g}" for name in ("ssd_ext", "plain_pytorch", "peer"))
        lines.append(f"| {case} | {device} | {threads} | {' | '.join(cells)} | {ratio:.0f}x |")
    return "\n".join(lines)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    result = compact(json.loads(source.read_text()))
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result["results"]))
