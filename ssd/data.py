"""Pictures and Pascal VOC annotations for training and evaluation.

Pixel convention, everywhere in this package: the picture spans 0..width and 0..height, and a box is given by
its edges. VOC files count pixels from 1 and include the last one, so a box written (xmin, ymin, xmax, ymax)
has the edges (xmin - 1, ymin - 1, xmax, ymax). Files of other tools are read in the same way; where those
count from 0, as LabelImg does, boxes reach one pixel further to the left and to the top than drawn.

Pictures come upright, as viewers and labelling tools show them: the EXIF orientation is applied.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4; the values 5..8 swap width and height


class ImageReadError(ValueError):
    """A picture file that is damaged, cut short or of an unknown format."""


class Dropped(NamedTuple):
    """An annotated object that no detector can learn from and the reader left out."""

    path: Path  # the XML file
    index: int  # position among the <object> elements of the file, from 0
    name: str
    box: tuple[float, float, float, float]  # as written in the file
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: object {self.index} ({self.name}, {self.box}) left out: {self.reason}"


class _Sample(NamedTuple):
    picture: Path
    size: tuple[int, int]  # height, width
    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,)
    difficult: Tensor  # (n,)


def _has_orientation(picture: Image.Image) -> bool:
    # To look for one in a PNG, Pillow has to decode the whole picture, and cameras do not write PNG.
    return picture.format != "PNG"


def _read_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright picture, from the file's header."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = _has_orientation(picture) and picture.getexif().get(ORIENTATION_TAG, 1) >= 5
    except Exception as error:  # on damage, Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise ImageReadError(f"{path}: cannot read the picture ({error})") from error
    return (width, height) if turned else (height, width)


def read_image(path: str | PathLike) -> Tensor:
    """Read a picture of any format that Pillow knows as upright RGB.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is discarded; an animation gives its
    first frame.

    Args:
        path: the file.

    Returns:
        (3, H, W) uint8, 0..255.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is damaged, cut short or no picture; the message names it.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits; convert() would clip instead of scale
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            elif _has_orientation(picture):
                ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode == "P":  # by way of RGBA, as Pillow warns about transparent palettes
                picture = picture.convert("RGBA")
            return pil_to_tensor(picture.convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as error:  # see _read_size
        raise ImageReadError(f"{path}: cannot decode the picture ({error})") from error


def _read_annotation(path: Path) -> tuple[str, list[tuple[str, tuple[float, ...], bool]]]:
    """The picture's file name and the objects (name, box as written, difficult) of one XML file."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: broken XML ({error})") from error
    objects = []
    for index, node in enumerate(root.findall("object")):
        try:
            name = node.find("name").text.strip()
            box = tuple(float(node.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"{path}: object {index} lacks a <name> or a <bndbox> of four numbers") from None
        objects.append((name, box, node.findtext("difficult", "0").strip() == "1"))
    return (root.findtext("filename") or "").strip(), objects


def _box_fault(box: Sequence[float], height: int, width: int) -> str | None:
    """Why a box as written in a file is unusable, or None."""
    xmin, ymin, xmax, ymax = box
    if not all(map(math.isfinite, box)):
        return "not finite"
    if xmax <= xmin or ymax <= ymin:
        return "no width or height"
    if xmin > width or ymin > height or xmax < 1 or ymax < 1:  # counted from 1
        return f"outside the picture of {width} x {height}"
    return None


def _edges(box: Sequence[float], height: int, width: int) -> tuple[float, ...]:
    """The edges of a box as written in a file, clipped to the picture."""
    xmin, ymin, xmax, ymax = box
    return max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, width), min(ymax, height)


def list_splits(root: str | PathLike) -> list[str]:
    """Name the splits of a folder in VOC layout.

    Args:
        root: the folder.

    Returns:
        sorted names of the lists in ImageSets/Main; empty if there is no such folder.
    """
    return sorted(path.stem for path in (Path(root) / "ImageSets" / "Main").glob("*.txt"))


class _Folder:
    """One folder in VOC layout: which annotations it holds and which picture belongs to each."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("Annotations", "JPEGImages"):
            if not (root / name).is_dir():
                raise FileNotFoundError(f"{root / name}: no such folder, as Pascal VOC has it")
        names = [path.name for path in (root / "JPEGImages").iterdir()]
        # found whatever the case of letters, but an exact name wins
        self.pictures = {name.lower(): name for name in names} | {name: name for name in names}

    def annotations(self, split: str | None) -> list[Path]:
        if split is None:
            return sorted((self.root / "Annotations").glob("*.xml"))
        listed = self.root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            splits = list_splits(self.root) or "none (None takes all annotations)"
            raise FileNotFoundError(f"{listed}: no such split; there are: {splits}")
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
        paths = [self.root / "Annotations" / f"{line.split()[0]}.xml" for line in lines if line.strip()]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, yet {listed} lists it")
        return paths

    def picture(self, annotation: Path, filename: str) -> Path:
        filename = filename.replace("\\", "/").rpartition("/")[2]  # some tools write a path
        for name in (filename, *(annotation.stem + suffix for suffix in PICTURE_SUFFIXES)):
            found = self.pictures.get(name) or self.pictures.get(name.lower())
            if found:
                return self.root / "JPEGImages" / found
        missing = self.root / "JPEGImages" / (filename or f"{annotation.stem}.jpg")
        raise FileNotFoundError(f"{missing}: no such picture, yet {annotation} describes it")


class VOCDataset(Dataset):
    """Pictures with boxes from folders in Pascal VOC layout (Annotations, JPEGImages, ImageSets/Main).

    All annotations are read and checked at construction, and the size of a picture is taken from the picture.
    Boxes are clipped to it; objects whose box has no width or height, is not finite or lies outside of it are
    left out and listed in `dropped`. Pictures without objects are kept.

    Args:
        roots: a folder or several, whose pictures are joined in this order.
        split: name of a list in ImageSets/Main, such as "trainval"; None takes all annotations.
        classes: names of the classes; label i is classes[i - 1] and 0 is the background. None takes the names
            found in these annotations, sorted; give a test set the classes of the training set.
        transform: called as transform(image, target).
        keep_difficult: whether targets include objects marked as difficult.

    Attributes:
        classes: tuple of names, without the background.
        pictures: list with the path of each picture.
        dropped: list of `Dropped`.

    Raises:
        FileNotFoundError: a folder, a split, a listed annotation or a picture is missing.
        ImageReadError: the header of a picture is unreadable.
        ValueError: an annotation is broken or has a class that is not in `classes`, or there are none.
    """

    def __init__(
        self,
        roots: str | PathLike | Iterable[str | PathLike],
        split: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[..., Any] | None = None,
        keep_difficult: bool = True,
    ):
        folders = [_Folder(Path(root)) for root in ([roots] if isinstance(roots, (str, PathLike)) else roots)]
        entries = [(path, folder, *_read_annotation(path)) for folder in folders for path in folder.annotations(split)]
        if not entries:
            raise ValueError(f"no annotations in {[str(folder.root) for folder in folders]}, split {split!r}")
        if classes is None:
            classes = sorted({name for *_, objects in entries for name, _, _ in objects})
        self.classes = tuple(classes)
        self.transform = transform
        self.dropped: list[Dropped] = []
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        if len(labels) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        self._samples = []
        for path, folder, filename, objects in entries:
            picture = folder.picture(path, filename)
            height, width = _read_size(picture)
            kept = []
            for index, (name, box, difficult) in enumerate(objects):
                if name not in labels:
                    raise ValueError(f"{path}: unknown class {name!r}; the classes are {self.classes}")
                if fault := _box_fault(box, height, width):
                    self.dropped.append(Dropped(path, index, name, box, fault))
                elif keep_difficult or not difficult:
                    kept.append((_edges(box, height, width), labels[name], difficult))
            self._samples.append(
                _Sample(
                    picture=picture,
                    size=(height, width),
                    boxes=torch.tensor([box for box, _, _ in kept], dtype=torch.float32).reshape(-1, 4),
                    labels=torch.tensor([label for _, label, _ in kept], dtype=torch.int64),
                    difficult=torch.tensor([difficult for _, _, difficult in kept], dtype=torch.bool),
                )
            )

    @property
    def pictures(self) -> list[Path]:
        return [sample.picture for sample in self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        """One picture and its objects, through `transform` if there is one.

        Returns:
            image: tv_tensors.Image (3, H, W) uint8.
            target: "boxes" tv_tensors.BoundingBoxes (n, 4) float32 xyxy in pixels, "labels" (n,) int64 in
                1..len(classes), "difficult" (n,) bool.

        Raises:
            ImageReadError: the picture is damaged or cut short; the message names it.
        """
        sample = self._samples[index]
        image = tv_tensors.Image(read_image(sample.picture))
        boxes = tv_tensors.BoundingBoxes(sample.boxes.clone(), format="XYXY", canvas_size=sample.size)
        target = {"boxes": boxes, "labels": sample.labels.clone(), "difficult": sample.difficult.clone()}
        return self.transform(image, target) if self.transform else (image, target)


def _seed_of(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


class SeededDataset(Dataset):
    """A view of a dataset whose random transforms depend on (seed, epoch, index) and on nothing else.

    So a sample is the same for any number of loader workers and after any interruption, and reading it leaves
    the global random state as it was. This holds for transforms that draw from PyTorch's CPU generator.

    Args:
        dataset: any map-style dataset.
        seed: any integer.
        epoch: any integer.
    """

    def __init__(self, dataset: Dataset, seed: int, epoch: int):
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would reseed the GPU too
            torch.random.default_generator.manual_seed(_seed_of(self.seed, self.epoch, index))
            return self.dataset[index]


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, drop_last: bool = True) -> list[list[int]]:
    """Shuffle 0..n-1 into batches in an order that depends on the arguments alone.

    Args:
        n: number of samples, at least 1.
        batch_size: samples per batch, at least 1.
        seed: any integer.
        epoch: any integer.
        drop_last: leave out an incomplete last batch, unless it is the only one.

    Returns:
        list of batches; [start:] of it resumes an interrupted epoch.

    Raises:
        ValueError: n or batch_size is less than 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    generator = torch.Generator().manual_seed(_seed_of(seed, epoch))
    order = torch.randperm(n, generator=generator).tolist()
    batches = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    return batches[:-1] if drop_last and n % batch_size and len(batches) > 1 else batches


def worker_count(workers: int | None) -> int:
    """The number of loader workers asked for; by default one per core that this process may use, at most 4."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def ignore_interrupt(worker: int) -> None:
    """For loader workers: Ctrl-C reaches all processes, but the main one decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Stack the images of a batch and list its targets.

    Args:
        samples: B pairs of an image (3, H, W), all of one size, and a target.

    Returns:
        images (B, 3, H, W) and the B targets.
    """
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def train_loader(
    dataset: Dataset, batch_size: int, seed: int, epoch: int, start_batch: int = 0, workers: int = 0
) -> DataLoader:
    """A loader of one epoch, or of the rest of one, that gives the same batches on every run.

    Args:
        dataset: gives (image, target) with images of one size.
        batch_size: samples per batch; an incomplete last batch is left out, unless it is the only one.
        seed: any integer.
        epoch: any integer.
        start_batch: how many batches of the epoch to pass over.
        workers: processes that read pictures; 0 reads them in this one. Does not change the batches.

    Returns:
        loader of (images (B, 3, H, W), list of B targets).
    """
    return DataLoader(
        SeededDataset(dataset, seed, epoch),
        batch_sampler=epoch_batches(len(dataset), batch_size, seed, epoch)[start_batch:],
        num_workers=workers,
        worker_init_fn=ignore_interrupt,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # a loader would otherwise advance the global one
    )
