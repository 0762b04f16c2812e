"""The detector: takes pictures and returns boxes in pixels. All commands and users of `ssd` detect with it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from os import PathLike
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from ssd.data.augmentation import EvalTransform
from ssd.data.depth import Levels
from ssd.data.large_tiff import LargeTiff, large_tiff
from ssd.data.loader import worker_count
from ssd.data.reading import AnyImage, Picture, PictureFile, as_picture
from ssd.data.tiles import View, check_tiles, views
from ssd.detection import Found, unpad
from ssd.fusion import weighted_box_fusion
from ssd.inference.detections import Detections
from ssd.inference.prediction import Program, fused_network, predictor
from ssd.inference.selection import Selection
from ssd.inference.tiles import InView, in_view, merge
from ssd.networks import Network
from ssd.networks.network import unwrapped
from ssd.options import OVERLAP
from ssd.runtime.device import compile_network, pick_device
from ssd.runtime.threads import ReadAhead, in_threads
from ssd.weights.checkpoint import levels_of
from ssd.weights.hub import local_file
from ssd.weights.loading import open_weights
from ssd_ext import DetectionOptions, nms
from ssd_ext._checks import check_fields, check_names

SHOWN = DetectionOptions(min_score=0.2)  # for detections that people look at; measurements need lower scores too

OneImage = TypeVar("OneImage", bound=AnyImage)
# Types that can be iterated over, but are one picture; or none, as a mapping.
ONE_PICTURE = str, bytes, bytearray, memoryview, io.IOBase, np.ndarray, Tensor, Mapping
OnError = Callable[[Exception], None]


class _Part(NamedTuple):
    """A part of a picture that the network sees."""

    picture: Picture  # the picture whose objects are found
    source: Picture  # the picture that the pixels come from: the same one, or its decoded pixels
    view: View
    first: bool = True  # whether it is the first part of the picture
    last: bool = True


_Sample = tuple[_Part | None, Tensor | Exception]  # pixels (3, input_size, input_size) uint8, or why there are none


class Detector:
    """Finds objects in pictures with a trained network. Several threads may use one detector.

    Args:
        model: the network, which is put into evaluation mode; or a `Program`, which has its own options.
        options, bf16: see `predict_padded`.
        classes: the C-1 class names without background; label i is `classes[i - 1]`.
        levels: the values that become black and white in pictures with more than 8 bits per sample, as in the training
            data, see `ssd.data.PictureFile`.
        only: names of the classes whose detections are returned; None: all. The others are removed after NMS and after
            `options.top_k`, so fewer than top_k may be left.
        thresholds: for some classes, a number in 0..1 that takes the place of `options.min_score`. The network runs
            with the smallest of all these numbers. Detections whose score is not above that of their class are removed
            after NMS and after `options.top_k`.
        tiles: side in pixels of the tiles into which pictures are cut; 0: the side of the network's input. The network
            sees the tiles and the whole picture, and their detections are merged (docs/semantics.md, "Tiles"); each
            has up to `options.top_k` detections. None: the network sees only the whole picture.
        overlap: least overlap of neighbouring tiles, as a fraction of their side, from 0 to 0.9.
        flip: whether the network also sees each picture, and each tile, mirrored left to right. The detections in both
            are joined by weighted box fusion (docs/semantics.md, "Flips"). Boxes fit better, and detection takes more
            than twice the time. The network runs with half of the `min_score`, but a `Program` with its own.
        class_agnostic: whether NMS with `options.max_overlap` also runs among detections of different classes, at the
            end (docs/semantics.md, "Class-agnostic NMS").

    Attributes:
        prepare: function from a picture to the pixels that `predict` takes.
        predict: function from prepared pictures to padded detections, which `ssd.evaluation.evaluate.evaluate` takes as
            its model. It does not apply `only`, `thresholds`, `tiles`, `flip` and `class_agnostic`.

    Raises:
        ValueError: the network has another number of classes, `only` or `thresholds` has an unknown class, `only` is
            empty, an option, a threshold, `tiles` or `overlap` is out of range, or a threshold is lower than the
            `min_score` of a `Program`.

    Examples:
        >>> from PIL import Image
        >>> from ssd import Detector, build_network
        >>> from ssd_ext import DetectionOptions
        >>> network = build_network("ssdlite", n_classes=2, size=224, width=0.1)  # with random weights
        >>> detector = Detector(network, ["cat"], DetectionOptions(min_score=0.0, top_k=3))
        >>> found = detector(Image.new("RGB", (60, 40)))
        >>> print(found)
        3 cat
        >>> found.boxes.shape, found.scores.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        model: Network | Program,
        classes: Sequence[str],
        options: DetectionOptions = DetectionOptions(),
        *,
        bf16: bool | None = None,
        levels: Levels | None = None,
        only: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        tiles: int | None = None,
        overlap: float = OVERLAP,
        flip: bool = False,
        class_agnostic: bool = False,
    ) -> None:
        check_tiles(tiles, overlap)
        check_fields(options)
        if isinstance(model, nn.Module):
            model = unwrapped(model)
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, got the text {classes!r}")
        if isinstance(model, nn.Module) and len(classes) != model.n_classes - 1:
            raise ValueError(
                f"the network has {model.n_classes - 1} classes and the background, got {len(classes)} names"
            )
        self.model = model
        self.classes = tuple(classes)
        self.options = options
        self.levels = levels
        self._selection = Selection(self.classes, options.min_score, only, thresholds)
        if not isinstance(model, nn.Module):
            for name, score in (thresholds or {}).items():
                if score < options.min_score:
                    raise ValueError(
                        f"the threshold {score} of {name!r} is below the min_score {options.min_score} of the exported "
                        "program; export it again with a lower one"
                    )
        lowest = self._selection.lowest / (2 if flip else 1)  # an object has the mean of its scores in both pictures
        self.predict = predictor(model, options._replace(min_score=lowest), bf16=bf16)
        self.prepare = EvalTransform(model.input_size)
        self.tiles = model.input_size if tiles == 0 else tiles
        self.overlap = overlap
        self.flip = flip
        self.class_agnostic = class_agnostic

    @classmethod
    def load(
        cls,
        path: str | PathLike[str] = "coco",
        *,
        defaults: DetectionOptions = SHOWN,
        device: str | None = None,
        bf16: bool | None = None,
        compile: bool = False,
        only: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        tiles: int | None = None,
        overlap: float = OVERLAP,
        flip: bool = False,
        class_agnostic: bool = False,
        **options: Any,  # each value has the type of its field in DetectionOptions
    ) -> Detector:
        """Creates a detector from a file of weights or a file of `ssd export`.

        An exported file is a program: load only files from people whom you trust. The network from a file of weights is
        changed for detection, see `Network.fuse`.

        Args:
            path: anything that `ssd.load_weights` takes, such as "coco" or "hf://owner/name", or an exported file,
                also one on the Hugging Face Hub, such as "hf://owner/name/best.onnx".
            defaults: options that apply if `options` does not have them. An exported file has its own options.
            device: such as "cpu" or "cuda:0"; by default a GPU if there is one, or the device of the exported file.
            bf16: see `predictor`.
            compile: whether to compile the network, which takes a minute.
            only, thresholds, tiles, overlap, flip, class_agnostic: see `Detector`;
                `ssd.inference.selection.read_thresholds` reads thresholds from a file.
            options: fields of `ssd_ext.DetectionOptions`.

        Returns:
            The detector, on the device.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the weights cannot be downloaded.
            ImportError: a package that the file needs is not installed.
            ValueError: the file has another format, an exported file has another device or option than the one given,
                or `only`, `thresholds`, `tiles` or `overlap` is wrong, see `Detector`.
            TypeError: an option is unknown.

        Examples:
            `detector` and `network` are those of the example of the class.


            >>> from ssd.weights.checkpoint import save_checkpoint
            >>> save_checkpoint("best.pt", network, ["cat"])
            >>> loaded = Detector.load("best.pt", min_score=0.5, device="cpu")
            >>> loaded.classes, loaded.options.min_score, loaded.model.input_size
            (('cat',), 0.5, 224)
        """
        from ssd.export import is_exported, load  # imported late: it imports much that weights do not need

        check_names(options, DetectionOptions._fields)
        chosen: dict[str, Any] = {"only": only, "thresholds": thresholds, "tiles": tiles, "overlap": overlap}
        chosen |= {"flip": flip, "class_agnostic": class_agnostic}
        path = local_file(path)
        if not is_exported(path):
            checkpoint = open_weights(path)
            model = fused_network(checkpoint, path, pick_device(device))
            if compile:
                compile_network(model, dynamic=True)  # dynamic: the last batch may have fewer pictures
            used = defaults._replace(**options)
            return cls(model, checkpoint["classes"], used, bf16=bf16, levels=levels_of(checkpoint), **chosen)
        exported = load(path)
        its = exported.metadata
        given = options | {"device": device and device.partition(":")[0], "bf16": bf16, "compile": compile}
        fixed = its.options._asdict() | {"device": its.device, "bf16": False, "compile": False}
        for name, value in given.items():
            if value != fixed[name] and (value is not None or name in options):
                raise ValueError(f"{path}: has {name} {fixed[name]}, not {value}; leave it out, or export a new file")
        return cls(exported, its.classes, its.options, levels=its.levels, **chosen)

    @overload
    def __call__(
        self,
        images: list[OneImage] | tuple[OneImage, ...],
        *,
        batch_size: int = 8,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> list[Detections]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # an open file is one picture, and an iterator too
        self, images: AnyImage, *, batch_size: int = 8, workers: int | None = None, on_error: OnError | None = None
    ) -> Detections: ...
    @overload
    def __call__(
        self,
        images: Iterator[AnyImage],  # not Iterable: a str, an array and a tensor are iterables too
        *,
        batch_size: int = 8,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Detections]: ...
    def __call__(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int = 8,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Finds objects in one picture or in several; threads read the next batch while the network runs.

        Args:
            images: one picture of any size: a path, the bytes of a file, an open file, a Pillow picture, an array, a
                tensor or a VideoFrame of PyAV (see `ssd.data.reading.as_picture`); or a list, a tuple or another
                iterable of pictures.
            batch_size: pictures, or tiles of pictures, per forward pass, at least 1.
            workers: number of threads, at least 1; by default one per core, at most 4, or 16 with a GPU.
            on_error: called with the error of each picture that cannot be read; the picture is left out. By default
                the error is raised. Has no effect on a single picture.

        Returns:
            For one picture its `Detections`; for a list or a tuple a list of `Detections` in the same order; for
            another iterable an iterator, which reads at most two batches of pictures ahead of its results, and keeps
            nothing else. With `tiles`, up to three decoded pictures are in memory.

        Raises:
            FileNotFoundError: a file does not exist.
            ImageReadError: a file cannot be read.
            ValueError: batch_size is less than 1, or the shape or dtype of an array or tensor is not allowed.
            TypeError: something is not a picture.

        Examples:
            `detector` is that of the example of the class.


            >>> pictures = [Image.new("RGB", (60, 40)), Image.new("L", (300, 200))]
            >>> [str(found) for found in detector(pictures, batch_size=2)]
            ['3 cat', '3 cat']
            >>> for found in detector(iter(pictures)):  # an iterator, for folders and data sets of any size
            ...     print(found.picture.width, len(found))
            60 3
            300 3
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        workers = max(1, worker_count(workers))
        if not isinstance(images, Iterable) or isinstance(images, ONE_PICTURE):
            one = [cast(AnyImage, images)]
            # Without tiles there is nothing to read ahead, and a thread would only cost time.
            samples = map(self._read, one) if self.tiles is None else self._samples(one, workers, batch_size)
            (result,) = self._stream(samples, batch_size, None)
            return result
        results = self._stream(self._samples(images, workers, batch_size), batch_size, on_error)
        return list(results) if isinstance(images, (list, tuple)) else results

    def stream(self, frames: Iterable[AnyImage], *, newest: bool = False) -> Iterator[Detections]:
        """Finds objects in the frames of a camera or video, one at a time, without delay.

        A thread reads the next frame while the network runs. `Detector.__call__` runs the network on batches, which is
        faster on a GPU, but it returns the result of a frame only after it has read the whole batch and more.

        Args:
            frames: an iterable of pictures, see `Detector.__call__`, such as `ssd.data.Video("0")`, frames of PyAV or
                arrays (H, W, 3) uint8 RGB of any other reader. The thread iterates over it.
            newest: whether to skip the frames that were read while the network ran, except for the last one. Use it
                for a live source that is faster than the network, whose results would be late otherwise.

        Yields:
            The detections in each frame, in order. `Detections.picture` is the frame.

        Raises:
            Exception: reading a frame failed; raised after the results of the frames before it. See also
                `Detector.__call__`.

        Examples:
            `detector` is that of the example of the class.


            >>> import numpy as np
            >>> frames = (np.full((40, 60, 3), grey, np.uint8) for grey in (0, 128, 255))
            >>> [len(found) for found in detector.stream(frames)]
            [3, 3, 3]
        """
        with ReadAhead(frames, 1, newest=newest) as ahead:
            for frame in ahead:
                yield self(frame)

    def _stream(self, samples: Iterable[_Sample], batch_size: int, on_error: OnError | None) -> Iterator[Detections]:
        """Detects objects in the pictures whose parts these are."""
        batch: list[tuple[_Part, Tensor]] = []
        parts: list[InView] = []
        failed = False  # whether a part of the current picture could not be read
        for part, pixels in samples:
            failed = failed and part is not None and not part.first
            if failed:
                continue
            if part is not None and isinstance(pixels, Tensor):
                batch.append((part, pixels))
            elif isinstance(pixels, Exception):
                failed = True
                if on_error is None:
                    raise pixels
                on_error(pixels)
            if len(batch) == batch_size:
                yield from self._detect(batch, parts)
                batch = []
        if batch:
            yield from self._detect(batch, parts)

    def _samples(self, images: Iterable[AnyImage], workers: int, ahead: int) -> Iterator[_Sample]:
        """Reads all parts of the pictures, in threads."""
        if self.tiles is None:
            return in_threads(self._read, images, workers, ahead)
        parts = in_threads(self._parts, images, workers, ahead=1)  # not more, because decoded pictures may be large
        return in_threads(self._read_part, chain.from_iterable(parts), workers, ahead)

    def _read(self, image: AnyImage) -> _Sample:
        """Reads a picture, and resizes its pixels to the input size of the network."""
        try:
            picture = as_picture(image, self.levels)
            return _Part(picture, picture, (0, 0, picture.width, picture.height)), self.prepare(picture)
        except (ValueError, OSError) as error:
            return None, error

    def _parts(self, image: AnyImage) -> Sequence[_Part | Exception]:
        """Decodes a picture, and cuts it into tiles."""
        assert self.tiles is not None
        try:
            picture = source = large_tiff(image) or as_picture(image, self.levels)
            if isinstance(picture, LargeTiff):  # the result keeps the picture, but not the pixels that were read
                source = LargeTiff(picture.path)
            elif isinstance(picture, PictureFile):
                source = Picture(picture.pixels())
        except (ValueError, OSError) as error:
            return [error]
        every = views(picture.width, picture.height, self.tiles, self.overlap)
        return [_Part(picture, source, view, view == every[0], view == every[-1]) for view in every]

    def _read_part(self, part: _Part | Exception) -> _Sample:
        """Resizes a part of a picture to the input size of the network."""
        if isinstance(part, Exception):
            return None, part
        try:
            return part, part.source.part(part.view, (self.model.input_size, self.model.input_size))[0]
        except (ValueError, OSError) as error:
            return part, error

    def _detect(self, batch: Sequence[tuple[_Part, Tensor]], parts: list[InView]) -> Iterator[Detections]:
        """Detects objects in a batch.

        Args:
            batch: parts of pictures, and their pixels.
            parts: the detections in the first parts of the picture with which the batch begins; they are replaced by
                those of the picture with which it ends.

        Yields:
            The detections in each picture whose last part is in the batch.
        """
        every = self._find(torch.stack([pixels for _, pixels in batch]))
        for ((picture, _, view, first, last), _), found in zip(batch, every, strict=True):
            kept = self._selection(found.labels, found.scores)
            chosen = Found(*(column[kept] for column in found))
            if first and last:
                yield self._result(picture, chosen.in_pixels(picture.width, picture.height))
                continue
            if first:
                parts.clear()
            parts.append(in_view(chosen, view, picture.width, picture.height))
            if last:
                yield self._result(picture, merge(parts, self.options.max_overlap))

    def _find(self, pixels: Tensor) -> Sequence[Found]:
        """Detects objects in prepared pictures (B, 3, input_size, input_size), with `flip` also in mirrored ones."""
        found = unpad(self.predict(pixels))
        if not self.flip:
            return found
        mirrored = unpad(self.predict(pixels.flip(-1)))
        both = (
            weighted_box_fusion([its.in_pixels(1, 1) for its in (ours, other.mirrored())])
            for ours, other in zip(found, mirrored, strict=True)
        )
        return [Found(*(column[: self.options.top_k] for column in joined)) for joined in both]

    def _result(self, picture: Picture, found: Found) -> Detections:
        """Makes the result of a picture from all its detections, in pixels."""
        if self.class_agnostic:
            kept = nms(found.boxes, found.scores, self.options.max_overlap)
            found = Found(*(column[kept] for column in found))
        return Detections(picture, *found, self.classes)
