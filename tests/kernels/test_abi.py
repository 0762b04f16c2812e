"""The libraries use nothing of libtorch but its stable C interface: one build serves torch 2.11 and newer."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_on_cpu import build
from own_process import printed_by

import ssd_ext

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm (binutils)")

# What a library may take from elsewhere: torch's C interface, the CUDA runtime, what the loader and the
# compiler add, and the C++ standard library (std::, unless a type of libtorch appears in it). Most symbols of
# libc and libstdc++ carry a version (malloc@GLIBC_2.2.5) and are not looked at.
ALLOWED = re.compile(
    r"aoti_torch_|torch_|cuda[A-Z]|__cuda|_ITM_|__gmon_start__$|__cxa_finalize$"
    r"|_ZN?K?St(?!.*(?:3c10|2at|5torch))"
)


def foreign_symbols(library):
    """Names that the library takes from others, without those of libc and libstdc++."""
    command = ["nm", "-D", "--undefined-only", library]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in listed.splitlines()]
    return [name for name in names if "@" not in name]


def forbidden(library):
    return [name for name in foreign_symbols(library) if not ALLOWED.match(name)]


def built(device):
    found = sorted(Path(ssd_ext.__file__).parent.glob(f"_{device}*.so"))
    if not found:
        pytest.skip(f"the {device} library is not built")
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_libraries_use_the_stable_interface_only(device):
    for library in built(device):
        assert "torch_get_const_data_ptr" in foreign_symbols(library)
        assert forbidden(library) == []


def test_the_cpu_library_is_of_use_without_python():
    """An ExecuTorch-like program or a C++ one has nothing but the library: it brings the schemas of its ops."""
    code = f"""
import sys, torch
torch.ops.load_library({str(built("cpu")[0])!r})
assert "ssd_ext" not in sys.modules
print(torch.ops.ssd_ext.box_iou(torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[0.0, 0, 1, 1]])).item())
"""
    assert printed_by(code) == "0.5\n"


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("change", "its"),
    [
        (("Tensor boxes2)", "Tensor boxes2, float eps)"), "ssd_ext::box_iou(Tensor boxes1, Tensor boxes2, float eps)"),
        (('m.def("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor")', "static_cast<void>(m)"), "no schema"),
    ],
    ids=["of another version", "from before schemas were in it"],
)
def test_a_library_of_another_version_is_refused(change, its, tmp_path):
    source = (build.CSRC / "box_iou" / "box_iou.cpp").read_text()
    assert source.count(change[0]) == 1
    planted = tmp_path / "box_iou.cpp"
    planted.write_text(source.replace(*change))
    code = f"""
import torch
torch.ops.load_library({str(build.library([planted]))!r})
try:
    import ssd_ext
except ImportError as error:
    print(error)
"""
    message = printed_by(code, SSD_EXT_BACKEND="python")
    assert message.startswith(f"the CPU library is from another version: it has {its}")
    assert "rebuild it" in message


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_libraries_are_named_for_every_python(device):
    assert all(library.name == f"_{device}.abi3.so" for library in built(device))


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_a_call_into_libtorch_is_found(tmp_path):
    source = tmp_path / "unstable.cpp"
    source.write_text(
        "namespace c10 { struct Device { bool is_cuda() const; }; }\nbool f(c10::Device d) { return d.is_cuda(); }\n"
    )
    library = tmp_path / "unstable.so"
    subprocess.run([build.compiler(), "-shared", "-fPIC", source, "-o", library], check=True)
    assert forbidden(library) == ["_ZNK3c106Device7is_cudaEv"]
