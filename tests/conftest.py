"""What all tests share: the devices they run on, and SSD_EXT_REQUIRE.

SSD_EXT_REQUIRE=cpu,cuda names the devices whose compiled kernels must be there: a missing library is then a failure of
the whole run and not a quiet run on plain PyTorch.
"""

import os
from pathlib import Path

import pytest
import torch

import ssd_ext
from ssd_ext import _load

pytest.register_assert_rewrite("short_training")  # so that its assertions say what they compared, as those of tests do
HERE = Path(__file__).parent
# Marked slow, which `make check` leaves out; several processes, which share the files, begin with these: longest first.
SLOW = (
    *("kernels/test_sanitizers", "kernels/test_cuda_build", "test_several_processes", "cli/test_compile"),
    *("training/test_run", "export/test_export", "training/test_interruptions", "test_build"),
    *("export/test_onnx_openvino", "test_acceleration", "tools/test_gpu_check", "training/test_step"),
    *("kernels/test_threads", "test_names", "test_imports", "weights/test_peers", "networks/test_vgg16"),
    *(
        "test_every_network",
        "test_examples",
        "test_docstrings",
        "cli/test_export",
        "kernels/test_abi",
        "export/test_torch_formats",
        "runtime/test_processes",
        "test_site",
        "test_tutorial",
    ),
)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure(config):
    for device in filter(None, os.environ.get("SSD_EXT_REQUIRE", "").split(",")):
        if device not in _load.missing:
            pytest.exit(f"SSD_EXT_REQUIRE: unknown device {device!r}", returncode=2)
        if reason := _load.missing[device]:
            pytest.exit(f"SSD_EXT_REQUIRE={device}: no compiled kernels: {reason}", returncode=2)
        if device not in DEVICES:
            pytest.exit(f"SSD_EXT_REQUIRE={device}: torch sees no such device", returncode=2)


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marker
def pytest_collection_modifyitems(items):
    ranks = {HERE / f"{name}.py": rank for rank, name in enumerate(SLOW)}
    for item in items:
        if item.path in ranks:
            item.add_marker("slow")
    items.sort(key=lambda item: ranks.get(item.path, len(SLOW)))


def pytest_report_header(config):
    return repr(ssd_ext.info()).splitlines()


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="module")
def one_thread():
    """For a module. As in a loader's worker; on a busy machine the threads of one small op wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
