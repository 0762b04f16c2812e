"""SSD512: its layers and priors by the definitions of Caffe, and weights of other projects."""

from math import sqrt

import pytest
import torch
from peer_networks import MEAN, Lufficc, SsdPytorch
from torch import nn

from ssd import load_weights
from ssd.data.colour import to_input
from ssd.networks.priors import make_priors
from ssd.networks.ssd300 import SSD300
from ssd.networks.ssd512 import SSD512

pytestmark = pytest.mark.usefixtures("one_thread")

MAPS = (64, 32, 16, 8, 4, 2, 1)
STRIDES = (8, 16, 32, 64, 128, 256, 512)


@pytest.mark.parametrize(("name", "first", "smallest"), [("caffe_coco", 4, 10), ("caffe_voc", 7, 15)])
def test_priors_by_the_rule_of_caffe(name, first, smallest):
    """In per cent of the image: the first map has a side of its own, the others grow by equal steps to 90 %."""
    step = (90 - smallest) // 5
    percent = [first, *range(smallest, 91, step)]
    following = [*percent[1:], 90 + step]
    rows = []
    for k, cells in enumerate(MAPS):
        small, extra = 512 * percent[k] / 100, sqrt(512 * percent[k] / 100 * 512 * following[k] / 100)
        for row in range(cells):
            for column in range(cells):
                centre = [(column + 0.5) * STRIDES[k] / 512, (row + 0.5) * STRIDES[k] / 512]
                rows += [[*centre, small / 512, small / 512], [*centre, extra / 512, extra / 512]]
                for ratio in (2,) if k in (0, 5, 6) else (2, 3):
                    wide, narrow = small / 512 * sqrt(ratio), small / 512 / sqrt(ratio)
                    rows += [[*centre, wide, narrow], [*centre, narrow, wide]]
    expected = torch.tensor(rows, dtype=torch.float64).clamp(0, 1).float()
    priors = make_priors(SSD512.layout(name, MAPS))
    assert priors.shape == (24564, 4)  # section 3.3 of the paper
    torch.testing.assert_close(priors, expected, rtol=1.2e-7, atol=1e-8)  # the last bit of float32


def test_it_is_ssd300_with_a_seventh_map():
    with torch.device("meta"):
        small, large = SSD300(21).state_dict(), SSD512(21).state_dict()
    added = {name.rpartition(".")[0] for name in large.keys() - small.keys()}
    heads = {f"pred_convs.{head}_conv12_2" for head in ("loc", "cl")}
    assert added == {"aux_convs.conv12_1", "aux_convs.conv12_2"} | heads
    assert large["aux_convs.conv12_2.weight"].shape == (256, 128, 4, 4)
    changed = {name for name, value in small.items() if large[name].shape != value.shape}
    assert {name.rpartition(".")[0] for name in changed} == {f"pred_convs.{head}_conv10_2" for head in ("loc", "cl")}


@pytest.fixture(scope="module", params=[SsdPytorch, Lufficc])
def peer(request, tmp_path_factory):
    """The network of another project with random weights, its file, and what it predicts for a picture."""
    torch.manual_seed(0)
    network, path = request.param(21, size=512), tmp_path_factory.mktemp("peer") / "weights.pth"
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter.detach())
        elif parameter.mean() == 20:
            parameter.detach().add_(torch.randn_like(parameter))
        else:
            nn.init.normal_(parameter.detach(), std=0.1)
    next(network.parameters()).detach().div_(74)  # the deviation of the input
    picture = torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8)
    with torch.no_grad():
        outputs = network((picture - MEAN)[None])
    torch.save({"model": network.state_dict(), "iteration": 120000}, path)
    return path, picture, outputs


def test_networks_of_other_projects(peer):
    path, picture, expected = peer
    model, classes = load_weights(path, device="cpu")
    assert (model.name, len(classes), model.config["priors"]) == ("ssd512", 20, "caffe_voc")
    with torch.no_grad():
        got = model(to_input(picture[None]))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape[:2] == (1, 24564)
        assert 0.1 < theirs.std() < 10
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_priors_follow_from_the_number_of_classes(tmp_path):
    for n_classes, layout, name in ((81, "caffe_coco", "person"), (7, "caffe_voc", "class 1")):
        with torch.device("meta"):
            shapes = Lufficc(n_classes, size=300).state_dict()
        torch.save({n: torch.zeros(1).expand(v.shape) for n, v in shapes.items()}, tmp_path / "w.pth")
        model, classes = load_weights(tmp_path / "w.pth", device="cpu")
        assert (model.name, model.config["priors"], classes[0]) == ("ssd300", layout, name)
        assert len(classes) == n_classes - 1
