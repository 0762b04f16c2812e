"""`ssd convert`."""

import torch
from peer_networks import Tutorial, light_state

from ssd import load_weights
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
