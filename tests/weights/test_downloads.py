"""Weights from torchvision: what is told where there is no internet, and that no code of a file is run."""

import urllib.error

import pytest
import torch
from torchvision.models.detection import SSD300_VGG16_Weights

from ssd import load_weights
from ssd.cli import main


def test_coco_without_internet(hub, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert main(["convert", "coco", str(hub.parent / "coco.pt")]) == 2
    error = capsys.readouterr().err
    assert f"{hub}: cannot be downloaded or read (<urlopen error no route to host>)" in error
    assert SSD300_VGG16_Weights.COCO_V1.url in error
    assert list(hub.parent.iterdir()) == []


def test_a_harmful_file_in_the_hub_is_not_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.write_bytes(b"\x80\x02cos\nmkdir\nX\x04\x00\x00\x00made\x85R.")
    with pytest.raises(OSError, match="cannot be downloaded or read"):
        load_weights("coco")
    assert not (tmp_path / "made").exists()
