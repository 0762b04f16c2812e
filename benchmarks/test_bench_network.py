"""The network alone, a whole training step, and the way from a picture file to detections.

.venv/bin/python -m pytest benchmarks/test_bench_network.py -k forward-8-images

The peer is torchvision's `ssd300_vgg16` with the same random weights and, so that results can be compared, with the
priors of ssd_ext. The class heads' biases are set so that some hundred candidates of an image pass 0.01, as after
training. `_bf16`: bfloat16 autocast and channels_last, for both, as `ssd detect` and `ssd train` use them where the
hardware has bfloat16.
"""

import tempfile
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from harness import Case, each, measure
from inputs import PRIORS_XYXY, generator, objects
from PIL import Image
from test_bench_detection import check as check_detections
from torch import nn
from torchvision.io import decode_image
from torchvision.models.detection import ssd300_vgg16

from ssd.data import read_image
from ssd.detect import predict
from ssd.loss import MultiBoxLoss
from ssd.model import IMAGE_SIZE, SSD300
from ssd.precision import autocast, has_fast_bfloat16, place
from ssd.train import Settings, make_optimizer, train_step
from ssd.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform

CLASSES = 21
BACKGROUND = 9.5  # bias of the background class
NO_BF16 = "no bfloat16 arithmetic in this hardware"
TRAINING_IMAGES = 8 if torch.cuda.is_available() else 4


class Priors(nn.Module):
    """Gives torchvision's SSD the priors of ssd_ext, in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", PRIORS_XYXY * IMAGE_SIZE)

    def forward(self, images, features):
        return [self.anchors] * len(images.tensors)


def build() -> tuple[SSD300, nn.Module]:
    """Ours and torchvision's network with the same weights."""
    torch.manual_seed(0)
    ours = SSD300(CLASSES)
    statistics = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}  # its own are those of Caffe's weights
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES, **statistics)
    theirs.anchor_generator = Priors()
    for name, parameter in ours.pred_convs.named_parameters():
        if name.startswith("cl_") and name.endswith(".bias"):
            nn.init.constant_(parameter.data.view(-1, CLASSES)[:, 0], BACKGROUND)
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
def networks(device: torch.device, bf16: bool, training: bool) -> tuple[SSD300, nn.Module]:
    ours, theirs = (net.to(device).train(training) for net in build())
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


def check_tensors(name, got, expected) -> None:
    """float32 sums in another order; bfloat16 has 8 bits and 20 layers."""
    limit = 0.1 if name.endswith("bf16") else 1e-3
    for a, b in zip(got, expected, strict=True):
        error = float((a.float() - b).norm() / b.norm())
        assert error < limit, f"{name}: off by {error:.2g} of the length, allowed: {limit}"


# ---------------------------------------------------------------------------------------------------- forward


def forward(images: int) -> Case:
    @torch.inference_mode()
    def ours(bf16, x):
        with autocast(x.device, bf16):
            return networks(x.device, bf16, False)[0](place(x, x.device) if bf16 else x)

    @torch.inference_mode()
    def theirs(bf16, x):
        net = networks(x.device, bf16, False)[1]
        with autocast(x.device, bf16):
            outputs = net.head(list(net.backbone(place(x, x.device) if bf16 else x).values()))
        return outputs["bbox_regression"], outputs["cls_logits"]

    def inputs():
        return (torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator(8)),)

    every = contenders(ours, theirs)
    return Case(
        "forward", "SSD300 forward", {"images": images}, inputs, every, check_tensors, tuple(every), sets_up=True
    )


# ----------------------------------------------------------------------------------------------- training step


def training_step(images: int) -> Case:
    """SGD at a learning rate of next to nothing: the work of training, while the loss of every step stays the same."""
    settings = Settings(data=("none",), lr=1e-30)

    @lru_cache(maxsize=2)
    def optimizers(device, bf16):
        ours, theirs = networks(device, bf16, True)
        options = {"lr": 1e-30, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
        return make_optimizer(ours, settings), torch.optim.SGD(theirs.parameters(), **options)

    def ours(bf16, x, normalized, boxes, labels):
        net = networks(x.device, bf16, True)[0]
        criterion = MultiBoxLoss(net.priors_cxcy, loc_loss="smooth_l1")
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        plan = Settings(data=("none",), lr=1e-30, bf16=bf16)
        return train_step(net, criterion, optimizers(x.device, bf16)[0], normalized, targets, plan, 1.0, x.device)

    def theirs(bf16, x, normalized, boxes, labels):
        net, optimizer = networks(x.device, bf16, True)[1], optimizers(x.device, bf16)[1]
        targets = [{"boxes": b * IMAGE_SIZE, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        with autocast(x.device, bf16):
            loss = sum(net(list(x), targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def inputs():
        x = torch.rand(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator(9))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return x, (x - mean) / std, *objects(images, CLASSES, 1, 8)

    def check(name, got, expected):
        limit = 0.05 if name.endswith("bf16") else 1e-3
        assert abs(float(got / expected) - 1) < limit, f"{name}: loss {float(got)} is not {float(expected)}"

    every = contenders(ours, theirs)
    sizes = {"images": images}
    return Case("end to end", "training step", sizes, inputs, every, check, (), every_thread_count=False, sets_up=True)


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
            best = ([[x[:10] for x in image] for image in way(False, exact, here)] for way in (theirs, ours))
            check_detections(name, *best)

    def inputs():  # the empty tensor tells the device
        return pictures(folder, images, 500, 375, ".jpg"), torch.empty(0)

    every = contenders(ours, theirs)
    sizes, one = {"images": images}, images == 1
    return Case("end to end", "picture to detections", sizes, inputs, every, check, (), False, one, sets_up=True)


FOLDER = tempfile.TemporaryDirectory()  # of the pictures, until this process ends
CASES = [
    *(forward(images) for images in (1, 8)),
    training_step(TRAINING_IMAGES),
    *(picture_to_detections(images) for images in (1, 8)),
]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # of torchvision.io
@each(CASES)
def test_network(benchmark, case, contender, place):
    measure(benchmark, case, contender, place)
