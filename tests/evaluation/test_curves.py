"""Precision over recall, drawn."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from evaluation_inputs import random_images
from PIL import Image
from pixels import has_color

from ssd.drawing import class_color
from ssd.evaluation.curves import plot_precision
from ssd.evaluation.voc import EvalResult, average_precision

RESULT = average_precision(*random_images(0), ("one", "two", "three", "none"))


def test_precision_of_every_class_in_its_colour(tmp_path: Path) -> None:
    def colours(result: EvalResult) -> list[bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot_precision(result, tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return [bool(has_color(pixels, class_color(label)).any()) for label in range(1, 5)]

    assert colours(RESULT) == [True, True, True, False]  # the fourth has no ground truth
    nothing = average_precision([], [], [f"class {i}" for i in range(80)])
    assert colours(nothing) == [False] * 4
    detections, targets = random_images(0)
    names = [f"_$^$ {i}" for i in range(80)]
    many = average_precision(detections, [{**t, "labels": t["labels"] * 26 + 1} for t in targets], names)
    assert colours(many) == [False] * 4  # those with ground truth are 27, 53 and 79


def test_a_file_is_whole_or_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    plot_precision(RESULT, path)
    whole = path.read_bytes()
    assert whole.startswith(b"\x89PNG")

    def half(self, target, **how) -> None:
        Path(target).write_bytes(b"half a pic")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", half)
    with pytest.raises(OSError, match=f"^{re.escape(str(path))}: disk full$"):
        plot_precision(RESULT, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"p.png": whole}
    with pytest.raises(FileNotFoundError, match="not there"):
        plot_precision(RESULT, tmp_path / "not there" / "p.png")
