"""From picture files to a batch on the device: training samples and evaluation samples.

.venv/bin/python -m pytest benchmarks/test_bench_input.py -k 640x480

A call reads, decodes and augments pictures, joins them to batches of 8, and makes the network's input of each batch.
With one thread this process does the work, otherwise as many workers as threads, which read ahead. torchvision: its v2
transforms in the order of its reference recipe for SSD, after our decoder, which is faster than torchvision's. dali:
NVIDIA's operators in the order of its SSD example, on the CPU, if DALI is installed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import Case, each
from inputs import generator, random_boxes
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ssd.data import PictureFile
from ssd.data.augmentation import EvalTransform, PictureTransform, TrainTransform
from ssd.data.colour import to_input
from ssd.data.loader import Batch, train_loader
from ssd.data.torchvision_recipe import v2_transform
from ssd.networks.network import IMAGENET_MEAN, IMAGENET_STD

FOLDER = tempfile.TemporaryDirectory()  # the pictures; deleted when this process ends
OBJECTS = 8  # per picture
BATCH = 8
FILES = 8  # per size; more pictures use the same files again


class Where(NamedTuple):
    here: Tensor  # on the device of the batch


class Pictures(Dataset):
    """n pictures in JPEG files, with structure at all scales, and their objects."""

    def __init__(self, width: int, height: int, n: int, transform: Callable) -> None:
        self.n, self.width, self.height, self.transform = n, width, height, transform
        self.boxes = random_boxes(n * OBJECTS, 3).clamp(0, 1).view(n, OBJECTS, 4)
        self.boxes = self.boxes * torch.tensor([width, height, width, height])

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        picture = PictureFile(files(self.width, self.height)[index % FILES])
        size = picture.height, picture.width
        target = {
            "boxes": tv_tensors.BoundingBoxes(self.boxes[index].clone(), format="XYXY", canvas_size=size),
            "labels": torch.ones(OBJECTS, dtype=torch.int64),
            "difficult": torch.zeros(OBJECTS, dtype=torch.bool),
        }
        ours = isinstance(self.transform, PictureTransform)
        return self.transform(picture if ours else tv_tensors.Image(picture.pixels()), target)


@cache
def files(width: int, height: int) -> list[str]:
    """Paths of generated JPEG files with about as many bytes per pixel as photographs of a camera."""
    paths = []
    for i in range(FILES):
        rng, picture = np.random.default_rng(i), Image.new("RGB", (width, height), "grey")
        for share, cells in enumerate((4, 16, 64, 256), 1):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture = Image.blend(picture, coarse.resize((width, height), Image.Resampling.BICUBIC), 1 / share)
        paths.append(str(Path(FOLDER.name) / f"{width}x{height}_{i}.jpg"))
        picture.save(paths[-1], quality=90)
    return paths


def resized(size: int) -> v2.Compose:
    """The transforms of torchvision's evaluation, for images only."""
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD), v2.ToPureTensor()]
    return v2.Compose([v2.Resize((size, size)), *to_float])


@cache
def endless(data: Pictures, workers: int) -> Iterator[Batch]:
    """Training batches without end, made by `workers` processes, or by this process if there are none."""
    return iter(train_loader(data, BATCH, 0, range(10**9), workers))


def all_pictures(data: Pictures, x: Where) -> tuple[Tensor, Tensor, float]:
    """Makes batches of all pictures; returns the images and boxes of the last one, and the mean of all images."""
    workers, total = torch.get_num_threads() if torch.get_num_threads() > 1 else 0, 0.0
    for batch in islice(endless(data, workers), len(data) // BATCH):
        on_device = batch.to(x.here.device)
        images = to_input(on_device.images, on_device.colours)
        total += images[:, :, ::8, ::8].mean()
    return images, on_device.boxes, float(total) / (len(data) // BATCH)


def dali(width: int, height: int, pictures: int) -> Callable | str:
    """Training batches with NVIDIA's operators: a crop but no zoom out, as in its SSD example."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "nvidia.dali is not installed"
    from nvidia.dali import fn, pipeline_def, types

    data = Pictures(width, height, pictures, EvalTransform(300))
    fractions = (data.boxes / torch.tensor([width, height, width, height])).numpy()

    def source(sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        i = sample.idx_in_epoch % pictures
        encoded = np.fromfile(files(width, height)[i % FILES], dtype=np.uint8)
        return encoded, fractions[i], np.ones(OBJECTS, dtype=np.int32)

    @pipeline_def
    def samples():
        encoded, boxes, labels = fn.external_source(source=source, num_outputs=3, batch=False)
        start, size, boxes, labels = fn.random_bbox_crop(
            boxes,
            labels,
            aspect_ratio=[0.5, 2.0],
            thresholds=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9],
            scaling=[0.3, 1.0],
            bbox_layout="xyXY",
            allow_no_crop=True,
            num_attempts=50,
        )
        images = fn.decoders.image_slice(encoded, start, size)
        images = fn.resize(images, resize_x=300, resize_y=300, antialias=True)
        some = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18.0, 18.0)}
        images = fn.color_twist(images, **{name: fn.random.uniform(range=limits) for name, limits in some.items()})
        mean, std = ([255 * v for v in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
        mirror = fn.random.coin_flip()
        images = fn.crop_mirror_normalize(images, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT)
        return images, fn.bb_flip(boxes, ltrb=True, horizontal=mirror)

    @cache
    def pipeline(threads: int):
        built = samples(batch_size=BATCH, num_threads=threads, device_id=None)
        built.build()
        return built

    def batches(x: Where) -> tuple[Tensor, Tensor, float]:
        for _ in range(pictures // BATCH):
            images, boxes = pipeline(torch.get_num_threads()).run()
            images = torch.from_numpy(images.as_array()).to(x.here.device)
        return images, torch.from_numpy(np.concatenate([np.array(b) for b in boxes])).to(x.here.device), 0.0

    return batches


def case(op: str, width: int, height: int, pictures: int) -> Case:
    training = op == "training samples"
    transforms = (TrainTransform, v2_transform) if training else (EvalTransform, resized)
    names = ("ssd_ext", "torchvision")
    sets = (Pictures(width, height, pictures, transform(300)) for transform in transforms)
    every = {name: partial(all_pictures, data) for name, data in zip(names, sets, strict=True)}
    if training:
        every["dali"] = dali(width, height, pictures)

    def check(name: str, got: tuple, expected: tuple) -> None:
        """Training samples are random, so only their form is checked; for evaluation also the mean of all images."""
        images, boxes, mean = got
        assert images.shape == expected[0].shape == (BATCH, 3, 300, 300), f"{name}: {tuple(images.shape)}"
        assert images.dtype == torch.float32, f"{name}: {images.dtype}"
        assert not training or bool((boxes >= 0).all() and (boxes <= 1).all()), f"{name}: boxes outside 0 to 1"
        off = 0 if training else abs(mean - expected[2])
        assert off < 0.01, f"{name}: the mean is off by {off}"

    sizes, inputs = {"pictures": pictures, "pixels": f"{width}x{height}"}, Where(torch.rand(1, generator=generator(0)))
    once = ("torchvision",) if width > 1000 else ()
    return Case("input", op, sizes, lambda: inputs, every, check, graphs=(), once=once)


CASES = [
    case(op, width, height, pictures)
    for op in ("training samples", "evaluation samples")
    for width, height, pictures in ((640, 480, 64), (500, 375, 64), (4000, 3000, 8))
]
test_input = each(CASES)
