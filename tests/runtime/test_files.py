"""Files that are whole or not there, and folders that one process at a time writes to."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_process import PATHS

from ssd.runtime.files import (
    Names,
    check_new,
    check_writable,
    discard_leftovers,
    file_names,
    locked,
    naming,
    new_folder,
    replacing,
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows")
def test_a_folder_is_free_as_soon_as_its_run_is_killed(tmp_path):
    """While its loader's workers, forked from it, live on."""
    code = (
        "import os, sys, time; from ssd.runtime.files import locked\n"
        "read, write = os.pipe()\n"
        "with locked(sys.argv[1]):\n"
        "    if child := os.fork():\n"
        "        os.read(read, 1)  # until the child runs\n"
        "        print(child, flush=True)\n"
        "    else:\n"
        "        os.write(write, b'x')\n"
        "    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATHS}, text=True) as other:
        child = int(other.stdout.readline())
        other.kill()
        other.wait()
        try:
            with locked(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("fails", [False, True])
def test_a_file_is_replaced_when_it_is_whole(tmp_path, monkeypatch, old, fails):
    monkeypatch.chdir(tmp_path)
    path = Path("a.bin")  # of the working folder
    if old:
        path.write_bytes(old)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            assert temporary.parent == path.parent  # on the same file system, where it can take the old one's place
            assert path.read_bytes() == old if old else not path.exists()  # nobody sees the half
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert left == ({"a.bin": old} if old else {}) if fails else {"a.bin": b"half"}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), replacing(tmp_path / "nowhere" / "a.bin"):
        pass
    assert list(tmp_path.iterdir()) == []


def error_of_torch_save():
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        raise RuntimeError("enforce fail") from None


def raised(error):
    raise error


@pytest.mark.parametrize(
    ("write", "kind", "says"),
    [
        (lambda: raised(OSError(28, "No space left on device")), OSError, "No space left on device: 'a.pt'"),
        (lambda: raised(OSError(27, "Too large", "b.pt")), OSError, "Too large: 'b.pt'"),
        (lambda: raised(OSError("encoder error")), OSError, "a.pt: encoder error"),
        (error_of_torch_save, OSError, "No space left on device: 'a.pt'"),
        (lambda: raised(RuntimeError("another")), RuntimeError, "another"),
    ],
    ids=["a full disk", "another file", "an encoder", "torch.save", "another error"],
)
def test_errors_name_the_file(write, kind, says):
    with pytest.raises(kind, match=f"{re.escape(says)}$"), naming("a.pt"):
        write()


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    """And not the temporary one, also if the error is that of a file in a temporary folder, or of renaming."""
    says = re.escape(f"Read-only file system: '{tmp_path}/a.pt'")
    for renamed in (), (None, tmp_path / "a.pt"):
        with pytest.raises(OSError, match=f"{says}$"), replacing(tmp_path / "a.pt") as temporary:
            raise OSError(30, "Read-only file system", str(temporary), *renamed)
    says = re.escape(f"No space left on device: '{tmp_path}/a/b/c.txt'")
    with pytest.raises(OSError, match=f"{says}$"), new_folder(tmp_path / "a") as temporary:
        raise OSError(28, "No space left on device", str(temporary / "b" / "c.txt"))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("a.pt")
    monkeypatch.setattr("ssd.runtime.files.os.access", lambda *_: False)
    for path, where in (
        ("a.pt", "a.pt: nothing can be written to the folder .;"),
        (tmp_path / "b" / "c.pt", f"b/c.pt: nothing can be written to the folder {tmp_path};"),
        (tmp_path, f"{tmp_path}: nothing can be written to this folder; choose another folder"),
    ):
        with pytest.raises(PermissionError, match=re.escape(where)):
            check_writable(path)
    with pytest.raises(PermissionError, match="nothing can be written"):
        check_new(tmp_path / "a")
    with pytest.raises(PermissionError, match="nothing can be written"), locked(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_leaves_no_empty_folder(tmp_path):
    for folder in (tmp_path / "a" / "b", tmp_path):
        with pytest.raises(KeyboardInterrupt), locked(folder):
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".lock").touch()
    for name, writes in (("old", []), ("full", ["last.pt"])):
        with pytest.raises(FileNotFoundError), locked(tmp_path / name):
            [(tmp_path / name / file).touch() for file in (*writes, "nowhere/a.pt")]
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"old", "old/.lock", "full", "full/.lock", "full/last.pt"}


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".a.pt.123.tmp", ".b.pt.9.tmp", ".c.pt.5.tmp", "a.pt.1.tmp", "a.pt"):
        (tmp_path / name).touch()
    for name in (".folder.3.tmp", ".other.3.tmp", "folder"):
        (tmp_path / name / "deeper").mkdir(parents=True)
    discard_leftovers(tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "folder")
    left = {".c.pt.5.tmp", "a.pt.1.tmp", "a.pt", ".other.3.tmp", "folder"}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize("name", ["\ud55c" * 81 + ".png", "a" * 255], ids=["bytes", "characters"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    with replacing(tmp_path / name) as temporary:
        temporary.touch()
        other = tmp_path / f"b{name[1:]}"
        with replacing(other) as second:
            assert temporary != second  # names that only begin or end alike
            second.touch()
    with new_folder(tmp_path / f"c{name[1:]}") as folder:
        folder.joinpath("a").touch()
    assert sorted(path.name[:1] for path in tmp_path.iterdir()) == sorted([name[0], "b", "c"])
    temporary.touch()  # as if the process had been killed
    discard_leftovers(other)
    assert temporary.exists()
    discard_leftovers(tmp_path / name)
    assert not temporary.exists()


def test_names_of_files_are_allowed_on_all_systems_and_differ():
    texts = [
        "dog",
        "Dog",
        "a/b",
        "a:b",
        "..",
        ".hidden",
        "",
        " x. ",
        "con",
        "COM1.txt",
        "tab\t",
        "\u5f69 2",
        "y" * 99,
        "\udce9",
    ]
    names = file_names(texts)
    assert names[:6] == ["dog", "Dog_2", "a_b", "a_b_2", "_", "_.hidden"]
    assert names[6:12] == ["__2", "x", "_con", "_COM1.txt", "tab_", "\u5f69 2"]
    assert names[12:] == ["y" * 60, "__3"]


def test_the_time_for_a_name_does_not_grow_with_those_like_it():
    names, began = Names(["A_3.PNG"]), time.process_time()
    found = [names.add("a", ".png") for _ in range(20_000)]
    assert found[:4] == ["a.png", "a_2.png", "a_4.png", "a_5.png"]
    assert [names.add("a_2", ".png"), names.add("a", ".png"), found[-1]] == ["a_2_2.png", "a_20002.png", "a_20001.png"]
    assert [names.add(name) for name in ("e\u0301", "\u00c9")] == ["e\u0301", "\u00c9_2"]  # one place on macOS
    assert time.process_time() - began < 2  # it took a minute


def test_one_at_a_time_in_a_folder(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked(folder):
        with pytest.raises(ValueError, match="run: "), locked(folder):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(folder):
        pass


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    def fail(folder):
        (folder / "a").touch()
        assert not (tmp_path / "new").exists()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "new") as folder:
        fail(folder)
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "new") as folder:
        (folder / "a").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["new", "new/a"]
    with pytest.raises(FileExistsError, match="new: exists; choose another name"), new_folder(tmp_path / "new"):
        pass
