"""The report of the benchmarks, from a made-up run."""

import json
import re
from pathlib import Path

import compact
import pytest
import report
from benchmark_rows import bench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run():
    rows = [
        bench("ops", "nms", {"boxes": n}, contender, ms * n, chart_only=n == 500)
        for n in (200, 500, 1000)
        for contender, ms in (("ssd_ext", 0.01), ("torchvision", 0.125))
    ]
    rows += [
        bench("detection", "trained", {"images": 1, "classes": 21}, contender, 2.0, candidates=300, in_turn_ms=turn)
        for contender, turn in (("ssd_ext", 4.0), ("torchvision", 12.0), ("tutorial", 1.0))
    ]
    rows += [
        bench("loss", "forward", {"images": 8}, "ssd_ext", 0.02, device="cuda", graph=graph, copy_ms=0.01)
        for graph in (False, True)
    ]
    skipped = {"suite": "ops", "op": "nms", "sizes": {"boxes": 200}, "contender": "tutorial", "reason": "too slow"}
    versions = {"python": "3.12", "torch": "2.11", "torchvision": "0.26"}
    here = {"cores": 4, "threads": 4, "instructions": "AVX2", "gpu": None, "versions": versions}
    return {
        "machine_info": {"cpu": {"brand_raw": "Some CPU @ 2 GHz"}, "machine": "x86_64", "ssd_ext": here},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-31T00:00:00",
        "benchmarks": rows,
        "left_out": [skipped, skipped],
    }


@pytest.fixture
def project(run, tmp_path):
    """A folder with the template, one result file and a chart that no longer exists."""
    result = compact.compact([run])
    for folder in ("benchmarks/results", "docs/charts/gone"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "benchmarks/performance.md").write_text((ROOT / "benchmarks/performance.md").read_text())
    (tmp_path / "benchmarks/results" / f"{compact.machine_name(result)}.json").write_text(compact.dumps(result))
    (tmp_path / "docs/charts/gone/old.svg").write_text("")
    return tmp_path


def contents(project):
    return {path: path.read_bytes() for path in sorted((project / "docs").rglob("*")) if path.is_file()}


def test_compact(run):
    result = compact.compact([run])
    assert json.loads(compact.dumps(result)) == result
    assert compact.machine_name(result) == "some-cpu-2-ghz-4-cores"
    assert result["commit"] == "0123456789abcdef, with changes"
    first, last = result["results"][0], result["results"][-1]
    assert (first["median_ms"], first["iqr_ms"], first["peak_mb"]) == (2.0, 0.2, 1.5)
    assert last["median_ms"] == 0.02  # of one call of the ten in a round


def test_several_runs_are_one_result(run, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / f"{name}.run.json").write_text(json.dumps(run))
    monkeypatch.setattr("sys.argv", ["compact.py", str(tmp_path), "--out", str(tmp_path / "results")])
    compact.main()
    both = json.loads((tmp_path / "results/some-cpu-2-ghz-4-cores.json").read_text())
    one = compact.compact([run])
    assert [row | {"in_turn_each_ms": None} for row in both["results"]] == [
        row | {"in_turn_each_ms": None} for row in one["results"]
    ]
    assert both["left_out"] == 2 * one["left_out"]


def test_times_in_turn_of_several_runs(run, project):
    """The ratio of each run counts, not that of the slowest peer and the fastest run."""
    (file,) = (project / "benchmarks/results").iterdir()
    runs = [
        run
        | {
            "benchmarks": [
                bench("loss", "forward", {"images": 8}, contender, ms, in_turn_ms=turn)
                for contender, ms, turn in (("ssd_ext", 1.0, ours), ("torchvision", 10.0, peer))
            ]
        }
        for ours, peer in ((2.0, 20.0), (40.0, 100.0), (1.0, 9.0))
    ]
    result = compact.compact(runs)
    assert [row["in_turn_ms"] for row in result["results"]] == [2.0, 20.0]
    file.write_text(compact.dumps(result))
    report.main(project)
    assert "| 1 | 10.0 | 10.0x | 9x (2.5 to 10.0) |" in (project / "docs/performance.md").read_text()


def test_tables(project):
    report.main(project)
    text = (project / "docs/performance.md").read_text()
    assert "{{" not in text
    assert "| case | threads | ssd_ext | torchvision | torchvision / ssd_ext | MB ssd_ext | MB torchvision |" in text
    assert "| nms, 1000 boxes | 4 | 10.0 | 125 | 12.5x | 1.5 | 1.5 |" in text
    assert "nms, 500 boxes" not in text  # for charts only
    assert "| trained, 1 image, 21 classes | 300 | 4 | 2 | 2 | 2 | 1x | 3x | 1.5 | 1.5 |" in text
    assert "| forward, 8 images | graph | 0.02 | - | 1.5 | - | 400 | 2x |" in text
    assert "| tutorial | ops | nms: 200 boxes | too slow |" in text
    assert "commit 01234567, with changes" in text


def test_an_op_that_no_list_names(run, project):
    """Its table and chart follow from the results, with a peer and a contender that no other op has."""
    (file,) = (project / "benchmarks/results").iterdir()
    contenders = {"ssd_ext": 1.0, "numpy": 3.0, "torchvision": 4.0}
    rows = [
        bench("ops", "box_area", {"boxes": n}, contender, ms * n, baseline="numpy")
        for n in (10, 20, 40)
        for contender, ms in contenders.items()
    ]
    file.write_text(compact.dumps(compact.compact([run | {"benchmarks": rows}])))
    report.main(project)
    text = (project / "docs/performance.md").read_text()
    assert "| case | threads | ssd_ext | torchvision | numpy | numpy / ssd_ext | MB ssd_ext | MB numpy |" in text
    assert "| box_area, 10 boxes | 4 | 10.0 | 40.0 | 30.0 | 3x | 1.5 | 1.5 |" in text
    assert "ops-box-area.svg" in text


def test_charts_and_same_bytes_twice(project):
    report.main(project)
    first = contents(project)
    charts = [path for path in first if path.suffix == ".svg"]
    assert [path.name for path in charts] == ["detection-bars.svg", "loss-bars.svg", "ops-nms.svg"]
    for path in charts:
        assert path.relative_to(project / "docs").as_posix() in (project / "docs/performance.md").read_text()
    report.main(project)
    assert contents(project) == first


def test_no_results(project):
    for path in (project / "benchmarks/results").iterdir():
        path.unlink()
    report.main(project)
    assert "No measurements yet." in (project / "docs/performance.md").read_text()


def test_documentation_is_the_report_of_the_results():
    """docs/performance.md was not edited by hand, belongs to the result files, and its charts are there."""
    machines = [report.Machine(path) for path in sorted((ROOT / "benchmarks/results").glob("*.json"))]
    expected = report.render((ROOT / "benchmarks/performance.md").read_text(), machines, docs=None)
    text = (ROOT / "docs/performance.md").read_text()
    charts = re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.MULTILINE)
    assert all((ROOT / "docs" / chart).exists() for chart in charts)

    def without_charts(text):
        lines = text.splitlines()
        return [line for line in lines if line and not line.startswith("![") and line != "No measurements yet."]

    assert without_charts(text) == without_charts(expected)


def test_the_readme_quotes_the_results():
    machines = [report.Machine(path) for path in sorted((ROOT / "benchmarks/results").glob("*.json"))]
    (quoted,) = report.QUOTE.findall((ROOT / "README.md").read_text())
    assert quoted == report.quotations(machines)
