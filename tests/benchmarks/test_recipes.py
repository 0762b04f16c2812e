"""Runs that compare recipes, with a few pictures and one pass over them."""

import json

import pytest
import recipes

from ssd.data.shapes import write_shapes
from ssd.training import choice

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "changes",
    [
        "network=ssdlite width=0.1",  # the data decides the size
        "held_out=0.4 network=ssd300 width=0.01",  # measured on the pictures that are held out
        "torchvision network=ssdlite320",
    ],
)
def test_a_run_is_measured_and_not_repeated(tmp_path, monkeypatch, capsys, changes):
    monkeypatch.setattr(choice, "SIZES", (224,))  # is not the size that a network has without data
    data = write_shapes(tmp_path / "shapes", 6, 2)
    command = ["recipes.py", str(data), "--out", str(tmp_path / "out"), "--device", "cpu", "--workers", "0"]
    one = [*command, "--one", f"{changes} epochs=1 batch_size=2", "0"]
    monkeypatch.setattr("sys.argv", one)
    recipes.main()
    (row,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert row["changes"] == f"{changes} epochs=1 batch_size=2"
    assert row["ap"].keys() == {"circle", "square", "triangle"}
    assert 0 <= row["mAP"] <= 1

    monkeypatch.setattr("sys.argv", [*command, "--runs", row["changes"], "--seeds", "0"])
    recipes.main()
    assert f"| {row['changes']} | 1 | {row['mAP']:.3f} |" in capsys.readouterr().out
