"""Uses our detector as a model of SAHI, and our NMS to merge what it finds in SAHI's slices.

pip install ssd-ext sahi
python examples/sahi_detect.py photo.jpg run/best.pt found.png

`ssd detect --tiles` does the same without SAHI, faster, and joins objects that no tile shows whole.
"""

import sys

import numpy as np
import torch
from sahi.models.base import DetectionModel
from sahi.postprocess.combine import PostprocessPredictions
from sahi.predict import POSTPROCESS_NAME_TO_CLASS, get_sliced_prediction
from sahi.prediction import ObjectPrediction

from ssd import Detector
from ssd_ext import batched_nms


class SsdModel(DetectionModel):
    def set_model(self, model: Detector) -> None:
        self.model, self.category_mapping = model, dict(enumerate(model.classes))

    def perform_inference(self, image: np.ndarray | list[np.ndarray]) -> None:
        self._original_predictions = self.model(image if isinstance(image, list) else [image])

    def _create_object_prediction_list_from_original_predictions(self, shift_amount_list, full_shape_list=None):
        shifts, shapes = (
            np.reshape(a, (-1, 2)).tolist() if a else [None] for a in (shift_amount_list, full_shape_list)
        )
        self._object_prediction_list_per_image = [
            [ObjectPrediction(list(o.box), o.label - 1, o.name, None, o.score, shift, shape) for o in found]
            for found, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]


class SsdNms(PostprocessPredictions):
    def __call__(self, predictions: list[ObjectPrediction]) -> list[ObjectPrediction]:
        boxes = torch.tensor([p.bbox.to_xyxy() for p in predictions], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([float(p.score.value) for p in predictions])
        classes = torch.tensor([0 if self.class_agnostic else p.category.id for p in predictions])
        return [predictions[i] for i in batched_nms(boxes, scores, classes, self.match_threshold)]


if __name__ == "__main__":
    POSTPROCESS_NAME_TO_CLASS["SSD_EXT"] = SsdNms
    detector = Detector.load(sys.argv[2])
    options = {"slice_height": detector.model.input_size, "slice_width": detector.model.input_size, "batch_size": 8}
    result = get_sliced_prediction(sys.argv[1], SsdModel(model=detector), postprocess_type="SSD_EXT", **options)
    result.export_visuals(".", file_name=sys.argv[3].removesuffix(".png"), export_format="png")
