from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from ssd300_by_hand import BASE, EXTRAS, HEADS, written_out
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.detection import detect
from ssd.loss import MultiBoxLoss, pack_targets
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD
from ssd.networks.priors import PRESETS, PriorSpec, make_priors
from ssd.networks.ssd300 import SSD300
from ssd_ext import DetectionOptions, postprocess_detections

NARROW = 1 / 8


def tutorial_shapes(n_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tutorial checkpoint, in its order."""
    shapes: dict[str, tuple[int, ...]] = {"rescale_factors": (1, 512, 1, 1)}
    for part, convs in (("base", BASE), ("aux_convs", EXTRAS)):
        for name, (inputs, outputs) in convs.items():
            kernel = 1 if name in ("7", "8_1", "9_1", "10_1", "11_1") else 3
            shapes[f"{part}.conv{name}.weight"] = (outputs, inputs, kernel, kernel)
            shapes[f"{part}.conv{name}.bias"] = (outputs,)
    for head, outputs in (("loc", 4), ("cl", n_classes)):
        for name, (inputs, boxes) in HEADS.items():
            shapes[f"pred_convs.{head}_conv{name}.weight"] = (boxes * outputs, inputs, 3, 3)
            shapes[f"pred_convs.{head}_conv{name}.bias"] = (boxes * outputs,)
    return shapes


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 300, 300, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_state_dict_is_that_of_tutorial_checkpoints() -> None:
    with torch.device("meta"):
        state = SSD300(21).state_dict()
    assert [(name, tuple(value.shape)) for name, value in state.items()] == list(tutorial_shapes(21).items())
    assert len(state) == 71
    assert sum(value.numel() for value in state.values()) == 26_285_486


def test_initial_values() -> None:
    model = SSD300(3, width=NARROW)
    assert (model.rescale_factors == 20).all()
    assert all((value == 0).all() for name, value in model.named_parameters() if name.endswith(".bias"))
    for part in (model.aux_convs, model.pred_convs):
        for conv in part.children():
            receptive = conv.kernel_size[0] ** 2
            bound = (6 / ((conv.in_channels + conv.out_channels) * receptive)) ** 0.5
            assert conv.weight.abs().max() <= bound
            assert conv.weight.abs().max() > 0.9 * bound


def test_full_width_from_scratch_keeps_a_signal(images: Tensor) -> None:
    model = SSD300(21).eval()
    with torch.no_grad():
        offsets, logits = model(images[:1])
        _, conv7 = model.base(images[:1])
    assert offsets.shape == (1, 8732, 4)
    assert logits.shape == (1, 8732, 21)
    assert 0.3 < conv7.square().mean().sqrt() < 10  # the default init of Conv2d leaves less than 0.01
    assert 0.1 < logits.std() < 10


def test_forward_as_written_out(images: Tensor) -> None:
    model = SSD300(5, width=NARROW).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases and factors that are all different
    with torch.no_grad():
        outputs = model(images.double())
        expected = written_out(model.state_dict(), images.double(), 5)
    for output, value in zip(outputs, expected, strict=True):
        assert output.is_contiguous()
        torch.testing.assert_close(output, value, rtol=1e-9, atol=1e-12)


def test_predictions_line_up_with_priors() -> None:
    # A head that copies one input channel shows where each of its outputs ends up.
    model = SSD300(2, width=NARROW, priors="tutorial")
    for parameter in model.pred_convs.parameters():
        parameter.detach().zero_()
    for name, (_, boxes) in HEADS.items():
        weight = getattr(model.pred_convs, f"loc_conv{name}").weight.detach()
        for box in range(boxes):
            weight[4 * box + 0, 0, 1, 1] = 1  # offset 0: x of the cell
            weight[4 * box + 1, 1, 1, 1] = 1  # offset 1: y of the cell
        bias = getattr(model.pred_convs, f"loc_conv{name}").bias.detach()
        bias[2::4] = torch.arange(boxes, dtype=torch.float32)  # offset 2: index of the shape
    features = []
    for cells, (channels, _) in zip((38, 19, 10, 5, 3, 1), HEADS.values(), strict=True):
        centres = (torch.arange(cells) + 0.5) / cells
        x = torch.zeros(1, int(channels * NARROW), cells, cells)
        x[0, 0], x[0, 1] = centres[None, :], centres[:, None]
        features.append(x)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        offsets, _ = model.pred_convs(*(x.to(memory_format=memory_format) for x in features))
        torch.testing.assert_close(offsets[0, :, :2], model.priors_cxcy[:, :2])
        shapes = model.priors_cxcy[:, 2:]
        assert offsets[0, :4, 2].tolist() == [0, 1, 2, 3]
        for shape in range(4):  # all cells of conv4_3 have the same four shapes
            of_shape = shapes[:5776][offsets[0, :5776, 2] == shape]
            assert len(of_shape) == 38 * 38
            assert (of_shape == of_shape[0]).all()


def test_blank_image_is_finite() -> None:
    model = SSD300(3, width=NARROW)
    outputs = model(torch.zeros(1, 3, 300, 300))  # all biases are 0: every norm is 0
    (outputs[0].square().sum() + outputs[1].square().sum()).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_in_half_precision(dtype: torch.dtype) -> None:
    model = SSD300(3, width=NARROW)
    x = torch.rand(2, 64, 38, 38, generator=torch.Generator().manual_seed(1)) * 1000  # squares beyond 65504
    x[0, :, 3, 5] = 0
    expected = 20 * F.normalize(x, dim=1)
    half = x.to(dtype).requires_grad_()
    output = model._rescale(half)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert half.grad[:, :, :3].isfinite().all()
    # x rounded once and the result once: two half units in the last place of the type
    torch.testing.assert_close(output.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_half_precision_keeps_the_priors(images: Tensor) -> None:
    model = SSD300(3, width=NARROW).eval()
    priors = make_priors()
    for convert in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float):
        convert(model)
        assert torch.equal(model.priors_cxcy, priors)
    with torch.no_grad():
        expected = model(images)
        outputs = model.bfloat16()(images.bfloat16())
    for output, value in zip(outputs, expected, strict=True):
        assert output.dtype == torch.bfloat16
        assert (output - value).norm() < 0.03 * value.norm()  # bfloat16 rounds by 0.004, 23 times in a row


def test_autocast_and_channels_last(images: Tensor) -> None:
    model = SSD300(3, width=NARROW).eval()
    with torch.no_grad():
        expected = model(images)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        plain = last(images.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = last(images.to(memory_format=torch.channels_last))
    for value, same, rounded in zip(expected, plain, half, strict=True):
        torch.testing.assert_close(same, value, rtol=1e-3, atol=1e-4)  # float32 sums in another order
        assert same.is_contiguous()
        assert rounded.dtype == torch.bfloat16
        assert (rounded - value).norm() < 0.03 * value.norm()  # bfloat16 rounds by 0.004, 23 times in a row


@pytest.mark.parametrize("heads", [False, True])
def test_batch_norm(images: Tensor, heads: bool) -> None:
    plain, model = SSD300(3, width=NARROW), SSD300(3, width=NARROW, batch_norm=True, head_batch_norm=heads)
    convs = {f"base.conv{name}" for name in BASE} | {f"aux_convs.conv{name}" for name in EXTRAS}
    predicting = (
        {f"pred_convs.{head}_{source}" for head in ("loc", "cl") for source, _ in SSD300.sources} if heads else set()
    )
    expected = {name for name in plain.state_dict() if name.removesuffix(".bias") not in convs | predicting}
    for conv in sorted(convs | predicting):
        if conv in predicting:
            norm = conv.replace("pred_convs.", "pred_convs.bn_")
        else:
            norm = conv.replace("conv", "bn") if conv.startswith("base") else conv.replace(".conv", ".bn")
        for entry in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            expected.add(f"{norm}.{entry}")
    assert set(model.state_dict()) == expected

    before = copy.deepcopy(model.state_dict())
    offsets, logits = model.train()(images)
    (offsets.square().mean() + logits.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if "bn" in name)
    after = model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in after if name.endswith("running_var"))
    x = model.base.conv1_1(images)
    assert torch.allclose(after["base.bn1_1.running_mean"], 0.1 * x.mean((0, 2, 3)), atol=1e-6)


def test_width_scales_all_channels() -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in SSD300(21, width=0.3).state_dict().items()}
        assert SSD300(21, width=0.001).base.conv7.out_channels == 8
        assert SSD300(21, width=2).base.conv7.out_channels == 2048
    assert shapes["base.conv1_1.weight"] == (16, 3, 3, 3)  # 19.2 to a multiple of 8
    assert shapes["base.conv7.weight"] == (304, 304, 1, 1)  # 307.2
    assert shapes["aux_convs.conv9_1.weight"] == (40, 152, 1, 1)  # 38.4 and 153.6
    assert shapes["pred_convs.cl_conv4_3.weight"] == (84, 152, 3, 3)
    assert shapes["rescale_factors"] == (1, 152, 1, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    model = SSD300(2, width=NARROW, priors=name)
    assert torch.equal(model.priors_cxcy, make_priors(name))
    assert "priors_cxcy" not in model.state_dict()


def test_layout_of_your_own(images: Tensor) -> None:
    tutorial = PRESETS["tutorial"]
    spec = replace(tutorial, ratios=((2.0,), *tutorial.ratios[1:]))
    model = SSD300(3, width=NARROW, priors=spec).eval()
    with torch.no_grad():
        offsets, logits = model(images[:1])
    assert offsets.shape == model.priors_cxcy[None].shape == (1, 8732 - 38 * 38, 4)
    assert logits.shape == (1, 8732 - 38 * 38, 3)


@pytest.mark.parametrize("priors", ["caffe_voc", PRESETS["torchvision"], replace(PRESETS["tutorial"], clamp="none")])
def test_config_rebuilds_the_network(priors: str | PriorSpec) -> None:
    model = SSD300(3, width=NARROW, batch_norm=True, priors=priors)
    config = json.loads(json.dumps(model.config))  # nothing but plain values
    again = SSD300(**config)
    assert again.prior_spec == model.prior_spec
    assert torch.equal(again.priors_cxcy, model.priors_cxcy)
    assert json.loads(json.dumps(again.config)) == config
    again.load_state_dict(model.state_dict())


def test_what_no_state_dict_has_survives_the_meta_device() -> None:
    config = {"n_classes": 3, "width": NARROW, "input_std": (1, 1, 1)}
    model = SSD300(**config)
    with torch.device("meta"):
        other = SSD300(**config)
    other = other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    for name in ("priors_cxcy", "input_scale", "input_shift"):
        assert torch.equal(getattr(other, name), getattr(model, name))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_compile_fullgraph(images: Tensor, batch_norm: bool) -> None:
    model = SSD300(3, width=NARROW, batch_norm=batch_norm).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for output, expected in zip(compiled(images[:1]), model(images[:1]), strict=True):
            torch.testing.assert_close(output, expected)


def test_export_with_dynamic_batch(images: Tensor) -> None:
    model = SSD300(3, width=NARROW).eval()
    batch = {0: torch.export.Dim("batch", max=64)}
    exported = torch.export.export(model, (images,), dynamic_shapes=(batch,)).module()
    with torch.no_grad():
        for output, expected in zip(exported(images[:1]), model(images[:1]), strict=True):
            torch.testing.assert_close(output, expected)


class Detector(nn.Module):
    """Pictures to padded detections, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SSD300(3, width=NARROW)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        offsets, logits = self.model(images)
        return postprocess_detections(offsets, logits, self.model.priors_cxcy, DetectionOptions(0.2, 0.45, 50))


@torch.no_grad()
def test_network_and_detection_in_one_program(images: Tensor) -> None:
    detector = Detector().eval()
    expected = detector(images)
    assert expected[3].all()
    exported = torch.export.export(detector, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    compiled = torch.compile(detector, fullgraph=True, backend="aot_eager")
    for program in (exported.module(), compiled):
        for n in (1, 2):
            for ours, whole in zip(program(images[:n]), detector(images[:n]), strict=True):
                assert torch.equal(ours, whole)


def test_network_and_loss_in_one_graph(images: Tensor) -> None:
    model = SSD300(3, width=NARROW)
    criterion = MultiBoxLoss(model.priors_cxcy)
    targets = pack_targets([torch.tensor([[0.1, 0.2, 0.6, 0.9]])] * 2, [torch.tensor([1])] * 2, images.device)

    def loss(images: Tensor, *targets: Tensor) -> Tensor:
        return criterion(*model(images), *targets)

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        grads.append(torch.autograd.grad(function(images[:2], *targets), list(model.parameters())))
    torch.testing.assert_close(grads[1], grads[0])
    assert all(g.isfinite().all() for g in grads[0])
    assert sum(g.abs().sum() for g in grads[0]) > 0


def test_empty_batch() -> None:
    offsets, logits = SSD300(3, width=NARROW).eval()(torch.zeros(0, 3, 300, 300))
    assert offsets.shape == (0, 8732, 4)
    assert logits.shape == (0, 8732, 3)


def test_detect_objects_is_detect(images: Tensor) -> None:
    model = SSD300(3, width=NARROW).eval()
    with torch.no_grad():
        offsets, logits = model(images)
        detections = model.detect_objects(offsets, logits, 0.5, 0.4, 10)
        expected = detect(offsets, logits, model.priors_cxcy, 0.5, 0.4, 10)
    for lists, expected_lists in zip(detections, expected, strict=True):
        assert len(lists) == 2
        assert all(torch.equal(a, b) for a, b in zip(lists, expected_lists, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 512, 512), (2, 3, 300, 301), (2, 1, 300, 300), (3, 300, 300)])
def test_other_image_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, 300, 300\).*got \(" + ", ".join(map(str, shape))):
        SSD300(3, width=NARROW)(torch.zeros(shape))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"n_classes .*got 1"):
        SSD300(1)
    for width in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"width .*got {width}"):
            SSD300(3, width=width)
    with pytest.raises(ValueError, match="'voc'"):
        SSD300(3, priors="voc")
    with pytest.raises(ValueError, match=r"maps .*got \(64, 32, 16, 8, 4, 2\)"):
        SSD300(3, priors=replace(PRESETS["tutorial"], maps=(64, 32, 16, 8, 4, 2)))


def test_input_of_other_weights(images: Tensor) -> None:
    mean, std = (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 128)
    plain, other = SSD300(3, width=NARROW).eval(), SSD300(3, width=NARROW, input_mean=mean, input_std=std).eval()
    assert plain.input_scale is None
    assert other.state_dict().keys() == plain.state_dict().keys()
    other.load_state_dict(dict(plain.state_dict()))  # without its metadata, which names the normalisation
    ours, theirs = (
        [torch.tensor(values).view(3, 1, 1) for values in pair] for pair in ((IMAGENET_MEAN, IMAGENET_STD), (mean, std))
    )
    pixels = images * ours[1] + ours[0]
    with torch.no_grad():
        expected = plain((pixels - theirs[0]) / theirs[1])
        got = other(images)
        assert got[1].sub(plain(images)[1]).abs().max() > 1
        exported = torch.export.export(other, (images,)).module()(images)
        compiled = torch.compile(other, fullgraph=True, backend="eager")(images)
        half = copy.deepcopy(other).bfloat16()(images.bfloat16())
    for value, *same, rounded in zip(expected, got, exported, compiled, half, strict=True):
        for output in same:  # the mean is subtracted in two steps, from values of up to 1000
            torch.testing.assert_close(output, value, rtol=1e-4, atol=1e-5 * value.abs().max().item())
        assert (rounded - value).norm() < 0.03 * value.norm()  # bfloat16 rounds by 0.004, 23 times in a row
    for wrong in ({"input_std": (1, 1, 0)}, {"input_mean": (1, 1)}, {"input_std": (1, 1, float("nan"))}):
        with pytest.raises(ValueError, match="must be 3 numbers each"):
            SSD300(3, width=NARROW, **wrong)
