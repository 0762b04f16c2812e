"""The fixture of every benchmark, and the other entries of the result file: machine, versions, what was left out."""

import os
from functools import partial

import pytest
import torch
import torchvision
from harness import ALL, Session

SESSION = pytest.StashKey[Session]()


def pytest_configure(config):
    config.stash[SESSION] = Session()


@pytest.fixture
def measure(request, benchmark):
    return partial(request.config.stash[SESSION].measure, benchmark)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["ssd_ext"] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": ALL,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {
            "python": machine_info["python_version"],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["left_out"] = config.stash[SESSION].left_out
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)  # all rounds; the result file has only their median and spread


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Drops the benchmark that an interrupt has left without rounds: pytest-benchmark would fail and write nothing."""
    benchmarks = session.config._benchmarksession.benchmarks
    benchmarks[:] = [b for b in benchmarks if b.stats.rounds]
