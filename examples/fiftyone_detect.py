"""Finds objects in a folder of pictures, and opens the pictures with their detections in FiftyOne.

pip install ssd-ext fiftyone
python examples/fiftyone_detect.py photos/ run/best.pt
"""

import sys

import fiftyone as fo

from ssd import Detector
from ssd.inference.detections import Detections


def to_fiftyone(found: Detections) -> fo.Detections:
    """FiftyOne's boxes are x, y, width and height in fractions of the picture."""
    width, height = found.picture.width, found.picture.height
    return fo.Detections(
        detections=[
            fo.Detection(
                label=o.name,
                confidence=o.score,
                bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
            )
            for o in found
            for x0, y0, x1, y1 in [o.box]
        ]
    )


def add_detections(samples: fo.Dataset, detector: Detector, field: str = "ssd") -> None:
    """Adds a field with our detections to each sample of a dataset or a view."""
    for sample in samples.iter_samples(progress=True, autosave=True):
        sample[field] = to_fiftyone(detector(sample.filepath))


if __name__ == "__main__":
    dataset = fo.Dataset.from_images_dir(sys.argv[1])
    add_detections(dataset, Detector.load(sys.argv[2]))
    fo.launch_app(dataset).wait()
