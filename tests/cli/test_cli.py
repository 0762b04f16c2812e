"""The command line as a whole."""

import os
import subprocess
import sys

import pytest
from own_process import PATHS

from ssd.cli import main


@pytest.mark.parametrize("command", ["train", "eval", "detect", "export", "convert", "demo", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: ssd" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, 1000), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "passive"}, 0)],
    ids=["default", "count", "policy"],
)
def test_waiting_threads_soon_sleep(environment, count):
    """The variable is set before torch reads it; what users have set is kept."""
    done = run_ssd("info", OMP_DISPLAY_ENV="verbose", **environment)
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr
