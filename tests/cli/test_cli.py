"""The command line as a whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_process import PATHS

from ssd.cli import main


@pytest.mark.parametrize("command", ["train", "eval", "detect", "export", "convert", "demo", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: ssd" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "train d --out OUT",
        "eval d --weights w.pt --report OUT.html",
        "eval d --weights w.pt --curves OUT.png",
        "detect a.mp4 --weights w.pt --out OUT",
        "export w.pt --out OUT.pt2",
        "convert w.pt OUT.pt",
        "info d --report OUT.html",
        "demo --out OUT",
    ],
)
def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(arguments, tmp_path, monkeypatch, capsys):
    """Before data and weights are opened, which are not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssd.runtime.files.os.access", lambda path, _: Path(path) != Path())
    assert main(arguments.replace("OUT", "results").split()) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"ssd \S+: error: results\S*: nothing can be written to the folder \.; .+\n", said)
    assert list(tmp_path.iterdir()) == []


def test_an_error_shows_where_it_comes_from_if_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="no such"):
        main(["info", str(tmp_path / "none")])


def run_ssd(*arguments: str, out: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ssd", *arguments]
    variables = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | environment
    variables["PYTHONPATH"] = PATHS
    return subprocess.run(command, env=variables, stdout=out, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_has_ended_is_no_error(shapes, tmp_path):
    """As in `ssd info | head -1`; a command that has more to do than to print says that it stopped."""
    train = "train", str(shapes), "--out", str(tmp_path), "--network", "ssd300", "--width", "0.01", "--workers", "0"
    for command, said in ((("info", str(shapes)), ""), (train, "ssd train: stopped, because nobody reads its output")):
        read, write = os.pipe()
        os.close(read)
        done = run_ssd(*command, out=write)
        os.close(write)
        assert done.returncode == 141
        assert said in done.stderr
        assert "Broken pipe" not in done.stderr
        assert said or not done.stderr


def test_another_broken_pipe_is_an_error(shapes, monkeypatch, capfd):
    def fails(*_, **__):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("ssd.data.open_dataset", fails)
    assert main(["info", str(shapes)]) == 2
    assert capfd.readouterr() == ("", "ssd info: error: of a worker\n")


INTERRUPTED = """
import sys
module, *sys.argv[1:] = sys.argv[1:]

class CtrlC:
    def find_spec(self, name, *_):
        if name == module:
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
from ssd.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("torch", "info", "ssd: interrupted\n"),
        ("ssd.export", "export w.pt", "ssd: interrupted\n"),  # for its flags
        ("ssd.weights", "convert w.pt o.pt", "ssd convert: interrupted\n"),
    ],
)
def test_ctrl_c_during_imports_is_no_traceback(module, arguments, said, tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, module, *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, said)


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, 1000), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "passive"}, 0)],
    ids=["default", "count", "policy"],
)
def test_waiting_threads_soon_sleep(environment, count):
    """The variable is set before torch reads it; what users have set is kept."""
    done = run_ssd("info", OMP_DISPLAY_ENV="verbose", **environment)
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr
