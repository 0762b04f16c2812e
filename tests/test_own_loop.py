"""The script and the program of docs/own_loop.md, run in their order as they stand there."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.networks import NETWORKS
from ssd.weights.checkpoint import load_checkpoint

PAGE = (Path(__file__).parents[1] / "docs" / "own_loop.md").read_text()
SCRIPT, NETWORK = (
    [code for _, code in re.findall(r"^```(\w*)\n(.*?)^```", part, re.MULTILINE | re.DOTALL)]
    for part in PAGE.split("## A network of your own\n")
)
# Appended to the commands: one pass over the data, and no other processes.
SHORTER = {"train": "--epochs 1 --batch-size 8 --workers 0", "eval": "--workers 0"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def known_networks():
    before = dict(NETWORKS)
    yield before
    NETWORKS.clear()
    NETWORKS.update(before)


@pytest.mark.usefixtures("on_the_cpu")
def test_the_script_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "script"}
    for code in SCRIPT:
        exec(compile(code, "own_loop.md", "exec"), names)
    assert "mAP@0.5 (area)" in capsys.readouterr().out
    checkpoint, average = load_checkpoint("mine.pt"), names["average"].module
    assert (checkpoint["network"], checkpoint["classes"], checkpoint["epoch"]) == ("ssdlite", ["square", "bar"], 2)
    assert all(torch.equal(value, average.state_dict()[key]) for key, value in checkpoint["model"].items())
    assert torch.equal(average.priors_cxcy, names["network"].priors_cxcy)  # averaging does not move them
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        names["network"].train()(torch.zeros(1, 3, 224, 224))


@pytest.mark.usefixtures("on_the_cpu")
def test_the_program_is_ssd_with_one_more_network(tmp_path, monkeypatch, known_networks):
    monkeypatch.chdir(tmp_path)
    program, commands = NETWORK
    Path("tiny.py").write_text(program)
    write_shapes("my_pictures", 16, 4, (160, 120))
    write_shapes("photos", 2, 0, (160, 120))
    for line in commands.splitlines():
        words = shlex.split(line)
        if words[0] == "ssd":
            NETWORKS.clear()
            NETWORKS.update(known_networks)
            assert main(words[1:]) == 0, line
            continue
        monkeypatch.setattr(sys, "argv", [*words[1:], *shlex.split(SHORTER.get(words[2], ""))])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(words[1], run_name="__main__")
        assert ended.value.code == 0, line
    assert len(list(Path("found").glob("**/*.png"))) == len(list(Path("shipped").glob("**/*.png"))) == 2
