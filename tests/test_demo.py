"""The demo's path from end to end, with a few pictures and a network as narrow as it gets."""

import pytest
import torch
from PIL import Image

import ssd.demo
from ssd.cli import main
from ssd.data import list_splits


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ssd.demo, "N_TRAIN", 8)
    monkeypatch.setattr(ssd.demo, "N_TEST", 3)


def test_training_on_a_cpu_takes_one_thread(small, tmp_path, monkeypatch):
    def train(*_, **__):
        raise ZeroDivisionError(torch.get_num_threads())

    before = torch.get_num_threads()
    monkeypatch.setattr(ssd.demo, "train", train)
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError, match=r"^1$"):
            ssd.demo.demo(tmp_path, device="cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_writes_trains_evaluates_and_draws(small, tmp_path, capsys):
    arguments = ["demo", "--out", str(tmp_path / "d"), "--epochs", "1", "--width", "0.01", "--device", "cpu"]
    assert main([*arguments, "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "mAP@0.5 (area)" in printed
    assert str(tmp_path / "d" / "held_out") in printed
    assert list_splits(tmp_path / "d" / "shapes") == ["test", "train"]
    drawn = sorted((tmp_path / "d" / "held_out").iterdir())
    assert [p.name for p in drawn] == ["test_00000.png", "test_00001.png", "test_00002.png"]
    with Image.open(drawn[0]) as picture:
        assert picture.width > 2 * 300
    assert (tmp_path / "d" / "run_1" / "curve.png").exists()

    pictures = {p: p.read_bytes() for p in (tmp_path / "d" / "shapes" / "JPEGImages").iterdir()}
    assert main([*arguments, "--workers", "0"]) == 0  # again: the same pictures, a new run
    assert (tmp_path / "d" / "run_2" / "best.pt").exists()
    assert all(p.read_bytes() == content for p, content in pictures.items())
