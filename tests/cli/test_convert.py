"""`ssd convert`."""

import torch
from detect_command import detect, write_untrained
from peer_networks import Tutorial, light_state

from ssd import Detector, load_weights
from ssd.cli import main


def test_convert(tmp_path, capsys):
    with torch.device("meta"):
        light = light_state(Tutorial(21))
    torch.save(light, tmp_path / "their.pth")
    names = [f"thing {i}" for i in range(20)]
    command = ["convert", str(tmp_path / "their.pth"), str(tmp_path / "ours.pt")]
    assert main([*command, "--classes", ",".join(names), "--bgr"]) == 0
    assert "20 classes: thing 0, thing 1" in capsys.readouterr().out
    model, classes = load_weights(tmp_path / "ours.pt", device="cpu")
    assert classes == tuple(names)
    assert torch.equal(model.base.conv1_1.weight, light["base.conv1_1.weight"].flip(1))
    before = (tmp_path / "ours.pt").stat()
    assert main(command) == 2
    assert "ours.pt: exists" in capsys.readouterr().err
    assert (tmp_path / "ours.pt").stat() == before
    torch.save({"x": 1}, tmp_path / "their.pth")
    assert main([*command[:-1], str(tmp_path / "new.pt")]) == 2
    assert "their.pth: neither" in capsys.readouterr().err
    assert not (tmp_path / "new.pt").exists()


def test_convert_to_safetensors_that_all_commands_read(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_untrained(tmp_path / "best.pt")
    assert main(["convert", "best.pt", "best.safetensors"]) == 0
    assert "wrote best.safetensors: 3 classes: circle, square, triangle" in capsys.readouterr().out
    pictures = sorted((shapes / "JPEGImages").iterdir())[:2]
    found = [Detector.load(f"best.{suffix}", device="cpu", bf16=False)(pictures) for suffix in ("pt", "safetensors")]
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) > 0
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.scores, theirs.scores)
    assert detect(pictures[0], weights="best.safetensors", out="found") == 0
    assert main(["eval", str(shapes), "--weights", "best.safetensors", "--device", "cpu", "--workers", "0"]) == 0
    assert main(["export", "best.safetensors", "--no-check"]) == 0
    assert (tmp_path / "best.pt2").exists()
    flags = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--no-bf16"]
    assert main(["train", str(shapes), "--out", "run", "--weights", "best.safetensors", *flags]) == 0
    assert main(["convert", "best.safetensors", "again.pt"]) == 0
    ours, theirs = (load_weights(name, device="cpu")[0].state_dict() for name in ("best.pt", "again.pt"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
