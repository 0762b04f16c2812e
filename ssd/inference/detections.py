"""The detections in one picture: what `ssd.Detector` returns, and the formats to which they can be converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ssd.data.large_tiff import LARGE, LargeTiff
from ssd.data.reading import Picture, whole_pixels
from ssd.data.writers import VocWriter, Written, YoloWriter, annotated
from ssd.drawing import draw_detections

LONGEST_SIDE = 4096  # of drawings of large pictures, in pixels


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        box: x0, y0, x1, y1 in pixels.
        label: in 1..C-1.
        name: name of its class.
        score: in 0..1.

    Examples:
        >>> from ssd.inference.detections import Detection
        >>> detection = Detection(box=(10.0, 5.0, 30.0, 25.0), label=1, name="cat", score=0.75)
        >>> x0, y0, x1, y1 = detection.box
        >>> f"{detection.name} {detection.score:.0%}: {x1 - x0:.0f} x {y1 - y0:.0f} pixels"
        'cat 75%: 20 x 20 pixels'
    """

    box: tuple[float, float, float, float]
    label: int
    name: str
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The k detections in one picture, by descending score, on the CPU; iterating over them gives `Detection` tuples.

    Attributes:
        picture: the picture, with `path` (None if it is not from a file), `width` and `height` in pixels. The pixels of
            a file are not kept in memory; pixels from elsewhere are.
        boxes: (k, 4) float32 xyxy in pixels, cut at the picture's edges.
        labels: (k,) int64 in 1..C-1.
        scores: (k,) float32 in 0..1.
        classes: the C-1 class names without background; label i is `classes[i - 1]`.

    Examples:
        >>> import torch
        >>> from ssd.data.reading import Picture
        >>> from ssd.inference.detections import Detections
        >>> picture = Picture(torch.zeros(3, 40, 80, dtype=torch.uint8))
        >>> boxes, labels, scores = torch.tensor([[10.0, 5.0, 30.0, 25.0]]), torch.tensor([2]), torch.tensor([0.75])
        >>> found = Detections(picture, boxes, labels, scores, ("cat", "dog"))
        >>> found
        <Detections in a picture (80 x 40): 1 dog>
        >>> [(each.name, each.score, each.box) for each in found]
        [('dog', 0.75, (10.0, 5.0, 30.0, 25.0))]
    """

    picture: Picture
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        for (x0, y0, x1, y1), label, score in rows:
            yield Detection((x0, y0, x1, y1), label, self.classes[label - 1], score)

    def __str__(self) -> str:
        """The number of objects of each class, such as "2 dog, 1 cat"."""
        counts = Counter(found.name for found in self)
        return ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing found"

    def __repr__(self) -> str:
        picture = self.picture
        return f"<Detections in {picture.path or 'a picture'} ({picture.width} x {picture.height}): {self}>"

    def draw(self) -> Image.Image:
        """Draws boxes, names and scores into the picture, see `ssd.drawing.draw_detections`; reads a file again.

        Returns:
            The drawing, as large as the picture. A picture with more than 89 million pixels
            (`PIL.Image.MAX_IMAGE_PIXELS`) is reduced to 4096 pixels on its longer side.

        Raises:
            FileNotFoundError: the file no longer exists.
            ImageReadError: the file is damaged.

        Examples:
            `found` is that of the example of the class.


            >>> found.draw().size
            (80, 40)
        """
        picture, boxes = self.picture, self.boxes
        if picture.width * picture.height <= LARGE:
            pixels = picture.pixels()
        else:
            factor = LONGEST_SIDE / max(picture.width, picture.height)
            size = [max(1, round(factor * side)) for side in (picture.height, picture.width)]
            pixels, _ = picture.part((0, 0, picture.width, picture.height), (size[0], size[1]))
            boxes = boxes * factor
        return draw_detections(pixels, boxes, self.labels, self.scores, classes=self.classes)

    def crops(self) -> list[Image.Image]:
        """Cuts each detected object out of the picture; reads a file again.

        Returns:
            For each detection its part of the picture. Edges are rounded to whole pixels, and a crop has at least one
            pixel.

        Raises:
            FileNotFoundError, ImageReadError: see `draw`.

        Examples:
            `found` is that of the example of the class.


            >>> [crop.size for crop in found.crops()]
            [(20, 20)]
        """
        large = isinstance(self.picture, LargeTiff)
        pixels = None if large else self.picture.pixels()
        crops = []
        for x0, y0, x1, y1 in self.boxes.tolist():
            left, right = whole_pixels(x0, x1, self.picture.width)
            top, bottom = whole_pixels(y0, y1, self.picture.height)
            if pixels is None:
                crop, _ = self.picture.part((left, top, right, bottom), (bottom - top, right - left))
            else:
                crop = pixels[:, top:bottom, left:right]
            crops.append(Image.fromarray(crop.permute(1, 2, 0).numpy()))
        return crops

    def to_coco(self, image_id: int = 1) -> list[dict[str, int | float | list[float]]]:
        """Converts the detections to the list of dicts that pycocotools' `COCO.loadRes` takes.

        Args:
            image_id: the "image_id" of every row.

        Returns:
            A dict for each object: "bbox" is [x, y, width, height] in pixels, "category_id" is the label.

        Examples:
            `found` is that of the example of the class.


            >>> found.to_coco(image_id=7)[0]["bbox"]
            [10.0, 5.0, 20.0, 20.0]
            >>> sorted(found.to_coco(image_id=7)[0])
            ['area', 'bbox', 'category_id', 'image_id', 'iscrowd', 'score']
        """
        return [
            {
                "image_id": image_id,
                "category_id": found.label,
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "iscrowd": 0,
                "score": round(found.score, 5),
            }
            for found in self
            for x0, y0, x1, y1 in [found.box]
        ]

    def to_yolo(self) -> str:
        """Converts the detections to the text file that labelling tools and Ultralytics read beside a picture.

        Returns:
            A line for each object: the number of its class from 0, then x and y of the centre, width and height in
            fractions of the picture. Edges are rounded to 0.01 pixels. Boxes without width or height are left out.

        Examples:
            `found` is that of the example of the class.


            >>> print(found.to_yolo(), end="")
            1 0.25 0.375 0.25 0.5
        """
        return YoloWriter.text(self._written())

    def to_voc(self) -> str:
        """Converts the detections to the XML file of Pascal VOC, with pixels counted from 1.

        Returns:
            The XML. Edges are rounded to 0.01 pixels. Boxes that are at most one pixel wide or high are left out,
            because the format does not tell them from points. Without a file, the names of the picture and of its
            folder are empty.

        Examples:
            `found` is that of the example of the class.


            >>> from xml.etree import ElementTree
            >>> box = ElementTree.fromstring(found.to_voc()).find("object/bndbox")
            >>> {edge.tag: edge.text for edge in box}
            {'xmin': '11', 'ymin': '6', 'xmax': '30', 'ymax': '25'}
        """
        path = self.picture.path
        folder = path.absolute().parent.name if isinstance(path, Path) else ""
        return VocWriter.text(self._written(), self.classes, folder)

    def to_supervision(self) -> Any:  # a class of a package that may be missing
        """Converts the detections to a `supervision.Detections`, for its trackers, zones and annotators.

        Returns:
            `xyxy` has the boxes in pixels, `confidence` the scores, `class_id` the labels minus 1, which are the
            indices of `classes`, and `data["class_name"]` the names.

        Raises:
            ImportError: the package supervision is not installed.

        Examples:
            `found` is that of the example of the class.


            >>> found.to_supervision().xyxy.tolist()
            [[10.0, 5.0, 30.0, 25.0]]
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(f"needs supervision ({error}): pip install 'ssd-ext[supervision]'") from None
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy() - 1,
            data={"class_name": np.array([found.name for found in self], dtype=str)},
        )

    def _written(self) -> Written:
        size = self.picture.width, self.picture.height
        name = "" if self.picture.path is None else self.picture.path.name
        return Written(1, "", name, (), size, annotated(self.to_coco(), *size))
