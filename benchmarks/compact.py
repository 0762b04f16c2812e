"""Keeps of a pytest-benchmark run what a reader needs: machine, versions, commit, medians, memory, what was left out.

.venv/bin/python -m pytest benchmarks --benchmark-json=build/bench.json
.venv/bin/python benchmarks/compact.py build/bench.json            # writes benchmarks/results/<machine>.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from ssd.atomic import replacing

RESULTS = Path(__file__).resolve().parent / "results"
KEPT = (
    "suite",
    "op",
    "sizes",
    "contender",
    "device",
    "threads",
    "graph",
    "chart_only",
    "bytes",
    "copy_ms",
    "candidates",
)


def compact(run: dict) -> dict:
    machine, commit = run["machine_info"], run["commit_info"]
    here = machine["ssd_ext"]
    return {
        "cpu": machine["cpu"].get("brand_raw", machine["machine"]),
        "cores": here["cores"],
        "threads": here["threads"],
        "instructions": here["instructions"],
        "gpu": here["gpu"],
        "date": run["datetime"][:10],
        "commit": (commit.get("id") or "unknown") + (", with changes" if commit.get("dirty") else ""),
        "versions": here["versions"],
        "results": [_row(bench) for bench in run["benchmarks"]],
        "left_out": run["left_out"],
    }


def _row(bench: dict) -> dict:
    extra, stats = bench["extra_info"], bench["stats"]
    row = {key: extra[key] for key in KEPT if key in extra}
    for name, seconds in (("median_ms", stats["median"]), ("iqr_ms", stats["iqr"])):
        row[name] = float(f"{seconds / extra['calls'] * 1e3:.4g}")
    if "in_turn_ms" in extra:
        row["in_turn_ms"] = float(f"{extra['in_turn_ms']:.4g}")
    row["rounds"] = stats["rounds"]
    row["peak_mb"] = None if extra["peak_mb"] is None else round(extra["peak_mb"], 1)
    return row


def machine_name(result: dict) -> str:
    parts = [result["gpu"] or result["cpu"], f"{result['cores']} cores"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def dumps(result: dict) -> str:
    """JSON with one measurement in a line, so that two versions can be compared by eye."""
    rows = {key: value for key, value in result.items() if isinstance(value, list)}
    text = json.dumps({**result, **{key: f"@{key}@" for key in rows}}, indent=1)
    for key, value in rows.items():
        lines = ",\n  ".join(json.dumps(row) for row in value)
        text = text.replace(f'"@{key}@"', f"[\n  {lines}\n ]" if value else "[]")
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="file of --benchmark-json")
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS, help="file, or folder of <machine>.json")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    result = compact(json.loads(arguments.run.read_text()))
    out = arguments.out / f"{machine_name(result)}.json" if arguments.out.is_dir() else arguments.out
    with replacing(out) as temporary:
        temporary.write_text(dumps(result))
    print(f"{len(result['results'])} measurements, {len(result['left_out'])} left out: {out}")


if __name__ == "__main__":
    main()
