"""The report of an installation for an issue: what it says, and that it names no path, user or host."""

import getpass
import importlib.metadata
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from own_process import printed_by

import ssd_ext
from ssd.cli import main
from ssd.reports import bug
from ssd_ext import _load

# Of a loader of libraries: in the home folder, in site-packages with a blank in its path, in other places.
HOME, SITE = "/home/jane", "/srv/team data/env/site-packages"
ERROR = (
    f"broken: _cuda.abi3.so cannot be loaded: {HOME}/env/lib/libtorch_cuda.so: undefined symbol: _ZN3c10 "
    f"(required by {SITE}/ssd_ext/_cuda.abi3.so); C:\\Users\\jane\\torch.dll, ~/secret/notes.txt, "
    "file:///mnt/x/y: jane@box7"
)


@pytest.fixture
def names(monkeypatch):
    """The user jane on the host box7."""
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    monkeypatch.setattr(socket, "gethostname", lambda: "box7")
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.syspath_prepend(SITE)


def test_paths_and_names_are_replaced(names, monkeypatch, capsys):
    monkeypatch.setitem(_load.missing, "cuda", ERROR)
    monkeypatch.setenv("SSD_EXT_BUILD", f"{HOME}/build")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/projects/secret")
    assert main(["info", "--report-bug"]) == 0
    printed = capsys.readouterr().out
    for private in ("jane", "box7", "home", "srv", "team", "Users", "mnt", "secret", "notes", "site-packages"):
        assert not re.search(rf"\b{private}\b", printed), private
    assert not re.search(r"(?<![\w>])[/\\]\w", printed.replace("C++/CUDA", ""))
    assert (
        "broken: _cuda.abi3.so cannot be loaded: <path>/libtorch_cuda.so: undefined symbol: _ZN3c10 "
        "(required by <path>/_cuda.abi3.so); <path>/torch.dll, <path>, <path>: <user>@<host>\n"
    ) in printed
    assert re.search(r"^SSD_EXT_BUILD +<path>$", printed, re.M)
    assert re.search(r"^also set +.*LD_LIBRARY_PATH", printed, re.M)


def test_what_is_no_path_stays(names):
    for text in ("torch 2.14.1+cu130 (CUDA 13.0)", "C++ and/or CUDA", "18,000 bytes", "janet on box70", "sm_90 3 / 4"):
        assert bug.without_names(text) == text


def test_the_report_describes_the_installation(capsys, monkeypatch):
    monkeypatch.setenv("SSD_EXT_BACKEND", "auto")
    assert main(["info", "--report-bug"]) == 0
    title, empty, fence, *lines, end = capsys.readouterr().out.splitlines()
    assert (title, empty, fence, end) == ("### Installation", "", "```text", "```")
    values = dict(re.split(r" {2,}| (?=\S+$)", line, maxsplit=1) for line in lines if re.search(r"\S +\S", line))
    assert values["numpy"] == importlib.metadata.version("numpy")
    assert values["SSD_EXT_BACKEND"] == "auto"
    assert values["cores"].endswith(f" of {os.cpu_count()}, torch uses {torch.get_num_threads()}")
    assert torch.backends.cpu.get_cpu_capability() in values["CPU"]
    assert [line for line in str(ssd_ext.info()).splitlines() if line not in lines] == []
    libraries = {file.name: file.stat().st_size for file in Path(ssd_ext.__file__).parent.glob("*.so")}
    for name, size in libraries.items():
        assert re.match(rf"{size:,} bytes; (GCC: \(|clang)", values[name]), values[name]
    assert not {"pytest", "ruff", "ssd-ext[coco"} & set(values)


def test_packages_that_are_missing_are_listed(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ["numpy>1", "no-such-one; extra == 'x'", "ruff; extra == 'dev'"]
    )
    numpy, missing = bug._packages()
    assert numpy.split() == ["numpy", importlib.metadata.version("numpy")]
    assert missing.split(maxsplit=2)[2] == "no-such-one"


def test_a_broken_library_is_reported_on_plain_pytorch(tmp_path):
    """A CPU library that cannot be loaded ends every import of ssd_ext, unless plain PyTorch is chosen."""
    for package in ("ssd", "ssd_ext"):
        source = Path(ssd_ext.__file__).parents[1] / package
        shutil.copytree(source, tmp_path / "of jane" / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "of jane" / "ssd_ext" / "_cpu.abi3.so").write_bytes(b"GCC: (Debian 12.2.0-14) 12.2.0\0 no library")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from ssd.cli import main; main(['info', '--report-bug'])"
    printed = printed_by(code, tmp_path / "of jane", SSD_EXT_BACKEND="python")
    assert re.search(r"^_cpu\.abi3\.so +42 bytes; GCC: \(Debian 12\.2\.0-14\) 12\.2\.0$", printed, re.M)
    assert re.search(
        r"^with SSD_EXT_BACKEND=auto:\n.*_cpu\.abi3\.so is built but cannot be loaded.*<path>", printed, re.M
    )
    assert str(tmp_path) not in printed
    assert "of jane" not in printed


def test_the_report_is_not_about_data(capsys):
    assert main(["info", "--report-bug", "my_pictures"]) == 2
    assert "give it without DATA" in capsys.readouterr().err
