"""Which network and which size a run chooses, and that every flag overrides it."""

import re

import pytest
import torch
from short_training import error_of, run
from small_datasets import add_picture, add_split

import ssd.runtime.device
from ssd.cli import main
from ssd.networks.ssd300 import SSD300
from ssd.networks.ssdlite import SSDLite
from ssd.runtime.packed import Packed
from ssd.training import choice, opening
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from ssd.weights.loading import Initial

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
NARROW = {"width": 0.1, "batch_size": 2, "epochs": 1}
ON_CPU = ["--device", "cpu", "--workers", "0"]


def chosen(device=CPU, **given):
    return choice.choose_network(Settings(("x",), **given), device)[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Pictures whose objects have less than a twentieth of their sides; those of the test list have half of them."""
    folder, g = tmp_path_factory.mktemp("tiny"), torch.Generator().manual_seed(0)
    names = [f"picture_{i}" for i in range(4)]
    for name in names:
        corners = torch.randint(1, 371, (30, 2), generator=g).tolist()
        add_picture(folder, name, [("dot", x, y, x + 18, y + 18) for x, y in corners], size=(400, 400))
    for i in range(2):
        add_picture(folder, f"large_{i}", [("dot", 10 + j, 10, 210, 210) for j in range(100)], size=(400, 400))
    add_split(folder, "train", *names)
    add_split(folder, "test", "large_0", "large_1")
    return str(folder)


@pytest.mark.parametrize(
    ("device", "given", "network", "why"),
    [
        ("cpu", {}, "ssdlite", "on a CPU, this light network is trained instead of ssd300"),
        ("cuda", {}, "ssd300", "on a GPU"),
        ("mps", {}, "ssd300", "on a GPU"),
        ("cpu", {"recipe": "tutorial"}, "ssd300", "the recipe tutorial is for comparisons with ssd300"),
        ("cpu", {"weights": "imagenet"}, "ssdlite", "on a CPU"),
        ("cpu", {"weights": "coco"}, "ssdlite320", "on a CPU"),
        ("cuda", {"weights": "coco"}, "ssd300", "on a GPU"),
        ("cpu", {"weights": "coco", "recipe": "tutorial"}, "ssd300", "the recipe tutorial"),
        ("cpu", {"weights": "coco", "width": 0.5}, "ssd300", "ssdlite320, which .* does not have --width"),
        ("cpu", {"width": 0.5, "size": 512, "priors": "caffe_coco"}, "ssdlite", "on a CPU"),
        ("cpu", {"batch_norm": False}, "ssd300", "ssdlite, which .* does not have --batch-norm"),
        ("cpu", {"batch_norm": True, "priors": "tutorial"}, "ssd300", "have --batch-norm and --priors tutorial"),
        ("cpu", {"network": "resnet34"}, "resnet34", None),
        ("cuda", {"network": "ssdlite"}, "ssdlite", None),
    ],
)
def test_the_network_is_chosen_by_device_recipe_weights_and_options(monkeypatch, device, given, network, why):
    monkeypatch.setattr(choice, "open_initial", lambda weights, network: Initial(network, weights))  # no download
    its = chosen(torch.device(device), **given)
    assert its.settings.network == network
    if why is None:
        assert its.notes == []
    else:
        size = its.settings.input_size
        flags = "--network or --size overrides" if network == "ssdlite" else "--network overrides"
        (line,) = its.notes
        assert re.fullmatch(rf"network {network} at {size} pixels: .*{why}.* \({flags} this\)", line)


def test_weights_in_a_file_decide_the_network(tmp_path):
    save_checkpoint(tmp_path / "detector.pt", SSD300(3, width=0.01), ["a", "b"])
    torch.save({"features.16.0.weight": torch.zeros(960, 160, 1, 1)}, tmp_path / "mobilenet.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg16.pth")
    for device in (CPU, GPU):
        detector, light, vgg = (
            chosen(device, weights=str(tmp_path / name)) for name in ("detector.pt", "mobilenet.pth", "vgg16.pth")
        )
        assert (detector.settings.network, detector.notes, detector.by_data) == ("ssd300", [], False)
        assert (light.settings.network, light.settings.priors, light.by_data) == ("ssdlite", "auto", True)
        assert (vgg.settings.network, vgg.settings.priors, vgg.by_data) == ("ssd300", None, False)
        assert "network ssd300 at 300 pixels: the weights are those of its backbone (" in vgg.notes[0]


def packed(boxes, labels):
    return Packed({"boxes": boxes, "labels": torch.tensor(labels)}, torch.tensor([0, len(labels)]))


def test_the_recipe_has_its_defaults_for_the_network_that_was_chosen():
    unknown = Settings(("x",))
    assert (unknown.network, unknown.batch_norm, unknown.head_batch_norm, unknown.priors) == (None,) * 4
    large, light = chosen(GPU).settings, chosen().settings
    assert (large.batch_norm, large.head_batch_norm, large.priors) == (True, True, "torchvision")
    assert (light.batch_norm, light.head_batch_norm, light.priors) == (None, True, "auto")
    assert [unknown.optimizer, large.optimizer, light.optimizer] == [None, "sgd", "adamw"]
    assert [unknown.lr, large.lr, light.lr] == [None, 0.03, 0.002]
    assert chosen(optimizer="sgd").settings.lr == 0.03
    assert chosen(GPU, batch_norm=False).settings.batch_norm is False
    assert chosen(priors="torchvision").settings.priors == "torchvision"
    assert chosen(weights="imagenet").settings.priors == "auto"
    assert chosen(weights="imagenet", network="ssdlite320").settings.priors == "auto"
    assert chosen(weights="imagenet", network="resnet34").settings.priors is None


def test_the_size_is_left_to_the_data_only_if_nothing_else_decides_it(tmp_path):
    assert chosen().by_data
    assert chosen(weights="imagenet").by_data
    assert chosen(GPU, network="ssdlite").by_data
    assert not chosen(size=512).by_data
    assert not chosen(network="ssdlite320").by_data
    assert not chosen(GPU).by_data
    save_checkpoint(tmp_path / "detector.pt", SSDLite(3, size=224, width=0.1), ["a", "b"])
    detector = chosen(weights=str(tmp_path / "detector.pt"))
    assert (detector.settings.size, detector.settings.priors, detector.by_data) == (224, None, False)
    with pytest.raises(ValueError, match="the network ssdlite takes 224 to 640 pixels a side, got 1000"):
        chosen(size=1000)


@pytest.mark.parametrize(
    ("side", "size", "fit"),
    [
        (0.2, 320, "its priors fit at least 100% of the objects of each class"),
        (0.07, 512, r"at 320 pixels, its priors would fit only ([0-7]\d|8[0-4])% of the objects of the class small"),
        (0.05, 640, r"at 512 pixels, its priors would fit only ([0-7]\d|8[0-4])% of the objects of the class small"),
        (
            0.02,
            640,
            r"at 512 pixels, its priors would fit only [0-4]?\d% of the objects of the class small, "
            r"and at 640, the largest size that is tried, they fit [0-7]?\d% of the class small",
        ),
    ],
)
def test_the_size_is_the_smallest_at_which_the_priors_fit(side, size, fit):
    centres = 0.05 + 0.9 * torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    small, large = (torch.cat([centres - side / 2, centres + side / 2], 1) for side in (side, 0.3))
    # Of all objects, the priors fit enough at any size: the rarest class decides.
    objects = packed(torch.cat([large] * 9 + [small]), [1] * 2700 + [2] * 300)
    its = choice.choose_size(chosen(), objects, ("large", "small"))
    assert its.settings.size == size
    assert re.search(rf"ssd300; {fit} \(--network or --size overrides this\)", its.notes[0])


def test_a_class_with_few_objects_does_not_decide_the_size():
    large, small = torch.tensor([[0.2, 0.2, 0.5, 0.5]]), torch.tensor([[0.4, 0.4, 0.41, 0.41]])

    def size(n):
        objects = packed(torch.cat([large.repeat(50, 1), small.repeat(n, 1)]), [1] * 50 + [2] * n)
        return choice.choose_size(chosen(), objects, ("large", "small")).settings.size

    assert (size(9), size(10)) == (320, 640)
    objects = packed(torch.cat([large.repeat(50, 1), small]), [1] * 50 + [2])
    (line,) = choice.choose_size(chosen(), objects, ("large", "small")).notes
    assert "100% of the objects of each class with 10 objects or more (" in line
    assert choice.choose_size(chosen(), packed(small, [1]), ("small",)).settings.size == 640  # there is no other class


def test_the_size_of_a_network_that_was_named():
    objects = packed(torch.tensor([[0.2, 0.2, 0.5, 0.5]]).repeat(9, 1), [1] * 9)
    (line,) = choice.choose_size(chosen(GPU, network="ssdlite"), objects, ("it",)).notes
    assert line == (
        "network ssdlite at 320 pixels: its priors fit at least 100% of the objects of each class (--size overrides "
        "this)"
    )


def test_data_without_objects_need_no_large_size():
    assert choice.choose_size(chosen(), packed(torch.zeros(0, 4), []), ()).settings.size == 320


def test_the_fit_is_that_of_the_priors_that_the_run_will_have():
    objects = packed(torch.tensor([[0.40, 0.40, 0.48, 0.48]]).repeat(9, 1), [1] * 9), ["it"]
    assert choice.choose_size(chosen(), *objects).settings.size == 320
    fixed = choice.choose_size(chosen(priors="torchvision"), *objects)  # no side of this layout is below 0.2
    assert (fixed.settings.size, fixed.settings.priors) == (640, "torchvision")
    low = choice.choose_size(chosen(priors="torchvision", loss={"threshold": 0.1}), *objects)
    assert low.settings.size == 320


def test_only_light_networks_from_random_weights_may_get_mosaics():
    assert [its.settings.mosaic for its in (chosen(), chosen(GPU, network="ssdlite320"))] == [None, None]
    others = chosen(GPU), chosen(network="resnet34"), chosen(recipe="tutorial"), chosen(weights="imagenet")
    assert [its.settings.mosaic for its in others] == [0.0] * 4
    assert chosen(GPU, mosaic=0.2).settings.mosaic == 0.2


@pytest.mark.parametrize(
    ("side", "given", "mosaic"), [(0.4, None, 0.5), (0.06, None, 0.0), (0.4, 0.0, 0.0), (0.06, 0.2, 0.2)]
)
@pytest.mark.parametrize("size", [None, 320])
def test_mosaics_need_objects_that_fit_at_half_their_size(size, side, given, mosaic):
    centres = side / 2 + (1 - side) * torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    objects = packed(torch.cat([centres - side / 2, centres + side / 2], 1), [1] * 300)
    its = choice.fit_to_data(chosen(size=size, mosaic=given), objects, ("it",))
    assert its.settings.mosaic == mosaic
    lines = [line for line in its.notes if line.startswith("mosaic")]
    start = r"0\.5: the priors fit" if mosaic else "0: the priors fit only"
    expected = [rf"mosaic {start} \d+% of the objects at half their size \(--mosaic overrides this\)"]
    assert len(lines) == (given is None)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines, strict=False))
    assert not its.waits


def test_the_priors_are_fitted_once(monkeypatch):
    objects = packed(torch.tensor([[0.2, 0.2, 0.5, 0.5]]).repeat(9, 1), [1] * 9)
    fits, fit_priors = [], choice.fit_priors
    monkeypatch.setattr(choice, "fit_priors", lambda *given: fits.append(fit_priors(*given)) or fits[-1])
    its = choice.fit_to_data(chosen(), objects, ("it",))
    assert fits == [its.priors]


def test_a_run_chooses_says_why_and_keeps_it_when_it_is_resumed(tiny, tmp_path, monkeypatch, capsys):
    out, command = tmp_path / "run", ["train", tiny, *ON_CPU, "--resume", "auto"]
    command += ["--width", "0.1", "--batch-size", "2", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("network ")]
    assert line.startswith("network ssdlite at 640 pixels: on a CPU, this light network is trained instead of ssd300; ")
    assert printed.index(line) < printed.index("recipe scratch: network ssdlite, size 640, augment mild, priors auto")
    saved = load_checkpoint(out / "last.pt")
    assert (saved["network"], saved["config"]["size"], saved["config"]["width"]) == ("ssdlite", 640, 0.1)
    assert (saved["settings"]["network"], saved["settings"]["size"]) == ("ssdlite", 640)

    monkeypatch.setattr(opening, "choose_network", None)
    monkeypatch.setattr(opening, "open_chosen", None)
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "network ssdlite at" not in again
    assert "recipe scratch: network ssdlite, size 640, " in again
    assert main([*command, "--network", "ssdlite", "--size", "640"]) == 0
    assert "network is ssdlite in the run, but ssd300 was" in error_of(capsys, *command, "--network", "ssd300")
    assert run(Settings((tiny,), **NARROW), out, resume="auto")["loss"] == saved["history"]["loss"]


def test_a_call_chooses_too_and_a_setting_overrides_it(shapes, tmp_path, capsys):
    def run(settings, out):
        train(settings, out, device="cpu", workers=0)

    run(Settings((shapes,), **NARROW), tmp_path / "light")
    assert "network ssdlite at 320 pixels: " in capsys.readouterr().out
    run(Settings((shapes,), network="ssd300", **NARROW | {"width": 0.01}), tmp_path / "named")
    assert "overrides this" not in capsys.readouterr().out
    run(Settings((shapes,), batch_norm=True, **NARROW | {"width": 0.01}), tmp_path / "option")
    assert "does not have --batch-norm (--network overrides this)" in capsys.readouterr().out
    states = [load_checkpoint(tmp_path / name / "last.pt") for name in ("light", "named", "option")]
    assert [state["network"] for state in states] == ["ssdlite", "ssd300", "ssd300"]
    assert isinstance(states[0]["config"]["priors"], dict)  # fitted
    assert states[1]["config"]["batch_norm"]
    assert states[1]["config"]["priors"] == "torchvision"


def test_info_shows_what_training_would_choose(tiny, tmp_path, monkeypatch, capsys):
    """By the objects to train on: those of the test list are large, and more."""
    on = [CPU]
    monkeypatch.setattr(ssd.runtime.device, "pick_device", lambda name=None: on[0])

    def info(*arguments):
        assert main(["info", *arguments]) == 0
        printed = capsys.readouterr().out
        lines = [line for line in printed.splitlines() if line.startswith("network ")]
        return lines, int(re.search(r"in pixels of the (\d+) x", printed)[1])

    lines, size = info(tiny)
    assert size == 640
    assert "network ssdlite at 640 pixels: on a CPU" in lines[0]
    assert info(tiny, "--size", "512")[1] == 512
    lines, size = info(tiny, "--network", "ssdlite")
    assert size == 640
    assert "network ssdlite at 640 pixels: at 512 pixels, its priors" in lines[0]
    assert info(tiny, "--network", "ssdlite320") == ([], 320)
    for name in ("train_a", "train_b"):  # training would ask which split is meant
        add_picture(tmp_path, "a", [("x", 10, 10, 200, 200)], size=(400, 400))
        add_split(tmp_path, name, "a")
    assert info(str(tmp_path))[1] == 320
    on[0] = GPU
    lines, size = info(tiny)
    assert size == 300
    assert "network ssd300 at 300 pixels: on a GPU" in lines[0]
