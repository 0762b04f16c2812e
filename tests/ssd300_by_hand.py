"""SSD300 layer by layer, from a state dict."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BASE = {
    **{"1_1": (3, 64), "1_2": (64, 64), "2_1": (64, 128), "2_2": (128, 128)},
    **{"3_1": (128, 256), "3_2": (256, 256), "3_3": (256, 256)},
    **{"4_1": (256, 512), "4_2": (512, 512), "4_3": (512, 512)},
    **{"5_1": (512, 512), "5_2": (512, 512), "5_3": (512, 512)},
    **{"6": (512, 1024), "7": (1024, 1024)},
}
EXTRAS = {
    **{"8_1": (1024, 256), "8_2": (256, 512), "9_1": (512, 128), "9_2": (128, 256)},
    **{"10_1": (256, 128), "10_2": (128, 256), "11_1": (256, 128), "11_2": (128, 256)},
}
HEADS = {"4_3": (512, 4), "7": (1024, 6), "8_2": (512, 6), "9_2": (256, 6), "10_2": (256, 4), "11_2": (256, 4)}


def written_out(state: dict[str, Tensor], images: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """The network layer by layer from a state dict."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options))

    x = conv("base.conv1_2", conv("base.conv1_1", images, padding=1), padding=1)
    x = F.max_pool2d(x, 2, 2)
    x = conv("base.conv2_2", conv("base.conv2_1", x, padding=1), padding=1)
    x = F.max_pool2d(x, 2, 2)
    x = conv("base.conv3_3", conv("base.conv3_2", conv("base.conv3_1", x, padding=1), padding=1), padding=1)
    x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    c4 = conv("base.conv4_3", conv("base.conv4_2", conv("base.conv4_1", x, padding=1), padding=1), padding=1)
    x = F.max_pool2d(c4, 2, 2)
    x = conv("base.conv5_3", conv("base.conv5_2", conv("base.conv5_1", x, padding=1), padding=1), padding=1)
    x = F.max_pool2d(x, 3, 1, padding=1)
    c7 = conv("base.conv7", conv("base.conv6", x, padding=6, dilation=6))
    c8 = conv("aux_convs.conv8_2", conv("aux_convs.conv8_1", c7), stride=2, padding=1)
    c9 = conv("aux_convs.conv9_2", conv("aux_convs.conv9_1", c8), stride=2, padding=1)
    c10 = conv("aux_convs.conv10_2", conv("aux_convs.conv10_1", c9))
    c11 = conv("aux_convs.conv11_2", conv("aux_convs.conv11_1", c10))
    c4 = c4 / c4.square().sum(1, keepdim=True).sqrt() * state["rescale_factors"]
    rows: dict[str, list[Tensor]] = {"loc": [], "cl": []}
    for name, x in zip(HEADS, (c4, c7, c8, c9, c10, c11), strict=True):
        for head, outputs in (("loc", 4), ("cl", n_classes)):
            key = f"pred_convs.{head}_conv{name}"
            y = F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)
            for image in range(len(y)):  # one row of outputs per cell and box, boxes of a cell together
                cells = y[image].flatten(1).T
                rows[head].append(cells.reshape(-1, outputs))
    n = len(images)
    return tuple(  # of each head: the maps of one image one after another
        torch.stack([torch.cat(rows[head][image::n]) for image in range(n)]) for head in ("loc", "cl")
    )
