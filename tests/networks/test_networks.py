"""What all networks have in common: names, options, sizes, priors and outputs."""

import copy
import json

import pytest
import torch
from torch import nn

from ssd.networks import NETWORKS, Network, build_network, network_class
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD, OPTIONS
from ssd.networks.priors import PriorSpec, make_priors
from ssd.weights.backbone import load_backbone
from ssd_ext import DetectionOptions, postprocess_detections

pytestmark = pytest.mark.usefixtures("one_thread")

# Arguments with which each network is small. The second network of a name has another size.
SMALL = [
    ("ssd300", {"width": 0.05}),
    ("ssd512", {"width": 0.05, "batch_norm": True}),
    ("ssdlite320", {}),
    ("ssdlite", {"size": 224, "width": 0.1, "head_batch_norm": True}),
    ("ssdlite", {"size": 352, "width": 0.1, "priors": "caffe_coco"}),
    ("resnet34", {"size": 128, "head_batch_norm": True}),
    ("resnet50", {"size": 160}),
    ("timm:mobilenetv3_small_050", {"size": 160, "head_batch_norm": True}),
]


@pytest.fixture(scope="module", params=SMALL, ids=lambda case: f"{case[0]}-{case[1].get('size', '')}".strip("-"))
def case(request):
    name, options = request.param
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="no timm: pip install 'ssd-ext[timm]'")
    torch.manual_seed(0)
    model = build_network(name, 4, **options).eval()
    images = torch.randn(2, 3, model.input_size, model.input_size)
    with torch.no_grad():
        model.train()(images)  # gives batch norm statistics
        return name, model, images, model.eval()(images)


def test_all_networks_are_tested():
    assert {name.partition(":")[0] for name, _ in SMALL} == set(NETWORKS)
    assert all(name == kind.name for name, kind in NETWORKS.items())


def test_a_prediction_for_each_prior(case):
    _, model, _, (offsets, logits) = case
    assert offsets.shape == (2, len(model.priors_cxcy), 4)
    assert logits.shape == (2, len(model.priors_cxcy), 4)
    assert offsets.isfinite().all()
    assert logits.isfinite().all()
    spec = model.prior_spec
    assert len(model.priors_cxcy) == sum(n * n * k for n, k in zip(spec.maps, spec.boxes_per_cell, strict=True))
    assert torch.equal(model.priors_cxcy, make_priors(spec))
    with pytest.raises(ValueError, match=rf"\(B, 3, {model.input_size}, {model.input_size}\).*got \(2, 3, 100, 100\)"):
        model(torch.zeros(2, 3, 100, 100))


def test_images_must_be_floating_point(case):
    """Some networks would take pixels of 0..255, and find nothing right."""
    _, model, images, _ = case
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(ValueError, match=f"images must be floating-point, got {dtype}: divide pixels by 255, "):
            model(images.to(dtype))
    with pytest.raises(ValueError, match="images must be floating-point"):
        torch.compile(model, backend="eager")(images.to(torch.uint8))


def test_a_fused_network_predicts_the_same_without_batch_norm(case):
    name, model, images, expected = case
    fused = copy.deepcopy(model).fuse()
    with torch.no_grad():
        for ours, wanted in zip(fused(images), expected, strict=True):
            assert torch.allclose(ours, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, fused)]
    assert norms[1] < norms[0] if name.startswith("timm:") else norms[1] == 0
    assert not fused.training


def test_the_config_rebuilds_the_network(case):
    name, model, _, _ = case
    config = json.loads(json.dumps(model.config))  # plain values only
    again = build_network(name, **config)
    assert json.loads(json.dumps(again.config)) == config
    assert again.input_size == model.input_size
    assert torch.equal(again.priors_cxcy, model.priors_cxcy)
    again.load_state_dict(model.state_dict())
    with torch.device("meta"):
        bare = build_network(name, **config)
    bare = bare.to_empty(device="cpu").eval()
    bare.load_state_dict(model.state_dict())
    assert torch.equal(bare.priors_cxcy, model.priors_cxcy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_network_without_memory_takes_over_a_state_dict(case, dtype):
    name, model, images, _ = case
    model = copy.deepcopy(model).to(dtype)
    with torch.device("meta"):
        bare = nn.Sequential(build_network(name, **model.config)).eval()
        inside = build_network(name, **model.config).eval()
        inside.load_state_dict(model.state_dict(), assign=True)
    bare.load_state_dict({f"0.{key}": value for key, value in model.state_dict().items()}, assign=True)
    for again in (bare[0], inside):
        assert torch.equal(again.priors_cxcy, model.priors_cxcy)
        with torch.no_grad():
            for ours, expected in zip(again(images.to(dtype)), model(images.to(dtype)), strict=True):
                assert torch.equal(ours, expected)
    priors = model.priors_cxcy
    model.load_state_dict(bare[0].state_dict(), assign=True)
    assert model.priors_cxcy is priors  # only missing values are computed


def test_options_are_arguments(case):
    name, model, _, _ = case
    kind = network_class(name)
    assert model.name == name
    assert set(kind.options()) == set(OPTIONS) & set(model.config)
    assert ("size" in kind.options()) == (kind.sizes is not None)
    assert all(
        len(kind.layout(layout, model.prior_spec.maps).maps) == len(model.prior_spec.maps) for layout in kind.layouts
    )
    with pytest.raises(ValueError, match=f"the network {kind.name} takes .* got 7"):
        kind.check_size(7)
    for wrong in ({"input_std": (1, 1, 0)}, {"input_mean": (1, 1)}):
        with pytest.raises(ValueError, match="must be 3 numbers each"):
            build_network(name, 2, **wrong)
    with pytest.raises(ValueError, match=r"n_classes .*got 1"):
        build_network(name, 1)


STAGES = {"ssd300": 6, "ssd512": 6, "ssdlite320": 5, "ssdlite": 5, "resnet34": 4, "resnet50": 4}  # timm's have 5 here


def test_stages_follow_each_other(case):
    """Together they are the backbone, and the output of the first ones needs none of the later ones."""
    name, model, images, _ = case
    model = copy.deepcopy(model)
    stages = model.stages()
    assert len(stages) == STAGES.get(name, 5)
    found = [id(parameter) for stage in stages for parameter in stage]
    backbone = model.backbone.features if name.startswith("ssdlite") else model.base
    assert sorted(found) == sorted(map(id, backbone.parameters()))
    above = []  # layers of the frozen stages that get something to learn from below

    def look(layer, _, output):
        if any(not p.requires_grad for p in layer.parameters(recurse=False)) and output.requires_grad:
            above.append(layer)

    for layer in model.modules():
        layer.register_forward_hook(look)
    for stage in stages:
        for parameter in stage:
            parameter.requires_grad_(False)
        model(images)
        assert not above


def test_the_input_is_converted_to_that_of_the_weights(case):
    name, model, images, (_, logits) = case
    pixels = images * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    mean, std = (torch.tensor(model.config[key]).view(3, 1, 1) for key in ("input_mean", "input_std"))
    bytewise = build_network(name, **model.config | {"input_mean": (0, 0, 0), "input_std": (1, 1, 1)}).eval()
    bytewise.load_state_dict(dict(model.state_dict()))  # without its metadata, which names the normalisation
    with torch.no_grad():
        ours = (pixels - mean) / std  # what the network gets now, as an image of the other one
        ours = (ours - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
        torch.testing.assert_close(bytewise(ours)[1], logits, rtol=1e-3, atol=1e-3 * logits.abs().max().item())


def test_fx_can_trace_it(case):
    """The feature extraction of torchvision, for one, needs that."""
    _, model, images, (offsets, logits) = case
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(model)(images)
    assert torch.equal(traced[0], offsets)
    assert torch.equal(traced[1], logits)


def test_half_precision_keeps_the_priors(case):
    _, model, images, (_, logits) = case
    half = copy.deepcopy(model).bfloat16()
    assert torch.equal(half.priors_cxcy, model.priors_cxcy)
    with torch.no_grad():
        rounded = half(images.bfloat16())[1]
    assert rounded.dtype == torch.bfloat16
    assert (rounded - logits).norm() < 0.2 * logits.norm()  # bfloat16 rounds by 0.004 in each of up to 60 layers


def test_depthwise_convolutions_train_in_float32_on_a_cpu(case):
    """Their backward pass is slow in bfloat16; without autocast, and in evaluation, nothing changes."""
    name, model, images, _ = case
    model, seen = copy.deepcopy(model), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, _, output: seen.append((layer.groups > 1, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model.train()(images)
        trained = set(seen)
        seen.clear()
        assert model.eval()(images)[1].dtype == torch.bfloat16
    depthwise = name.startswith(("ssdlite", "timm:mobilenet"))
    assert trained == {(False, torch.bfloat16), *[(True, torch.float32)] * depthwise}
    assert {dtype for _, dtype in seen} == {torch.bfloat16}


def test_network_and_detection_in_one_program(case):
    _, model, images, _ = case

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return postprocess_detections(*self.model(images), self.model.priors_cxcy, DetectionOptions(0.2, 0.45, 50))

    detector = Detector().eval()
    exported = torch.export.export(detector, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    with torch.no_grad():
        for n in (1, 2):
            for got, expected in zip(exported.module()(images[:n]), detector(images[:n]), strict=True):
                torch.testing.assert_close(got, expected)


def test_a_name_that_no_network_has():
    for name in ("yolo", "timm", "timm:", "ssd300:small", ""):
        with pytest.raises(ValueError, match=rf"network must be one of ssd300, .*, timm:NAME, got '{name}'"):
            build_network(name, 2)


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ({"priors": "caffe_voc"}, {}, "priors"),
        ({"input_std": (1, 1, 1)}, {"input_mean": (0, 0, 0)}, "input_mean and input_std"),
    ],
)
def test_a_state_dict_of_another_layout_or_normalisation_is_refused(one, other, what):
    """It would fit, because these are not in it."""
    one, other = (build_network("ssd300", 3, width=0.01, **config) for config in (one, other))
    with pytest.raises(RuntimeError, match=f"the state dict is of a network with other {what}: build the network with"):
        other.load_state_dict(one.state_dict())
    other.load_state_dict(dict(one.state_dict()))  # whose metadata is gone


def test_a_state_dict_of_another_size_is_refused():
    one, other = (build_network("ssdlite", 3, size=size, width=0.1) for size in (224, 256))
    with pytest.raises(RuntimeError, match="the state dict is of a network with other size: build"):
        other.load_state_dict(one.state_dict())


def test_what_is_no_batch_of_images_is_named(case):
    _, model, images, _ = case
    with pytest.raises(TypeError, match=r"a tensor \(B, 3, \d+, \d+\), got list: .*torch\.stack; ssd\.Detector"):
        model(list(images))
    with pytest.raises(ValueError, match=r"images must be torch\.float32, as the .*, got torch\.float64"):
        model(images.double())
    offsets, _ = copy.deepcopy(model).double()(images.double())
    assert offsets.dtype == torch.float64
    torch.compile(model, backend="eager", fullgraph=True)(images)


@pytest.mark.parametrize("n_classes", [["cat", "dog"], 3.0, "3"])
def test_number_of_classes_is_whole(n_classes):
    with pytest.raises(TypeError, match=r"n_classes must be a whole number, that of the classes \+ 1, got "):
        build_network("ssdlite", n_classes)


def test_a_network_of_ones_own_says_what_it_lacks():
    class Bare(Network):
        name, input_size, layouts = "bare", 64, ("square",)

        def __init__(self, with_priors):
            super().__init__(2)
            if with_priors:
                self.set_priors(PriorSpec((0.5,), (0.6,), ((2.0,),), (1.0,), (1,)), (1,))

    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="Bare has no priors: its constructor must call set_priors"):
        Bare(False)(images)
    with pytest.raises(NotImplementedError, match=r"Bare must define layout, which returns .* priors 'square'"):
        Bare(True).all_layouts()
    with pytest.raises(NotImplementedError, match="Bare must define predict, which returns offsets and class logits"):
        Bare(True)(images)
    assert Bare(True).stages() == []
    with pytest.raises(ValueError, match="there are no ImageNet weights for the network bare"):
        load_backbone(Bare(True))
    with pytest.raises(ValueError, match=r"network must be one of .*, got <class .*Bare'>; give the name of the class"):
        build_network(Bare, 2)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_jit_script_is_refused():
    model = torch.nn.Sequential(build_network("ssdlite", 3, size=224, width=0.1))
    with pytest.raises(TypeError, match=r"torch\.jit\.script does not take networks of ssd: use torch\.jit\.trace"):
        torch.jit.script(model)
