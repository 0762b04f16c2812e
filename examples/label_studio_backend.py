"""Labels pictures in Label Studio beforehand: a backend for a project with <RectangleLabels> on an <Image>.

pip install ssd-ext git+https://github.com/HumanSignal/label-studio-ml-backend
SSD_WEIGHTS=run/best.pt python examples/label_studio_backend.py        # then: Settings > Model > http://localhost:9090
"""

import os
from functools import cache

from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase

from ssd import Detector

load = cache(Detector.load)  # Label Studio makes a new backend for each request


class SsdBackend(LabelStudioMLBase):
    def predict(self, tasks: list[dict], context: dict | None = None, **kwargs: object) -> list[dict]:
        detector = load(os.environ["SSD_WEIGHTS"])
        label, image, field = self.get_first_tag_occurence("RectangleLabels", "Image")
        names = self.build_label_map(label, list(detector.classes))  # from our names to those of the project
        predictions = []
        for task in tasks:
            found = detector(self.get_local_path(task["data"][field], task_id=task.get("id")))
            size = {"original_width": found.picture.width, "original_height": found.picture.height}
            tags = {"from_name": label, "to_name": image, "type": "rectanglelabels", **size}
            across, down = 100 / found.picture.width, 100 / found.picture.height  # percent per pixel
            rows = []
            for name, (x0, y0, x1, y1), score in ((names.get(o.name), o.box, o.score) for o in found):
                box = {"x": x0 * across, "y": y0 * down, "width": (x1 - x0) * across, "height": (y1 - y0) * down}
                if name is not None:
                    rows.append({**tags, "value": {**box, "rotation": 0, "rectanglelabels": [name]}, "score": score})
            score = min((row["score"] for row in rows), default=0.0)  # the least certain pictures can be labelled first
            predictions.append({"result": rows, "score": score})
        return predictions


if __name__ == "__main__":
    init_app(model_class=SsdBackend).run(port=9090)
