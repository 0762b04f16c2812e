"""Reduces pytest-benchmark runs to one result file: machine, versions, commit, medians, memory, what was left out.

.venv/bin/python -m pytest benchmarks --benchmark-json=build/bench.json
.venv/bin/python benchmarks/compact.py build/bench.json            # writes benchmarks/results/<machine>.json

A case that several runs have measured gets the medians of their times.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from ssd.runtime.files import replacing

RESULTS = Path(__file__).resolve().parent / "results"
TIMES = ("median_ms", "iqr_ms", "in_turn_ms")


def units(sizes: dict[str, int | str]) -> str:
    return ", ".join(f"{n} {unit if n != 1 else unit.removesuffix('s')}" for unit, n in sizes.items())


def case_name(op: str, sizes: dict[str, int | str]) -> str:
    return f"{op}, {units(sizes)}"


def selector(name: str) -> str:
    """The name in a form that `pytest -k` accepts."""
    return re.sub("[ ,]+", "-", name)


def slug(text: str) -> str:
    """The text as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def compact(runs: list[dict]) -> dict:
    """One result of several runs on one machine; machine, date and commit are taken from the last run."""
    machine, commit = runs[-1]["machine_info"], runs[-1]["commit_info"]
    here = machine["ssd_ext"]
    return {
        "cpu": machine["cpu"].get("brand_raw", machine["machine"]),
        **{key: here[key] for key in ("cores", "threads", "instructions", "gpu")},
        "date": runs[-1]["datetime"][:10],
        "commit": (commit.get("id") or "unknown") + (", with changes" if commit.get("dirty") else ""),
        "versions": here["versions"],
        "results": _merged([_row(bench) for run in runs for bench in run["benchmarks"]]),
        "left_out": [row for run in runs for row in run["left_out"]],
    }


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row measured."""
    names = ("suite", "op", "contender", "device", "threads", "graph")
    return *(row.get(name) for name in names), *row["sizes"].items()


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the rows of each measurement: medians of the times, and `in_turn_each_ms`, the times of all runs."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row_key(row), []).append(row)
    merged = []
    for first, *others in groups.values():
        each = {name: [row[name] for row in (first, *others)] for name in TIMES if name in first} if others else {}
        first |= {name: float(f"{statistics.median(times):.4g}") for name, times in each.items()}
        merged.append(first | ({"in_turn_each_ms": each["in_turn_ms"]} if "in_turn_ms" in each else {}))
    return merged


def _row(bench: dict) -> dict:
    row, stats = dict(bench["extra_info"]), bench["stats"]
    calls, peak = row.pop("calls"), row.pop("peak_mb")
    times = {f"{name}_ms": stats[name] / calls * 1e3 for name in ("median", "iqr")}
    times |= {"in_turn_ms": row.pop("in_turn_ms")} if "in_turn_ms" in row else {}
    rounded = {key: float(f"{ms:.4g}") for key, ms in times.items()}
    return row | rounded | {"rounds": stats["rounds"], "peak_mb": None if peak is None else round(peak, 1)}


def machine_name(result: dict) -> str:
    return slug(f"{result['gpu'] or result['cpu']} {result['cores']} cores")


def dumps(result: dict) -> str:
    """JSON with one measurement per line, so that a diff of two versions is readable."""
    rows = {key: value for key, value in result.items() if isinstance(value, list)}
    text = json.dumps({**result, **{key: f"@{key}@" for key in rows}}, indent=1)
    for key, value in rows.items():
        lines = ",\n  ".join(json.dumps(row) for row in value)
        text = text.replace(f'"@{key}@"', f"[\n  {lines}\n ]" if value else "[]")
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="files of --benchmark-json, or folders with *.run.json")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    arguments = parser.parse_args()
    files = [file for run in arguments.runs for file in (sorted(run.glob("*.run.json")) if run.is_dir() else [run])]
    if not files:
        sys.exit(f"no measurements in {', '.join(map(str, arguments.runs))}")
    result = compact([json.loads(file.read_text()) for file in files])
    arguments.out.mkdir(exist_ok=True)
    out = arguments.out / f"{machine_name(result)}.json"
    with replacing(out) as temporary:
        temporary.write_text(dumps(result))
    print(f"{len(result['results'])} measurements, {len(result['left_out'])} left out: {out}")


if __name__ == "__main__":
    main()
