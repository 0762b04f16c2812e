"""Reads a report of gpu_check.py; makes a page of measurements beside predictions, and a result file."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("torchvision", "tutorial")  # how the names of contenders of other projects begin


class Prediction(NamedTuple):
    """Measured and predicted times of one piece of work: microseconds for kernels, milliseconds for the network.

    Attributes:
        work: its name.
        seen: where the report of gpu_check.py has its time: the step, the name in its file, the key.
        measured: the time on an H200 in November 2026, commit 5db016da.
        floor: the time of kernels to move their bytes at 4.3 TB/s, and of the network to compute at 60 % of the peak.
        predicted: an estimate for faster kernels from instructions, latencies and launches; for the present kernels,
            the same way of estimating is within 20 % of the measured time.
        aim: the time that the faster version should reach.
    """

    work: str
    seen: tuple[str, str, str]
    measured: float | None
    floor: float | None = None
    predicted: float | None = None
    aim: float | None = None


def graph(case: str, *numbers: float | None) -> Prediction:
    return Prediction(f"{case}, in a graph", ("kernels", case, "graph_us"), *numbers)


def network(case: str, *numbers: float | None) -> Prediction:
    return Prediction(case, ("network", case, "ms"), *numbers)


PREDICTIONS = [
    graph("loss 8x21", 51, None, 29),
    graph("loss 32x21", 81, 13, 43, 40),
    graph("loss 8x81", 78),
    graph("loss 32x81", 162, None, 104),
    graph("loss 128x21", 177),
    graph("loss 128x81", 461, 90, 274, 290),
    Prediction("loss 32x21, called from Python", ("kernels", "loss 32x21", "eager_us"), 441, None, 220, 150),
    graph("detection 8x21", 65),
    graph("detection 32x21", 79, 6, 40, 35),
    Prediction("nms 5000", ("kernels", "nms 5000", "eager_us"), 277),
    Prediction("nms 20000", ("kernels", "nms 20000", "eager_us"), 631, None, 245, 170),
    network("training 8 float32", 13.7),
    network("training 8 bf16", 14.5, 3.8, None, 7),
    network("training 32 float32", 43.2),
    network("training 32 bf16", 24.4, 15, None, 18),
    network("inference 8 bf16", 2.85),
    network("inference 32 bf16", 8.7, 4.8, None, 7),
]
# Estimated microseconds of the present kernels of the loss, from their machine code, for the cases of LOSS.
LOSS = ("loss 8x21", "loss 32x21", "loss 128x81")
MODEL = {
    ("rows_kernel",): (4.4, 12.4, 119),
    ("add_up_image",): (11, 11, 11),
    ("add_up_batch",): (2.3, 2.3, 2.3),
    ("at::native",): (0, 0, 0),
    ("gradients",): (6, 10, 94),
}
GAPS = (5, 5, 5)  # between the 4 launches of a graph, 1.3 us each


def read(tar: Path) -> dict[str, Any]:
    """File name -> text; for a JSON file, its value."""
    files: dict[str, Any] = {}
    with tarfile.open(tar) as packed:
        for entry in packed.getmembers():
            if not entry.isfile():
                continue
            text, name = packed.extractfile(entry).read().decode(errors="replace"), Path(entry.name).name
            try:
                files[name] = json.loads(text) if name.endswith(".json") else text
            except json.JSONDecodeError:  # the step was ended while it wrote the file
                files[f"{name}.damaged"] = text
    return files


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([number(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(x: Any) -> str:
    if isinstance(x, float | int) and not isinstance(x, bool):
        return f"{x:.0f}" if x >= 100 else f"{x:.3g}"
    return "-" if x is None else str(x)


def seen(files: dict[str, Any], where: tuple[str, str, str]) -> float | None:
    """The time that a step measured, the smallest if there are several; None if it is missing."""
    step, name, key = where
    value = files.get(f"{step}.json", {}).get(name)
    found = value.get(key) if isinstance(value, dict) else None
    return min(found) if isinstance(found, list) else found


def predictions() -> str:
    """The table of docs/performance.md: measured times before the kernels changed, and predicted ones."""
    head = ["work (us; network: ms)", "measured, November 2026", "floor", "predicted now", "aim"]
    return markdown(head, [[p.work, p.measured, p.floor, p.predicted, p.aim] for p in PREDICTIONS])


def predicted(files: dict[str, Any]) -> str:
    rows = []
    for p in PREDICTIONS:
        now, expected = seen(files, p.seen), p.predicted or p.aim
        ratio = f"{now / expected:.2f}x" if now and expected else None
        rows.append([p.work, p.measured, now, p.floor, p.predicted, p.aim, ratio])
    head = ["work (us, network: ms)", "2026-11", "now", "floor", "predicted", "aim", "now / predicted or aim"]
    return markdown(head, rows)


def modelled(files: dict[str, Any]) -> str:
    """A table of the estimated and measured times of the kernels of the loss."""
    tables = [files.get("kernels.json", {}).get(case) for case in LOSS]
    tables = [table if isinstance(table, dict) else {} for table in tables]
    rows = []
    for parts, model in MODEL.items():
        cells: list[Any] = [" + ".join(parts)]
        for table, expected in zip(tables, model, strict=True):
            times = [k["us"] for k in table.get("kernels", []) if any(part in k["name"] for part in parts)]
            cells += [expected, sum(times) if times else None]
        rows.append(cells)
    cells = ["gaps: the graph minus its kernels"]
    for table, expected in zip(tables, GAPS, strict=True):
        whole, kernels = table.get("graph_us"), sum(k["us"] for k in table.get("kernels", []))
        cells += [expected, None if whole is None else whole - kernels]
    head = [f"{case} {what}" for case in LOSS for what in ("model", "now")]
    return markdown(["us", *head], [*rows, cells])


def measured(values: dict[str, Any]) -> str:
    """The measurements of a step: one line each, and tables of kernels."""
    lines = []
    for name, value in values.items():
        value = dict(value) if isinstance(value, dict) else value
        kernels = value.pop("kernels", []) if isinstance(value, dict) else []
        lines.append(f"* {name}: {value if isinstance(value, str) else json.dumps(value)}")
        if kernels:
            rows = [[k["name"].replace("|", " "), k["launches"], k["us"]] for k in kernels]
            lines += ["", markdown(["kernel", "launches", "us"], rows), ""]
    return "\n".join(lines)


def page(tar: Path) -> str:
    """The report as Markdown: outcomes, predictions, measurements, and the ends of the logs of failed steps."""
    files = read(tar)
    steps, machine = files.get("steps.json", {}), files.get("info.json", {})
    text = [f"# Measured on {machine.get('gpu') or 'a machine without a GPU'}", json.dumps(machine.get("versions", {}))]
    rows = [[name, r["outcome"], r["seconds"]] for name, r in steps.items()]
    text += ["## Steps", markdown(["step", "outcome", "s"], rows)]
    text += ["## Predicted and measured", predicted(files), "Kernels of the loss:", modelled(files)]
    for name, record in steps.items():
        values = files.get(f"{name}.json")
        failed = not record["outcome"].startswith(("passed", "not tried"))
        log = files.get(f"{name}.log", "")
        if values and name != "info":
            text += [f"## {name}", measured(values)]
        if failed or (log and name == "counters"):
            text += [f"### End of the log of {name}", "```", "\n".join(log.splitlines()[-40:]), "```"]
    return "\n\n".join(text) + "\n"


def write_results(tar: Path, commit: str | None = None, folder: Path = RESULTS) -> str:
    """Writes the benchmarks of a report to <machine>.json; returns a line of text about it.

    Peers take most of the time, so a report may have a case without its peers. Their rows are then kept from the
    earlier result file, if the versions of torch, torchvision and Python are the same.

    Args:
        tar: the report.
        commit: the tested commit, if the report does not have it (a copied tree has no history).
        folder: the folder of the result files.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import compact

    from ssd.runtime.files import replacing

    files = read(tar)
    runs = [files[name] for name in sorted(files) if name.endswith(".run.json")]
    if not runs:
        return "no result file: the report has no benchmarks"
    if not files["info.json"]["gpu"]:
        return "no result file: the report is from a rehearsal"
    result = compact.compact(runs)
    if result["commit"] == "unknown" and commit:
        result["commit"] = commit
    rows = {compact.row_key(row): row for row in result["results"]}
    out = folder / f"{compact.machine_name(result)}.json"
    old = json.loads(out.read_text()) if out.exists() else {"versions": None, "results": []}
    ours = {case_key(row) for row in rows.values()}
    for row in old["results"] if old["versions"] == result["versions"] else []:
        if row["contender"].startswith(PEERS) and case_key(row) in ours:
            rows.setdefault(compact.row_key(row), row)
    result["results"] = list(rows.values())
    with replacing(out) as temporary:
        temporary.write_text(compact.dumps(result))
    return f"{len(rows)} measurements: {out}; now run `make bench-report`"


def case_key(row: dict[str, Any]) -> tuple:
    return row["suite"], row["op"], str(row["sizes"]), row["device"]
