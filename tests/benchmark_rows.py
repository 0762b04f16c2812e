"""Rows of a result file of the benchmarks."""


def bench(suite, op, sizes, contender, ms, *, device="cpu", graph=False, **extra):
    extra = {"calls": 10 if device == "cuda" else 1, "peak_mb": 1.5, "chart_only": False, "bytes": 8_000_000, **extra}
    seconds = ms / 1e3 * extra["calls"]
    place = {"device": device, "threads": 4, "graph": graph, "contender": contender}
    return {
        "extra_info": {"suite": suite, "op": op, "sizes": sizes, **place, **extra},
        "stats": {"median": seconds, "iqr": seconds / 10, "rounds": 5},
    }
