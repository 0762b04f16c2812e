"""The libraries use nothing of libtorch but its stable C interface: one build serves torch 2.11 and newer."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_on_cpu import build

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
