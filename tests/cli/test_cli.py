"""The command line as a whole."""

import pytest

from ssd.cli import main


@pytest.mark.parametrize("command", ["train", "eval", "detect", "export", "convert", "demo", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: ssd" in capsys.readouterr().out
