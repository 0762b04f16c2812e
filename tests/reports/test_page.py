"""What all reports share: checks of paths, numbers for JSON, boxes and pictures."""

import json

import numpy as np
import pytest

from ssd.reports import page


def test_only_files_of_the_same_command_are_replaced(tmp_path):
    page.write(tmp_path / "a.html", "<p>", page.head("ssd info --report", "ssd info x --report a.html"))
    page.check_paths(tmp_path / "a.html", "ssd info --report")
    with pytest.raises(FileExistsError, match=r"a\.json: would be replaced, and is not from ssd eval --report"):
        page.check_paths(tmp_path / "a.html", "ssd eval --report")
    assert json.loads((tmp_path / "a.json").read_text())["command"] == "ssd info x --report a.html"
    assert (tmp_path / "a.html").read_text() == "<p>"


def test_numbers_are_those_of_json():
    values = {"a": np.float32(0.5), "b": [np.int64(3), float("nan")], "c": ({"d": float("inf")},), "e": "x"}
    assert page.known(values) == {"a": 0.5, "b": [3, None], "c": [{"d": None}], "e": "x"}


def test_boxes_are_cut_at_the_edges_of_the_picture():
    assert page.within((4000, 1000), 400) == (400, 100)
    assert page.within((30, 20), 400) == (30, 20)
    assert page.within((4000, 1), 400) == (400, 1)
    assert page.drawn(np.array([-0.1, 0.25, 0.5, 2.0]), (100, 40)) == [0, 10, 50, 30]
    assert page.drawn(np.full(4, np.nan), (100, 40)) == [0, 0, 0, 0]
