"""SSD300 of other projects, in their own networks."""

import torch
from ssd300_by_hand import BASE, EXTRAS, HEADS, written_out
from torch import nn
from torch.nn import functional as F

from ssd.networks.priors import make_priors

MEAN = torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1)  # of Caffe's VGG16, red first


class Tutorial(nn.Module):
    """The tutorial's network by its names; pickled, it is SSD300 of a module `model`."""

    def __init__(self, n_classes):
        super().__init__()
        self.n_classes = n_classes
        self.rescale_factors = nn.Parameter(torch.full((1, 512, 1, 1), 20.0))
        for part, convs in (("base", BASE), ("aux_convs", EXTRAS)):
            self.add_module(part, nn.Module())
            for name, (inputs, outputs) in convs.items():
                kernel = 1 if name in ("7", "8_1", "9_1", "10_1", "11_1") else 3
                getattr(self, part).add_module(f"conv{name}", nn.Conv2d(inputs, outputs, kernel))
        self.base.pool1 = nn.MaxPool2d(2)
        self.pred_convs = nn.Module()
        for head, outputs in (("loc", 4), ("cl", n_classes)):
            for name, (inputs, boxes) in HEADS.items():
                self.pred_convs.add_module(f"{head}_conv{name}", nn.Conv2d(inputs, boxes * outputs, 3))
        self.priors_cxcy = make_priors()

    def forward(self, images):
        return written_out(self.state_dict(), images, self.n_classes)


class SsdPytorch(nn.Module):
    """amdegroot's network: layers by their number. For 512 pixels, as in its forks."""

    def __init__(self, n_classes, size=300):
        super().__init__()
        self.n_classes = n_classes
        vgg, inputs = [], 3
        for layer in (64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512):
            if isinstance(layer, str):
                vgg.append(nn.MaxPool2d(2, ceil_mode=layer == "C"))
            else:
                vgg += [nn.Conv2d(inputs, layer, 3, padding=1), nn.ReLU()]
                inputs = layer
        vgg += [nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU()]
        self.vgg = nn.ModuleList([*vgg, nn.Conv2d(1024, 1024, 1), nn.ReLU()])
        self.L2Norm = nn.Module()
        self.L2Norm.weight = nn.Parameter(torch.full((512,), 20.0))
        halving, heads = (3, 2, 1), list(HEADS.values())
        options = {"8_2": halving, "9_2": halving, "10_2": (3,), "11_2": (3,)}
        if size == 512:
            options |= {"10_2": halving, "11_2": halving}
            heads = [*heads[:4], (256, 6), (256, 4), (256, 4)]
        self.extras = nn.ModuleList(nn.Conv2d(*EXTRAS[name], *options.get(name, (1,))) for name in EXTRAS)
        if size == 512:
            self.extras += [nn.Conv2d(256, 128, 1), nn.Conv2d(128, 256, 4, padding=1)]
        for head, outputs in (("loc", 4), ("conf", n_classes)):
            convs = [nn.Conv2d(inputs, boxes * outputs, 3, padding=1) for inputs, boxes in heads]
            self.add_module(head, nn.ModuleList(convs))

    def forward(self, x):
        sources = []
        for i, layer in enumerate(self.vgg):
            x = layer(x)
            if i == 22:
                norm = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
                sources.append(self.L2Norm.weight.view(1, -1, 1, 1) * (x / norm))
        sources.append(x)
        for i, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            if i % 2:
                sources.append(x)
        loc, conf = (
            torch.cat([conv(x).permute(0, 2, 3, 1).flatten(1) for conv, x in zip(head, sources, strict=True)], dim=1)
            for head in (self.loc, self.conf)
        )
        return loc.view(len(loc), -1, 4), conf.view(len(conf), -1, self.n_classes)


class Lufficc(SsdPytorch):
    """lufficc's network: that of amdegroot under other names."""

    NAMES = (
        ("L2Norm.", "backbone.l2_norm."),
        ("vgg.", "backbone.vgg."),
        ("extras.", "backbone.extras."),
        ("loc.", "box_head.predictor.reg_headers."),
        ("conf.", "box_head.predictor.cls_headers."),
    )

    def state_dict(self):
        names = {
            name: new + name.removeprefix(old)
            for name in super().state_dict()
            for old, new in self.NAMES
            if name.startswith(old)
        }
        return {names[name]: value for name, value in super().state_dict().items()}


def light_state(network):
    """A state dict whose tensors are all different and share 22 MB."""
    pool = torch.randn(5_500_000, generator=torch.Generator().manual_seed(0), device="cpu")
    shapes = network.state_dict()
    return {n: pool[i * 999 :][: like.numel()].view(like.shape) for i, (n, like) in enumerate(shapes.items())}


def constant_state(builder):
    """The state dict of a network with one repeated number for each entry: a file of some kilobytes."""
    with torch.device("meta"):
        shapes = builder().state_dict()
    return {
        name: (torch.tensor(0) if like.ndim == 0 else torch.tensor(0.001 * (i + 1))).expand(like.shape)
        for i, (name, like) in enumerate(shapes.items())
    }
