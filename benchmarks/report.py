"""Writes docs/performance.md, the charts in docs/charts/ and the table of the README: `make bench-report`.

The numbers come from benchmarks/results/*.json, and the text between the tables from benchmarks/performance.md. There,
a line `{{table SUITE}}` stands for the tables of all machines, `{{bars SUITE}}` and `{{scaling SUITE}}` for the charts,
`{{summary}}`, `{{machines}}` and `{{left out}}` for lists and tables, and `{{predictions}}` for the table of
tools/gpu_report.py. The same results give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from compact import case_name, slug, units

from ssd.runtime.files import replacing

ROOT = Path(__file__).resolve().parent.parent
# Contender -> heading and colour, in the order of the columns. Contenders that are not listed follow under their names.
CONTENDERS = {
    "ssd_ext": ("ssd_ext", "tab:blue"),
    "plain_pytorch": ("plain PyTorch", "tab:cyan"),
    "compiled_fallback": ("compiled", "tab:purple"),
    "torchvision": ("torchvision", "tab:orange"),
    "torchvision_no_cap": ("torchvision, all candidates", "tab:red"),
    "tutorial": ("tutorial", "tab:gray"),
    "ssd_ext_bf16": ("ssd_ext bf16", "tab:cyan"),
    "torchvision_bf16": ("torchvision bf16", "tab:red"),
    "ssd_ext_float32": ("ssd_ext float32", "tab:cyan"),
    "ssd_ext_compiled": ("ssd_ext --compile", "tab:purple"),
    "aoti": ("aoti", "tab:pink"),
    "onnx": ("ONNX Runtime", "tab:gray"),
    "openvino": ("OpenVINO float32", "tab:olive"),
    "openvino_bf16": ("OpenVINO bf16", "tab:green"),
    "openvino_int8": ("OpenVINO int8", "tab:red"),
}
# The cases in the README: of the first machine and of the first machine with a GPU, with all threads or on the GPU.
QUOTED_ON_CPU = ("forward and backward, 32 images, 21 classes", "trained, 32 images, 21 classes")
QUOTED_ON_GPU = ("training step, 32 images, 21 classes", "inference, 32 images, 21 classes")
QUOTE = re.compile(r"(?<=<!-- written by make bench-report -->\n).*?(?=<!-- end -->)", re.DOTALL)
# The cases in the summary, where a machine has them.
SUMMARY = (
    "forward and backward, 32 images, 21 classes",
    "forward and backward, 32 images, 81 classes",
    "trained, 32 images, 21 classes",
    "untrained, 32 images, 21 classes",
    "match_priors, 32 images, 1-20 objects each",
    "nms, 200 boxes",
    "nms, 20000 boxes",
    "SSD300 forward, 8 images",
    "training step, 4 images",
    "training step, 32 images, 21 classes",
    "inference, 32 images, 21 classes",
    "picture to detections, 8 images",
    "bytes to detections, 8 images",
    "training samples, 64 pictures, 640x480 pixels",
)
Row = dict


class Machine:
    """One result file."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.result = json.loads(path.read_text())
        self.rows: list[Row] = self.result["results"]

    def describe(self) -> str:
        r = self.result
        versions = ", ".join(f"{name} {version}" for name, version in r["versions"].items())
        commit, comma, changes = r["commit"].partition(",")
        commit = commit[:8] + comma + changes
        cpu = f"{r['cpu']} ({r['instructions']}), {units({'cores': r['cores'], 'threads': r['threads']})}"
        return f"**{self.name}**: {r['gpu'] or 'no GPU'}; {cpu}; {versions}; commit {commit}, {r['date']}"


def name_of(row: Row) -> str:
    return case_name(row["op"], row["sizes"])


def looks(contender: str) -> tuple[str, str | None]:
    return CONTENDERS.get(contender, (contender, None))


def contenders_of(rows: list[Row]) -> list[str]:
    found = dict.fromkeys(row["contender"] for row in rows)
    return [name for name in CONTENDERS if name in found] + [name for name in found if name not in CONTENDERS]


def number(x: float | None) -> str:
    """Three significant digits without an exponent."""
    if x is None:
        return "-"
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.3g}"


def baseline_of(row: Row) -> str:
    return row.get("baseline", "torchvision")


def ratio(a: Row | None, b: Row | None, key: str, of_b: str = "") -> str:
    """`key` of a divided by `of_b` of b (by default the same key), or "-" if a value is missing."""
    of_b = of_b or key
    return f"{number(a[key] / b[of_b])}x" if a and b and key in a and of_b in b else "-"


def in_turn(a: Row | None, b: Row | None) -> str:
    """The ratio of the times in alternating calls; after several runs the median of their ratios, and the range."""
    each = "in_turn_each_ms"
    if not (a and b and each in a and each in b):
        return ratio(a, b, "in_turn_ms")
    low, *_, high = ratios = sorted(x / y for x, y in zip(a[each], b[each], strict=True))
    return f"{number(statistics.median(ratios))}x ({number(low)} to {number(high)})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ----------------------------------------------------------------------------------------------------- tables


def tables(machine: Machine, suite: str) -> Iterator[str]:
    """A table for the CPU and a table for the GPU, if there are measurements."""
    for device in ("cpu", "cuda"):
        rows = [r for r in machine.rows if (r["suite"], r["device"]) == (suite, device) and not r["chart_only"]]
        if rows:
            name = "GPU" if device == "cuda" else "CPU"
            yield f"{machine.name}, {name}, median times in ms:\n\n{table(rows, device)}"


def table(rows: list[Row], device: str) -> str:
    # Not for networks: the bytes of a case do not include the weights, which a network reads too.
    bandwidth = device == "cuda" and rows[0]["suite"] in ("ops", "loss", "detection")
    cases: dict[tuple, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        mode = ("graph" if row["graph"] else "eager") if device == "cuda" else str(row["threads"])
        cases[name_of(row), mode][row["contender"]] = row
    contenders = contenders_of(rows)
    baseline = " or ".join(dict.fromkeys(baseline_of(row) for row in rows))
    has = {key: any(key in row for row in rows) for key in ("candidates", "in_turn_ms", "copy_ms")}
    head = ["case", *(["candidates per image"] if has["candidates"] else [])]
    head += ["mode" if device == "cuda" else "threads", *(looks(name)[0] for name in contenders)]
    head += [f"{baseline} / ssd_ext", *(["in turn"] if has["in_turn_ms"] else []), "MB ssd_ext", f"MB {baseline}"]
    head += ["GB/s ssd_ext", *(["ssd_ext / copy"] if has["copy_ms"] else [])] if bandwidth else []
    lines = []
    for (name, mode), case in cases.items():
        any_row = next(iter(case.values()))
        ours, peer = case.get("ssd_ext"), case.get(baseline_of(any_row))
        cells = [name, *([str(any_row["candidates"])] if has["candidates"] else []), mode]
        cells += [number(case[c]["median_ms"]) if c in case else "-" for c in contenders]
        cells.append(ratio(peer, ours, "median_ms"))
        cells += [in_turn(peer, ours)] if has["in_turn_ms"] else []
        cells += [number(r and r["peak_mb"]) for r in (ours, peer)]
        if bandwidth:
            cells.append(number(ours and ours["bytes"] / ours["median_ms"] / 1e6))
            cells += [ratio(ours, ours, "median_ms", "copy_ms")] if has["copy_ms"] else []
        lines.append(cells)
    return markdown(head, lines)


def reasons(machines: list[Machine]) -> str:
    """The cases that were not measured, grouped by their reason, and the machines where they were not."""
    groups: dict[tuple, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    where: dict[tuple, dict[str, None]] = defaultdict(dict)
    for machine in machines:
        for row in machine.result["left_out"]:
            group = row["contender"], row["suite"], row["reason"]
            groups[group][row["op"]][units(row["sizes"])] = None
            where[group][machine.name] = None
    lines = []
    for group, ops in groups.items():
        contender, suite, reason = group
        by_sizes: dict[str, list[str]] = defaultdict(list)
        for op, sizes in ops.items():
            by_sizes["; ".join(sizes)].append(op)
        cases = ". ".join(f"{', '.join(names)}: {sizes}" for sizes, names in by_sizes.items())
        lines.append([looks(contender)[0], suite, cases, reason, ", ".join(where[group])])
    return markdown(["contender", "table", "cases", "reason", "machines"], lines) if lines else "None."


def summary(machines: list[Machine]) -> str:
    """The baseline's time divided by ours, for a few cases on every machine; in parentheses if called in turn."""
    lines = []
    for name in SUMMARY:
        cells, suite = [], ""
        for machine in machines:
            by = {row["contender"]: row for row in fullest(machine, [r for r in machine.rows if name_of(r) == name])}
            ours = by.get("ssd_ext")
            peer = by.get(baseline_of(ours)) if ours else None
            alone, alternating = ratio(peer, ours, "median_ms"), in_turn(peer, ours).partition(" ")[0]
            cells.append(alone if alternating == "-" else f"{alone} ({alternating})")
            suite = ours["suite"] if ours else suite
        if suite:
            lines.append([name if suite == "ops" else f"{suite}: {name}", *cells])
    return markdown(["work", *(machine.name for machine in machines)], lines)


def quotations(machines: list[Machine]) -> str:
    """The table of the README."""
    chosen = [*machines[:1], *[machine for machine in machines if machine.result["gpu"]][:1]]
    lines = [line for machine in dict.fromkeys(chosen) for line in quotation(machine)]
    return markdown(["work", "machine", "ssd_ext ms", "torchvision ms", "ratio", "in turn"], lines) + "\n"


def quotation(machine: Machine) -> Iterator[list[str]]:
    """The rows of the README about a machine."""
    for name in QUOTED_ON_GPU if machine.result["gpu"] else QUOTED_ON_CPU:
        by = {row["contender"]: row for row in fullest(machine, [r for r in machine.rows if name_of(r) == name])}
        ours, peer = by.get("ssd_ext"), by.get("torchvision")
        if ours is None or peer is None:
            continue
        work = name if ours["suite"] == "ops" else f"{ours['suite']}: {name}"
        times = number(ours["median_ms"]), number(peer["median_ms"])
        yield [work, machine.name, *times, ratio(peer, ours, "median_ms"), in_turn(peer, ours)]


# ----------------------------------------------------------------------------------------------------- charts


def fullest(machine: Machine, rows: list[Row]) -> list[Row]:
    """The rows of the GPU without graphs; if there are none, the rows with all threads of the CPU."""
    gpu = [r for r in rows if r["device"] == "cuda" and not r["graph"]]
    return gpu or [r for r in rows if r["threads"] == machine.result["threads"]]


def where(rows: list[Row]) -> str:
    return "GPU" if rows[0]["device"] == "cuda" else f"CPU, {units({'threads': rows[0]['threads']})}"


def series(rows: list[Row], op: str, axis: str) -> tuple[dict, dict[str, list[tuple[float, float]]]]:
    """The sizes that stay fixed, and contender -> [(size along the axis, ms), ...].

    If there are several choices of fixed sizes, the choice with most points of ssd_ext.
    """
    fixed: dict[tuple, dict[str, dict]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["op"] == op and isinstance(row["sizes"].get(axis), int):
            others = tuple((k, v) for k, v in row["sizes"].items() if k != axis)
            fixed[others][row["contender"]][row["sizes"][axis]] = row["median_ms"]
    others, lines = max(fixed.items(), key=lambda item: len(item[1]["ssd_ext"]), default=((), {}))
    return dict(others), {name: sorted(points.items()) for name, points in lines.items() if len(points) >= 3}


def figure(panels: int):
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "ssd_ext", "svg.fonttype": "none", "font.size": 9})
    sheet = Figure(figsize=(4.2 * panels, 3.2), layout="constrained")
    axes = sheet.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return sheet, axes


def save(sheet, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    return path


def scaling(machine: Machine, suite: str, folder: Path) -> Iterator[Path]:
    """One chart for each op: the time over each size that was varied."""
    rows = fullest(machine, [r for r in machine.rows if r["suite"] == suite])
    for op in dict.fromkeys(row["op"] for row in rows):
        axes_of = dict.fromkeys(axis for row in rows if row["op"] == op for axis in row["sizes"])
        found = {axis: series(rows, op, axis) for axis in axes_of}
        found = {axis: (others, lines) for axis, (others, lines) in found.items() if "ssd_ext" in lines}
        if not found:
            continue
        sheet, panels = figure(len(found))
        for ax, (axis, (others, lines)) in zip(panels, found.items(), strict=True):
            for name in (name for name in contenders_of(rows) if name in lines):
                label, color = looks(name)
                ax.plot(*zip(*lines[name], strict=True), color=color, marker="o", markersize=3, label=label)
            ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms", title=units(others))
            ticks = [x for x, _ in lines["ssd_ext"]]
            ax.set_xticks(ticks, [str(x) for x in ticks], rotation=45 if max(ticks) > 999 else 0)
            ax.minorticks_off()
        panels[0].legend(frameon=False)
        sheet.suptitle(f"{op}, {where(rows)}" if suite == "ops" else f"{suite}, {op}, {where(rows)}")
        yield save(sheet, folder / machine.name / f"{slug(suite)}-{slug(op)}.svg")


def bars(machine: Machine, suite: str, folder: Path) -> Iterator[Path]:
    """One chart, with a panel for each op and a group of bars for each case."""
    rows = fullest(machine, [r for r in machine.rows if r["suite"] == suite and not r["chart_only"]])
    if not rows:
        return
    ops = list(dict.fromkeys(row["op"] for row in rows))
    sheet, panels = figure(len(ops))
    names = contenders_of(rows)
    width = 0.8 / len(names)
    for ax, op in zip(panels, ops, strict=True):
        cases = list(dict.fromkeys(units(row["sizes"]) for row in rows if row["op"] == op))
        for i, name in enumerate(names):
            mine = {units(r["sizes"]): r["median_ms"] for r in rows if (r["op"], r["contender"]) == (op, name)}
            x = [j + (i - (len(names) - 1) / 2) * width for j, case in enumerate(cases) if case in mine]
            label, color = looks(name)
            ax.bar(x, list(mine.values()), width, color=color, label=label)
        ax.set_xticks(range(len(cases)), [case.replace(", ", "\n") for case in cases], fontsize=7)
        ax.set(yscale="log", ylabel="ms", title=op)
        ax.grid(visible=False, axis="x")
    sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    sheet.suptitle(f"{suite}, {where(rows)}")
    yield save(sheet, folder / machine.name / f"{slug(suite)}-bars.svg")


# ----------------------------------------------------------------------------------------------------- report


def render(template: str, machines: list[Machine], docs: Path | None) -> str:
    """The template with the {{...}} lines replaced; draws the charts into docs/charts, or no charts if docs is None."""

    def replacement(match: re.Match) -> str:
        kind, _, suite = match[1].partition(" ")
        if match[1] == "machines":
            return "\n".join(f"* {machine.describe()}" for machine in machines)
        if match[1] == "summary":
            return summary(machines)
        if match[1] == "left out":
            return reasons(machines)
        if match[1] == "predictions":
            sys.path.append(str(ROOT / "tools"))
            import gpu_report

            return gpu_report.predictions()
        if kind == "table":
            return "\n\n".join(t for m in machines for t in tables(m, suite)) or "No measurements yet."
        if docs is None:
            return ""
        draw = {"scaling": scaling, "bars": bars}[kind]
        paths = [path.relative_to(docs) for m in machines for path in draw(m, suite, docs / "charts")]
        lines = [f"![{path.stem}, {path.parent.name}]({path.as_posix()})" for path in paths]
        return "\n".join(lines) or "No measurements yet."

    return re.sub(r"^\{\{(.+?)\}\}$", replacement, template, flags=re.MULTILINE)


def main(root: Path = ROOT) -> None:
    machines = [Machine(path) for path in sorted((root / "benchmarks" / "results").glob("*.json"))]
    docs = root / "docs"
    before = set((docs / "charts").glob("*/*.svg"))
    text = render((root / "benchmarks" / "performance.md").read_text(), machines, docs)
    with replacing(docs / "performance.md") as temporary:
        temporary.write_text(text)
    readme = root / "README.md"
    if machines and readme.exists():
        with replacing(readme) as temporary:
            temporary.write_text(QUOTE.sub(lambda _: quotations(machines), readme.read_text()))
    for stale in before:
        if stale.relative_to(docs).as_posix() not in text:
            stale.unlink()
    print(f"{len(machines)} machine(s): {docs / 'performance.md'}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
