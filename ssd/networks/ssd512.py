"""SSD512 on VGG16, with the layers and the priors of the original Caffe code."""

from __future__ import annotations

from collections.abc import Sequence

from ssd.networks.priors import PriorSpec, between
from ssd.networks.vgg16 import Extra, VGGNetwork

# Sides of the first squares in pixels, and the side that would follow the last one. For COCO: 4 % of the image, and
# then 10 % to 106 % in equal steps; for Pascal VOC: 7 %, and then 15 % to 105 %.
SIDES = {
    "caffe_coco": (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    "caffe_voc": (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
}


class SSD512(VGGNetwork):
    """SSD for images of 512 x 512 pixels; arguments, attributes and errors are those of `VGGNetwork`.

    It is SSD300 with larger maps and a seventh map, `conv12_2`. The layouts of priors are those for COCO and for Pascal
    VOC.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, sections 3.3 and 3.4; weiliu89/caffe, branch ssd,
    examples/ssd/ssd_pascal.py and ssd_coco.py at 512 pixels.
    """

    name = "ssd512"
    input_size = 512
    layouts = tuple(SIDES)
    extras = (
        Extra(8, 256, 512, {"kernel": 3, "stride": 2, "padding": 1}),
        Extra(9, 128, 256, {"kernel": 3, "stride": 2, "padding": 1}),
        Extra(10, 128, 256, {"kernel": 3, "stride": 2, "padding": 1}),
        Extra(11, 128, 256, {"kernel": 3, "stride": 2, "padding": 1}),
        Extra(12, 128, 256, {"kernel": 4, "padding": 1}),
    )
    sources = (
        ("conv4_3", 512),
        ("conv7", 1024),
        ("conv8_2", 512),
        ("conv9_2", 256),
        ("conv10_2", 256),
        ("conv11_2", 256),
        ("conv12_2", 256),
    )
    maps = (64, 32, 16, 8, 4, 2, 1)

    @classmethod
    def layout(cls, name: str, maps: Sequence[int]) -> PriorSpec:
        """Returns the layout of the Caffe code for COCO or for Pascal VOC."""
        sides = tuple(side / cls.input_size for side in SIDES[name])
        few, many = (2.0, 1 / 2), (2.0, 1 / 2, 3.0, 1 / 3)
        return PriorSpec(
            scales=sides[:-1],
            extra_scales=between(sides),
            ratios=(few, many, many, many, many, few, few),
            cells=tuple(maps),
            maps=tuple(maps),
        )
