"""Reads detections from a file: a list in COCO's format of results, or the detections.json of `ssd detect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ssd.data.annotations import ImageId
from ssd.data.coco import COCODataset, CocoFile, Id
from ssd.data.dataset import BoxDataset
from ssd.data.folder import PathEnds
from ssd.data.members import AnyFile
from ssd.detection import Found
from ssd.runtime.packed import Packed, splits_of


class DetectionFile:
    """A file of detections, which are assigned to the pictures of a data set.

    The file is one of two kinds. A list, COCO's format of results, refers to pictures and categories by the ids of a
    data set in COCO's JSON. A file with "images", "categories" and "annotations" has names: each of its images is the
    picture of the data set with the same file name. If several pictures have this name, it is the one whose path has
    the most parts in common with the image's path, counted from the end.

    Args:
        path: the file.

    Attributes:
        classes: names of the categories by ascending id; None for a list, which has the categories of the data set.
        notes: list of lines for the user, to which `detections` adds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the JSON is damaged or of neither kind.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._content = CocoFile(self.path, scored=True)
        self.notes: list[str] = []
        self.classes = None if self._content.is_list else tuple(self._content.categories.values())

    def detections(self, dataset: BoxDataset) -> Packed[Found]:
        """Assigns the detections to the pictures of a data set.

        In a list, detections of categories that the data set does not have are left out, as pycocotools does.

        Args:
            dataset: the data set, opened with `classes` if the file has them.

        Returns:
            For each picture boxes (k, 4) float64 xyxy in pixels, labels (k,) int64 and scores (k,) float64.

        Raises:
            ValueError: the data set does not have a picture of the file, the file does not have a picture of the data
                set, or an entry has a category that the file itself does not have; the message names the file, the
                entry and the key.
        """
        content = self._content
        if content.is_list:
            if not isinstance(dataset, COCODataset):
                raise ValueError(
                    f"{self.path}: a list refers to ids of data in COCO's JSON, and this data is a "
                    f"{type(dataset).__name__}"
                )
            where, places, names = f"{self.path}: ", self._by_id(dataset.image_ids), dataset.category_names
        else:
            where, names = f"{self.path}: annotations", content.categories
            places = self._by_name(content.images.items(), dataset.pictures)
        label_of = {
            category: dataset.classes.index(name) + 1 for category, name in names.items() if name in dataset.classes
        }
        images = content.rows.numbers("image_id", places, where)
        labels = content.rows.numbers("category_id", label_of, where, unknown=0 if content.is_list else None)
        if left_out := int((labels == 0).sum()):
            self.notes.append(f"{self.path}: detections of categories that are not in the data, left out: {left_out}")
        boxes = content.rows.boxes
        boxes[:, 2:] += boxes[:, :2]
        order = np.argsort(images, kind="stable")
        order = order[labels[order] > 0]
        images = images[order]
        columns = (torch.from_numpy(column[order]) for column in (boxes, labels, content.rows.scores))
        return Packed(Found(*columns), splits_of(torch.from_numpy(np.bincount(images, minlength=len(dataset)))))

    def _by_id(self, ids: Sequence[ImageId]) -> dict[ImageId, int]:
        """Returns the position of each picture in the data set by its id."""
        places = {image_id: place for place, image_id in enumerate(ids)}
        for place, image_id in enumerate(ids):
            if places[image_id] != place:
                raise ValueError(f"{self.path}: image_id {image_id!r} is in two files of the data; use only one split")
        return places

    def _by_name(self, images: Iterable[tuple[Id, str]], pictures: Sequence[AnyFile]) -> dict[ImageId, int]:
        """Returns the position of each picture in the data set by its id in the file."""
        ends = PathEnds(picture.as_posix() for picture in pictures)
        places: dict[ImageId, int] = {}
        taken: dict[int, int] = {}  # number of the image that a position belongs to
        for index, (image_id, file_name) in enumerate(images):
            where = f"{self.path}: images[{index}]['file_name'] is {file_name!r}"
            best = ends.find(str(PurePosixPath(file_name.replace("\\", "/"))))
            if not best:
                raise ValueError(f"{where}, and the data has no such picture")
            if len(best) > 1:
                raise ValueError(f"{where}, and this may be {pictures[best[0]]} or {pictures[best[1]]}")
            if best[0] in taken:
                raise ValueError(f"{where}: this is {pictures[best[0]]}, and so is images[{taken[best[0]]}]")
            places[image_id] = best[0]
            taken[best[0]] = index
        if missing := set(range(len(pictures))).difference(taken):
            names = str(pictures[min(missing)])
            if len(missing) > 1:
                names += f" and {len(missing) - 1} more"
            raise ValueError(f"{self.path}: does not have {names} of the data; use a split whose pictures it has")
        return places
