"""What a run says at its end, and its sheet of the worst pictures."""

import json
import shlex

import pytest
import torch
from PIL import Image
from short_training import NARROW, run

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.networks.ssd300 import SSD300
from ssd.training.settings import Settings
from ssd.training.splits import open_sets
from ssd.training.summary import advice, report


@pytest.mark.parametrize(
    ("seen", "unseen", "mosaics", "expected"),
    [
        (0.99, 0.7, 0.0, "more pictures, or more varied samples (--mosaic 0.5, if objects are large), would help"),
        (0.99, 0.7, 0.5, "more pictures, or more varied ones, would help"),
        (0.8, 0.75, 0.0, "not learnt all training pictures yet; a new run with more --epochs may help"),
        (0.99, 0.95, 0.0, "would change little"),
        (float("nan"), 0.5, 0.0, "no objects were held out"),
    ],
)
def test_advice(seen, unseen, mosaics, expected):
    assert expected in advice(seen, unseen, mosaics)


def test_the_closing_lines_and_the_sheet(tmp_path):
    write_shapes(tmp_path / "data", 6, 2)
    torch.manual_seed(0)
    model = SSD300(4, width=0.01)
    settings = Settings((str(tmp_path / "data"),), held_out=0.4, bf16=False)
    sets = open_sets(settings)
    text, test, mAP_interval = report(model, sets, settings, tmp_path / "best.pt", workers=0)
    assert text.startswith("result on the split test, which is measured once:\n")
    assert f"{tmp_path / 'report.html'}: the report on split test, for a browser" in text
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert (numbers["mAP"], numbers["part"], numbers["n_pictures"]) == (test.mAP, "split test", 2)
    assert "mAP@0.5 (area)" in text
    low, high = numbers["mAP_interval"]
    assert (low, high) == mAP_interval
    assert 0 <= low <= high <= 1
    assert f"on other pictures like these {low:.3f} to {high:.3f} (95 % interval); few objects (" in text
    assert "weakest class: " in text
    assert f"{tmp_path / 'worst.png'}: the 2 worst of 2 pictures held out" in text
    assert test.n_truths == {name: sum(t["labels"].tolist().count(i) for _, t in sets.test)
                             for i, name in enumerate(sets.classes, 1)}  # fmt: skip
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.width == 2 * 800
    assert sets.train.dataset.transform is not None
    assert type(sets.train.dataset.transform).__name__ == "TrainTransform"  # still augmented


@pytest.mark.parametrize("part", ["test", "val", "held out"])
def test_the_command_of_the_report_repeats_it(part, tmp_path):
    data = tmp_path / "data"
    write_shapes(data, 6, 2)
    lists = data / "ImageSets" / "Main"
    if part == "held out":
        (lists / "test.txt").unlink()
    elif part == "val":
        (lists / "test.txt").rename(lists / "val.txt")
    # In bfloat16, other rounding is visible, such as that of a network whose batch norms are not fused.
    run(Settings((str(data),), held_out=0.4, epochs=1, bf16=True, **NARROW), tmp_path / "run")
    written = tmp_path / "run" / "report.json"
    first = json.loads(written.read_text())
    assert first["n_pictures"] == 2
    written.unlink()
    assert main([*shlex.split(first["command"])[1:], "--device", "cpu", "--workers", "0"]) == 0
    again = json.loads(written.read_text())
    assert first["calibration"]["expected_error"] > 0
    assert {name for name in first if again[name] != first[name]} <= {"date", "command", "part"}
