"""The network alone, a whole training step, inference, and from picture files to detections.

.venv/bin/python -m pytest benchmarks/test_bench_network.py -k forward-8-images

The peer is torchvision's `ssd300_vgg16` with the same random weights, and with the priors of ssd_ext, so that the
results can be compared; or its `ssdlite320_mobilenet_v3_large`, whose parameters and priors are those of ssdlite320.
The biases of the class heads are set so that a few hundred candidates of an image pass 0.01, as after training.
`_bf16`: bfloat16 autocast and channels_last in both, as in `ssd detect` and `ssd train` on hardware with bfloat16.
"""

import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from harness import Case, each
from inputs import PRIORS_XYXY, generator, objects
from PIL import Image
from test_bench_detection import as_lists, unmatched
from torch import Tensor, nn
from torchvision.io import decode_image
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large

from ssd.data.loader import Batch
from ssd.inference.detector import Detector
from ssd.inference.prediction import predict_padded
from ssd.loss import MultiBoxLoss
from ssd.networks import DEFAULT, Network, build_network, network_class
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD
from ssd.runtime.device import autocast, has_fast_bfloat16, pick_device, place
from ssd.training.optimizer import make_optimizer
from ssd.training.run import Settings, train_step

CLASSES = 21
BACKGROUND = 9.5  # bias of the background class
LR = 1e-30  # so small that the loss of every step stays the same
FOLDER = tempfile.TemporaryDirectory()  # the pictures; deleted when this process ends
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # from torchvision.io


class Images(NamedTuple):
    """A batch (B, 3, size, size): `normalized` is the input of ssd_ext, `raw`, in [0, 1], that of torchvision."""

    normalized: Tensor
    raw: Tensor | None = None


class How(NamedTuple):
    """Which networks a contender runs."""

    device: torch.device
    bf16: bool
    training: bool = False
    classes: int = CLASSES
    network: str = DEFAULT


class Priors(nn.Module):
    """Gives torchvision's SSD the priors of ssd_ext, in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", PRIORS_XYXY * side(DEFAULT))

    def forward(self, images, features):
        return [self.anchors] * len(images.tensors)


def side(network: str) -> int:
    """Side of a network's images in pixels."""
    return network_class(network).input_size


def build(classes: int, network: str) -> dict[str, nn.Module]:
    """Both networks with the same weights."""
    torch.manual_seed(0)
    ours = build_network(network, classes)
    if network == "ssdlite320":
        for _, last in ours.head["classification_head"].module_list:
            nn.init.constant_(last.bias.data.view(-1, classes)[:, 0], BACKGROUND)
        same = {"score_thresh": 0.01, "nms_thresh": 0.45, "detections_per_img": 200, "topk_candidates": 400}
        theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes, **same)
        theirs.load_state_dict(ours.state_dict())
        return {"ssd_ext": ours, "torchvision": theirs}
    statistics = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}  # its defaults belong to Caffe's weights
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes, **statistics)
    theirs.anchor_generator = Priors()
    for name, parameter in ours.pred_convs.named_parameters():
        if name.startswith("cl_") and name.endswith(".bias"):
            nn.init.constant_(parameter.data.view(-1, classes)[:, 0], BACKGROUND)
    convs = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (ours, theirs)]
    n_heads = 12
    heads = convs[0][-n_heads:]  # SSD300 has the offset heads first, torchvision the class heads
    convs[0][-n_heads:] = heads[n_heads // 2 :] + heads[: n_heads // 2]
    with torch.no_grad():
        theirs.backbone.scale_weight.copy_(ours.rescale_factors.flatten())
        for mine, its in zip(*convs, strict=True):
            its.weight.copy_(mine.weight)
            its.bias.copy_(mine.bias)
    return {"ssd_ext": ours, "torchvision": theirs}


@lru_cache(maxsize=2)
def networks(how: How) -> dict[str, nn.Module]:
    nets = {name: net.to(how.device).train(how.training) for name, net in build(how.classes, how.network).items()}
    return {name: place(net, how.device) for name, net in nets.items()} if how.bf16 else nets


def named(network: str) -> dict[str, str]:
    """The entry of a case's sizes for a network other than the default one."""
    return {} if network == DEFAULT else {"network": network}


def contenders(ours: Callable, theirs: Callable) -> dict[str, Callable | str]:
    """Both in float32 and, where the hardware has it, in bfloat16."""
    both = {"ssd_ext": ours, "torchvision": theirs}
    in_float32 = {name: partial(run, bf16=False) for name, run in both.items()}
    if not has_fast_bfloat16(pick_device()):
        return in_float32 | {f"{name}_bf16": "the hardware has no bfloat16 arithmetic" for name in both}
    return in_float32 | {f"{name}_bf16": partial(run, bf16=True) for name, run in both.items()}


def allowed(name: str, on: Tensor) -> float:
    """The tolerance: float32 sums are in another order, a GPU uses TF32 (11 bits, 20 layers), bfloat16 has 8 bits."""
    return 0.1 if name.endswith("bf16") else 5e-3 if on.is_cuda else 1e-3


def ten_best_differ(ours, theirs) -> list[int]:
    """How many of the ten best of both have no partner, per image. torchvision clips boxes before NMS: so only ten."""
    pairs = zip(as_lists(ours), as_lists(theirs), strict=True)
    return [unmatched(*([x[:10] for x in image] for image in pair)) for pair in pairs]


# ---------------------------------------------------------------------------------------------------- forward


def raw_predictions(net: nn.Module, images: Tensor, *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Offsets and logits of either network."""
    with autocast(images.device, bf16):
        images = place(images, images.device) if bf16 else images
        if isinstance(net, Network):
            return net(images)
        outputs = net.head(list(net.backbone(images).values()))
    return outputs["bbox_regression"], outputs["cls_logits"]


def forward(images: int) -> Case:
    @torch.inference_mode()
    def run(name, x, bf16):
        return raw_predictions(networks(How(x.normalized.device, bf16))[name], x.normalized, bf16=bf16)

    def inputs():
        return Images(torch.randn(images, 3, side(DEFAULT), side(DEFAULT), generator=generator(8)))

    def check(name, got, expected):
        for a, b in zip(got, expected, strict=True):
            error, limit = float((a.float() - b).norm() / b.norm()), allowed(name, b)
            assert error < limit, f"{name}: off by {error:.2g} of the length, allowed: {limit}"

    every = contenders(partial(run, "ssd_ext"), partial(run, "torchvision"))
    sizes, graphs = {"images": images}, tuple(every)
    return Case("forward", "SSD300 forward", sizes, inputs, every, check, graphs=graphs, sets_up=True)


# ----------------------------------------------------------------------------------------------- training step


@lru_cache(maxsize=2)
def optimizers(how: How) -> dict[str, torch.optim.SGD]:
    settings = Settings(data=("none",), network="ssd300", lr=LR)
    nets = networks(how)
    options = {"lr": LR, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    theirs = torch.optim.SGD(nets["torchvision"].parameters(), **options)
    return {"ssd_ext": make_optimizer(nets["ssd_ext"], settings), "torchvision": theirs}


def smooth_images(images: int, network: str = DEFAULT) -> Images:
    small = torch.rand(images, 3, 12, 12, generator=generator(9))
    raw = nn.functional.interpolate(small, size=side(network), mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return Images((raw - mean) / std, raw)


def training_step(images: int, classes: int | None = None, network: str = DEFAULT) -> Case:
    """Forward, loss with matching, backward, SGD; with 21 classes by default."""
    sizes = {"images": images} | ({"classes": classes} if classes else {}) | named(network)
    classes = classes or CLASSES
    truth = objects(images, classes, 1, 8)
    # On the CPU, as from a loader, even if the network is on a GPU.
    targets = [{"boxes": b, "labels": n} for b, n in zip(truth.box_lists, truth.label_lists, strict=True)]
    packed = truth.boxes, truth.labels, truth.labels < 0, truth.row_splits

    def ours(x, bf16):
        how = How(x.normalized.device, bf16, training=True, classes=classes, network=network)
        net, optimizer = networks(how)["ssd_ext"], optimizers(how)["ssd_ext"]
        criterion = MultiBoxLoss(net.priors_cxcy, loc_loss="smooth_l1")
        plan = Settings(data=("none",), network="ssd300", lr=LR, bf16=bf16)
        batch = Batch(x.normalized, None, *packed)
        return train_step(net, criterion, optimizer, batch, plan, 1.0, how.device)

    def theirs(x, bf16):
        how = How(x.raw.device, bf16, training=True, classes=classes, network=network)
        net, optimizer = networks(how)["torchvision"], optimizers(how)["torchvision"]
        there = [{name: t.to(how.device) for name, t in target.items()} for target in targets]
        there = [target | {"boxes": target["boxes"] * side(network)} for target in there]
        with autocast(how.device, bf16):
            loss = sum(net(list(x.raw), there).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def check(name, got, expected):
        # Batch norm in training multiplies the rounding errors of a small network.
        limit = allowed(name, expected) / (2 if name.endswith("bf16") else 1) * (1 if network == DEFAULT else 3)
        assert abs(float(got / expected) - 1) < limit, f"{name}: loss {float(got)} is not {float(expected)}"

    inputs, every = partial(smooth_images, images, network), contenders(ours, theirs)
    how = {"graphs": (), "one_thread": False, "sets_up": True}
    return Case("end to end", "training step", sizes, inputs, every, check, **how)


# --------------------------------------------------------------------------------------------------- inference


def inference(images: int, classes: int) -> Case:
    """From images on the device to detections there."""

    def ours(x, bf16):
        return predict_padded(networks(How(x.raw.device, bf16, classes=classes))["ssd_ext"], x.normalized, bf16=bf16)

    @torch.inference_mode()
    def theirs(x, bf16):
        with autocast(x.raw.device, bf16):
            found = networks(How(x.raw.device, bf16, classes=classes))["torchvision"](list(x.raw))
        return [(d["boxes"] / side(DEFAULT), d["labels"], d["scores"]) for d in found]

    def check(name, got, expected):
        """Nine of the ten best of a few images must agree, in float32, since TF32 on a GPU changes their order."""
        assert len(as_lists(got)) == images
        if name == "torchvision":
            few = Images(*(x[:4].to(expected[0].device) for x in smooth_images(images)))
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                wrong = ten_best_differ(ours(few, False), theirs(few, False))
            assert max(wrong) <= 2, f"{name}: of ten detections {wrong} have no partner"

    every = contenders(ours, theirs)
    graphs = tuple(name for name in every if name.startswith("ssd_ext"))
    sizes, inputs = {"images": images, "classes": classes}, partial(smooth_images, images)
    return Case("end to end", "inference", sizes, inputs, every, check, graphs=graphs, sets_up=True)


# --------------------------------------------------------------------------------------- picture to detections


class Pictures(NamedTuple):
    paths: list[str]
    here: Tensor = torch.empty(0)  # on the device to use


def pictures(n: int, width: int, height: int, suffix: str) -> Pictures:
    """Writes n picture files of smooth noise."""
    paths = []
    for i in range(n):
        small = (torch.rand(12, 16, 3, generator=generator(i)) * 255).byte().numpy()
        paths.append(str(Path(FOLDER.name) / f"{width}x{height}_{i}{suffix}"))
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return Pictures(paths)


def picture_to_detections(images: int) -> Case:
    """JPEG files of 500 x 375 pixels; checked on files of 300 x 300, since torchvision resizes without antialiasing."""
    names = [str(label) for label in range(1, CLASSES)]

    def ours(x, bf16):
        detector = Detector(networks(How(x.here.device, bf16))["ssd_ext"], names, bf16=bf16)
        return [(found.boxes, found.labels, found.scores) for found in detector(x.paths)]

    @torch.inference_mode()
    def theirs(x, bf16):
        batch = [decode_image(path, mode="RGB").to(x.here.device) / 255 for path in x.paths]
        with autocast(x.here.device, bf16):
            found = networks(How(x.here.device, bf16))["torchvision"](batch)
        return [(d["boxes"], d["labels"], d["scores"]) for d in found]

    def check(name, got, expected):
        assert len(got) == len(expected) == images
        if name == "torchvision" and images == 1:
            exact = pictures(3, side(DEFAULT), side(DEFAULT), ".png")._replace(here=got[0][0])
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                wrong = ten_best_differ(ours(exact, False), theirs(exact, False))
            assert not any(wrong), f"{name}: of ten detections {wrong} have no partner"

    inputs, every = partial(pictures, images, 500, 375, ".jpg"), contenders(ours, theirs)
    how = {"graphs": (), "one_thread": images == 1, "sets_up": True}
    return Case("end to end", "picture to detections", {"images": images}, inputs, every, check, **how)


CASES = [
    *(forward(images) for images in (1, 8)),
    training_step(4),
    training_step(8, network="ssdlite320"),
    *(picture_to_detections(images) for images in (1, 8)),
]
test_network = each(CASES)
