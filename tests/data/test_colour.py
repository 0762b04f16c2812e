"""Changes of colours and the network's input, against pixel by pixel."""

from __future__ import annotations

import colorsys
import itertools
import math

import pytest
import torch

from ssd.data.colour import IMAGENET_MEAN, IMAGENET_STD, colour_matrix, to_input

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "how", [(0, 1, 1, 0), (0.1, 1, 1, 0), (0, 1.4, 1, 0), (0, 1, 0.5, 0), (0, 1, 1, 0.3), (-0.12, 0.6, 1.5, -0.31)]
)
def test_colours_against_pixel_by_pixel(how):
    brightness, contrast, saturation, hue = how
    torch.manual_seed(0)
    image = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    image[:, :, 0, 0], image[:, :, 0, 1] = 0, 255
    got = to_input(image, torch.stack([colour_matrix(*how, grey=0.7), colour_matrix()]))
    for b, y, x in itertools.product(range(2), range(5), range(4)):
        rgb = [v / 255 for v in image[b, :, y, x].tolist()]
        if b == 0:
            luma, i, q = colorsys.rgb_to_yiq(*((v - 0.7) * contrast + 0.7 + brightness for v in rgb))
            turned = saturation * complex(i, q) * complex(math.cos(hue), math.sin(hue))
            # colorsys cuts colours at 0 and 1, so give it small ones around grey
            small = colorsys.yiq_to_rgb(0.5, 0.05 * turned.real, 0.05 * turned.imag)
            rgb = [luma + 20 * (v - 0.5) for v in small]
        expected = [(v - mean) / std for v, mean, std in zip(rgb, IMAGENET_MEAN, IMAGENET_STD, strict=True)]
        assert got[b, :, y, x].tolist() == pytest.approx(expected, abs=1e-4)


def test_grey_stays_grey_and_no_change_is_none():
    grey = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    for hue, saturation in ((0.3, 1.5), (-0.2, 0.5), (0, 1)):
        colours = colour_matrix(saturation=saturation, hue=hue)[None]
        torch.testing.assert_close(to_input(grey, colours), to_input(grey), rtol=0, atol=1e-5)
    assert to_input(grey).amin((0, 2, 3)).tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)


def test_what_is_normalised_already_is_left_alone():
    images = torch.randn(2, 3, 4, 4)
    assert to_input(images) is images
