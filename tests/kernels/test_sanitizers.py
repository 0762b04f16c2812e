"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, CUDA kernels also under ThreadSanitizer.

Each runs in a process of its own, which has the sanitizer's library loaded first. For each sanitizer a test
shows that it finds a planted mistake: without that, silence would say nothing.
"""

import functools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cuda_on_cpu import build
from own_process import PATHS

OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0"},  # Python and torch leave much behind
    # Only our library is compiled for the detector; what torch and Python do is not to be judged.
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:suppress_equal_addresses=0:exitcode=66"},
}


def library(name):
    """The path of a library that comes with the compiler."""
    command = [build.compiler(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"{build.compiler()} has no {name}")
    return path


@functools.cache
def compile_all(sanitizer):
    """Before the sanitizer's library is loaded first, which would slow down the compiler too."""
    libraries = [build.CUDA_KERNELS, build.SELFTEST]
    libraries += [build.CPU_KERNELS] if sanitizer == "address" else []
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda sources: build.library(sources, sanitizer), libraries))


def run(sanitizer, *command):
    """The exit status and all output of `python command` with the sanitizer's library loaded first."""
    compile_all(sanitizer)
    # With libstdc++, which Python does not load by itself: the sanitizer looks for its exceptions at once.
    paths = [library(name) for name in (f"lib{sanitizer[0]}san.so", "libstdc++.so")]
    environment = {
        **os.environ,
        **OPTIONS[sanitizer],
        "LD_PRELOAD": " ".join(paths),
        "PYTHONPATH": PATHS,
        "SSD_EXT_BACKEND": "python",  # the sanitized library takes the place of the installed one
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    if "unexpected memory mapping" in done.stderr:  # addresses too random: see vm.mmap_rnd_bits
        pytest.skip(f"the sanitizer cannot run here: {done.stderr.strip()}")
    return done.returncode, done.stdout + done.stderr


pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
SELFTEST = """
import sys
import torch
from cuda_on_cpu import build
for kernel in sys.argv[2:]:
    build.load_selftest(sys.argv[1])(torch.arange(64, dtype=torch.int32), kernel)
print("all done")
"""


@pytest.mark.parametrize("sanitizer", OPTIONS)
def test_kernels_are_clean(sanitizer):
    """And so is the runner, wherever a kernel is right."""
    right = ("block_sum", "warp", "votes", "atomics", "warp_handover")
    status, output = run(sanitizer, build.HERE.parent / "compare.py", sanitizer, *right)
    assert status == 0, output
    assert "done" in output


FUZZ = """
import sys
import torch
from cuda_on_cpu import build
torch.ops.load_library(build.library(build.CPU_KERNELS, "address"))  # before ssd_ext, see compare.py
sys.path.insert(0, sys.argv[1])
import test_fuzz
test_fuzz.kernels = lambda: {"C++": torch.ops.ssd_ext, "CUDA": build.load("address")}
for op in test_fuzz.ARGUMENTS:
    test_fuzz.test_all_kernels_agree(op)
test_fuzz.test_all_backward_kernels_agree()
print("all done")
"""


def test_drawn_inputs_stay_in_bounds():
    status, output = run("address", "-c", FUZZ, Path(__file__).parent)
    assert status == 0, output
    assert "all done" in output


@pytest.mark.parametrize(
    ("kernel", "message"),
    [("global_overrun", "heap-buffer-overflow"), ("shared_overrun", "use-after-poison")],
)
def test_planted_overruns_in_cuda_kernels_are_found(kernel, message):
    status, output = run("address", "-c", SELFTEST, "address", kernel)
    assert status != 0
    assert message in output
    assert f"in {kernel}_kernel" in output


def test_planted_races_in_cuda_kernels_are_found():
    kernels = ("block_sum_without_barrier", "warp_handover_without_sync", "shuffle_handover")
    status, output = run("thread", "-c", SELFTEST, "thread", *kernels)
    assert status == 66, output
    racing = re.findall(r"data race .*?#0 (\w+)", output, re.DOTALL)
    assert {"block_sum_kernel", "warp_handover_kernel", "shuffle_handover_kernel"} <= set(racing)


@pytest.mark.parametrize(
    ("name", "op", "nth"),
    [
        ("box_iou", "box_iou", 0),
        ("nms", "nms", 1),
        ("multibox_loss", "multibox_loss_backward", 2),
        ("postprocess_detections", "postprocess_detections", 0),
    ],
)
def test_a_barrier_removed_from_a_kernel_is_found(name, op, nth, monkeypatch):
    """The positive control of test_kernels_are_clean: the same library, cases and detector, one barrier less."""
    source = (build.CSRC / name / f"{name}.cu").read_text().splitlines()
    lines = [number for number, line in enumerate(source, 1) if "__syncthreads();" in line]
    monkeypatch.setenv("CUDA_ON_CPU_WITHOUT_BARRIER", f"{name}.cu:{lines[nth]}")
    monkeypatch.setitem(OPTIONS, "thread", {k: v + ":halt_on_error=1" for k, v in OPTIONS["thread"].items()})
    script = f"""
from cuda_on_cpu import build
from ops import OPS
for arguments in OPS[{op!r}].cases():
    getattr(build.load("thread"), {op!r})(*arguments)
"""
    status, output = run("thread", "-c", script)
    assert status == 66, output
    assert re.search(r"data race .*?#0 ", output, re.DOTALL)


def test_a_planted_overrun_in_a_cpu_kernel_is_found(tmp_path):
    source = (build.CSRC / "box_iou" / "box_iou.cpp").read_text()
    loop = "for (int64_t i = row_begin; i < row_end; ++i)"
    assert loop in source
    planted = tmp_path / "box_iou.cpp"
    planted.write_text(source.replace(loop, loop.replace("i < row_end", "i <= row_end")))
    path = build.library([planted], "address")
    script = f"import torch; torch.ops.load_library({str(path)!r}); torch.ops.ssd_ext.box_iou(*torch.rand(2, 3, 4))"
    status, output = run("address", "-c", script)
    assert status != 0
    assert "heap-buffer-overflow" in output
