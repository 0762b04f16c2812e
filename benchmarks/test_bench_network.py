"""The network alone, a whole training step, inference, and the way from a picture file to detections.

.venv/bin/python -m pytest benchmarks/test_bench_network.py -k forward-8-images

The peer is torchvision's `ssd300_vgg16` with the same random weights and, so that results can be compared, with the
priors of ssd_ext. The class heads' biases are set so that some hundred candidates of an image pass 0.01, as after
training. `_bf16`: bfloat16 autocast and channels_last, for both, as `ssd detect` and `ssd train` use them where the
hardware has bfloat16.
"""

import tempfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from harness import Case, each, measure
from inputs import PRIORS_XYXY, generator, objects
from PIL import Image
from test_bench_detection import as_lists, unmatched
from test_bench_detection import check as check_detections
from torch import nn
from torchvision.io import decode_image
from torchvision.models.detection import ssd300_vgg16

from ssd.data import read_image
from ssd.detect import predict, predict_padded
from ssd.loss import MultiBoxLoss
from ssd.model import IMAGE_SIZE, SSD300
from ssd.precision import autocast, has_fast_bfloat16, place
from ssd.train import Settings, make_optimizer, train_step
from ssd.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform

CLASSES = 21
BACKGROUND = 9.5  # bias of the background class
NO_BF16 = "no bfloat16 arithmetic in this hardware"


class Priors(nn.Module):
    """Gives torchvision's SSD the priors of ssd_ext, in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", PRIORS_XYXY * IMAGE_SIZE)

    def forward(self, images, features):
        return [self.anchors] * len(images.tensors)


def build(classes: int) -> tuple[SSD300, nn.Module]:
    """Ours and torchvision's network with the same weights."""
    torch.manual_seed(0)
    ours = SSD300(classes)
    statistics = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}  # its own are those of Caffe's weights
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes, **statistics)
    theirs.anchor_generator = Priors()
    for name, parameter in ours.pred_convs.named_parameters():
        if name.startswith("cl_") and name.endswith(".bias"):
            nn.init.constant_(parameter.data.view(-1, classes)[:, 0], BACKGROUND)
    convs = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (ours, theirs)]
    n_heads = 12
    heads = convs[0][-n_heads:]  # offsets first here, classes first there
    convs[0][-n_heads:] = heads[n_heads // 2 :] + heads[: n_heads // 2]
    with torch.no_grad():
        theirs.backbone.scale_weight.copy_(ours.rescale_factors.flatten())
        for mine, its in zip(*convs, strict=True):
            its.weight.copy_(mine.weight)
            its.bias.copy_(mine.bias)
    return ours, theirs


@lru_cache(maxsize=2)
def networks(device: torch.device, bf16: bool, training: bool, classes: int = CLASSES) -> tuple[SSD300, nn.Module]:
    ours, theirs = (net.to(device).train(training) for net in build(classes))
    return (place(ours, device), place(theirs, device)) if bf16 else (ours, theirs)


def contenders(ours, theirs) -> dict:
    """Both in float32 and, where the hardware has it, in bfloat16."""
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = has_fast_bfloat16(here)
    return {
        "ssd_ext": partial(ours, False),
        "torchvision": partial(theirs, False),
        "ssd_ext_bf16": partial(ours, True) if bf16 else NO_BF16,
        "torchvision_bf16": partial(theirs, True) if bf16 else NO_BF16,
    }


def allowed(name: str, on: torch.Tensor) -> float:
    """float32 sums in another order, on a GPU of TF32 products (11 bits, 20 layers); bfloat16 has 8 bits."""
    return 0.1 if name.endswith("bf16") else 5e-3 if on.is_cuda else 1e-3


def check_tensors(name, got, expected) -> None:
    for a, b in zip(got, expected, strict=True):
        error, limit = float((a.float() - b).norm() / b.norm()), allowed(name, b)
        assert error < limit, f"{name}: off by {error:.2g} of the length, allowed: {limit}"


# ---------------------------------------------------------------------------------------------------- forward


def raw_predictions(net: nn.Module, bf16: bool, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets and logits of either network."""
    with autocast(x.device, bf16):
        x = place(x, x.device) if bf16 else x
        if isinstance(net, SSD300):
            return net(x)
        outputs = net.head(list(net.backbone(x).values()))
    return outputs["bbox_regression"], outputs["cls_logits"]


def forward(images: int) -> Case:
    @torch.inference_mode()
    def ours(bf16, x):
        return raw_predictions(networks(x.device, bf16, False)[0], bf16, x)

    @torch.inference_mode()
    def theirs(bf16, x):
        return raw_predictions(networks(x.device, bf16, False)[1], bf16, x)

    def inputs():
        return (torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator(8)),)

    every = contenders(ours, theirs)
    return Case(
        "forward", "SSD300 forward", {"images": images}, inputs, every, check_tensors, tuple(every), sets_up=True
    )


# ----------------------------------------------------------------------------------------------- training step


LR = 1e-30  # of next to nothing: the work of training, while the loss of every step stays the same


@lru_cache(maxsize=2)
def optimizers(device: torch.device, bf16: bool, classes: int) -> tuple[torch.optim.SGD, torch.optim.SGD]:
    settings = Settings(data=("none",), lr=LR)
    ours, theirs = networks(device, bf16, True, classes)
    options = {"lr": LR, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return make_optimizer(ours, settings), torch.optim.SGD(theirs.parameters(), **options)


def smooth_images(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 300, 300) in [0, 1], and the same normalised."""
    small = torch.rand(images, 3, 12, 12, generator=generator(9))
    x = nn.functional.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return x, (x - mean) / std


@dataclass(frozen=True)
class OnHost:
    """What a loader gives beside the images; it stays on the CPU, where the network may be elsewhere."""

    images: list[dict[str, torch.Tensor]]


def training_step(images: int, classes: int | None = None) -> Case:
    """Forward, loss with matching, backward, SGD; of 21 classes, or of as many as given."""
    sizes = {"images": images} | ({"classes": classes} if classes else {})
    classes = classes or CLASSES

    def ours(bf16, x, normalized, targets):
        net = networks(x.device, bf16, True, classes)[0]
        optimizer = optimizers(x.device, bf16, classes)[0]
        criterion = MultiBoxLoss(net.priors_cxcy, loc_loss="smooth_l1")
        plan = Settings(data=("none",), lr=LR, bf16=bf16)
        return train_step(net, criterion, optimizer, normalized, targets.images, plan, 1.0, x.device)

    def theirs(bf16, x, normalized, targets):
        net = networks(x.device, bf16, True, classes)[1]
        optimizer = optimizers(x.device, bf16, classes)[1]
        targets = [
            {"boxes": t["boxes"].to(x.device) * IMAGE_SIZE, "labels": t["labels"].to(x.device)} for t in targets.images
        ]
        with autocast(x.device, bf16):
            loss = sum(net(list(x), targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def inputs():
        boxes, labels = objects(images, classes, 1, 8)
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        return *smooth_images(images), OnHost(targets)

    def check(name, got, expected):
        limit = allowed(name, expected) / (2 if name.endswith("bf16") else 1)
        assert abs(float(got / expected) - 1) < limit, f"{name}: loss {float(got)} is not {float(expected)}"

    every = contenders(ours, theirs)
    return Case("end to end", "training step", sizes, inputs, every, check, (), every_thread_count=False, sets_up=True)


# --------------------------------------------------------------------------------------------------- inference


def inference(images: int, classes: int) -> Case:
    """From images on the device to detections there."""

    def ours(bf16, x, normalized):
        return predict_padded(networks(x.device, bf16, False, classes)[0], normalized, bf16=bf16)

    @torch.inference_mode()
    def theirs(bf16, x, normalized):
        with autocast(x.device, bf16):
            found = networks(x.device, bf16, False, classes)[1](list(x))
        return [(d["boxes"] / IMAGE_SIZE, d["scores"], d["labels"]) for d in found]

    def check(name, got, expected):
        """By the ten best of a few images, and of these by nine: torchvision clips boxes to the image before NMS.

        In float32, for the TF32 of a GPU reorders them.
        """
        assert len(as_lists(got) if isinstance(got, tuple) else got) == images
        if name == "torchvision":
            few = [x[:4].to(expected[0].device) for x in smooth_images(images)]
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found = zip(as_lists(ours(False, *few)), theirs(False, *few), strict=True)
                best = [[[x[:10] for x in image] for image in pair] for pair in found]
            wrong = [unmatched(*pair) for pair in best]  # of both
            assert max(wrong) <= 2, f"{name}: of ten detections {wrong} have no partner"

    every = contenders(ours, theirs)
    graphs = tuple(name for name in every if name.startswith("ssd_ext"))
    sizes = {"images": images, "classes": classes}
    return Case("end to end", "inference", sizes, lambda: smooth_images(images), every, check, graphs, sets_up=True)


# --------------------------------------------------------------------------------------- picture to detections


def pictures(folder: Path, n: int, width: int, height: int, suffix: str) -> list[str]:
    """Files of smooth noise."""
    paths = []
    for i in range(n):
        small = (torch.rand(12, 16, 3, generator=generator(i)) * 255).byte().numpy()
        paths.append(str(folder / f"{width}x{height}_{i}{suffix}"))
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def picture_to_detections(images: int) -> Case:
    """JPEG files of 500 x 375 pixels.

    Checked on files of 300 x 300, since torchvision resizes without antialiasing, and by the ten best detections of a
    picture, since it clips boxes to the image before NMS, which tells on those at its edge.
    """
    folder = Path(FOLDER.name)
    prepare = eval_transform(IMAGE_SIZE)

    def ours(bf16, paths, here):
        x = torch.stack([prepare(read_image(path)) for path in paths])
        found = predict(networks(here.device, bf16, False)[0], x, bf16=bf16)
        return [(boxes, scores, labels) for boxes, labels, scores in found]

    @torch.inference_mode()
    def theirs(bf16, paths, here):
        net = networks(here.device, bf16, False)[1]
        x = [decode_image(path, mode="RGB").to(here.device) / 255 for path in paths]
        with autocast(here.device, bf16):
            found = net(x)
        sizes = [torch.tensor([w, h, w, h], device=here.device) for h, w in (image.shape[-2:] for image in x)]
        return [(d["boxes"] / s, d["scores"], d["labels"]) for d, s in zip(found, sizes, strict=True)]

    def check(name, got, expected):
        assert len(got) == len(expected) == images
        if name == "torchvision" and images == 1:
            exact, here = pictures(folder, 3, IMAGE_SIZE, IMAGE_SIZE, ".png"), got[0][0].new_empty(0)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                best = [[[x[:10] for x in image] for image in way(False, exact, here)] for way in (theirs, ours)]
            check_detections(name, *best)

    def inputs():  # the empty tensor tells the device
        return pictures(folder, images, 500, 375, ".jpg"), torch.empty(0)

    every = contenders(ours, theirs)
    sizes, one = {"images": images}, images == 1
    return Case("end to end", "picture to detections", sizes, inputs, every, check, (), False, one, sets_up=True)


FOLDER = tempfile.TemporaryDirectory()  # of the pictures, until this process ends
CASES = [
    *(forward(images) for images in (1, 8)),
    training_step(4),
    *(picture_to_detections(images) for images in (1, 8)),
]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # of torchvision.io
@each(CASES)
def test_network(benchmark, case, contender, place):
    measure(benchmark, case, contender, place)
