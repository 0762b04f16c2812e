"""The exported program, what a file says of it, and how its detections are compared."""

from dataclasses import replace

import pytest
import torch

from ssd import load_weights
from ssd.export import DetectionProgram, Metadata
from ssd.export.program import missing_rows
from ssd.inference.prediction import predict_padded
from ssd_ext import DetectionOptions

OPTIONS = DetectionOptions(min_score=0.3, top_k=50)


def test_the_program_has_the_bits_of_the_detector(weights, pictures):
    model, _ = load_weights(weights, device="cpu")
    expected = predict_padded(model, pictures, OPTIONS, bf16=False)
    assert expected[3].min() > 0
    with torch.no_grad():
        for images in (pictures, pictures.float() / 255):
            for ours, its in zip(DetectionProgram(model, OPTIONS)(images), expected, strict=True):
                assert torch.equal(ours, its)


def test_a_module_that_is_no_network_is_named():
    with pytest.raises(TypeError, match="Linear is no network of ssd: it has no priors_cxcy"):
        DetectionProgram(torch.nn.Linear(1, 1))


def test_metadata_survives_json():
    metadata = Metadata("pt2", ("a", "b"), DetectionOptions(top_k=7, score="sigmoid"), 512, "float32")
    for levels in (None, (16, 4095.5)):
        written = replace(metadata, levels=levels)
        assert Metadata.from_json(written.to_json()) == written
    for text in ("", "[]", "{}", '{"options": {"colour": 1}, "classes": []}'):
        with pytest.raises(ValueError, match="not the metadata"):
            Metadata.from_json(text)


def test_the_last_of_top_k_may_be_another_one_if_ties_before_it_differ():
    """Of overlapping boxes with nearly equal scores, NMS may keep one or two; the list then ends earlier or later."""
    boxes = torch.tensor([0.0, 0.06, 0.12, 1, 2, 3])[:, None] * torch.tensor([1, 0, 1, 0]) + torch.tensor(
        [0, 0, 0.1, 1]
    )
    scores = torch.tensor([0.5, 0.5, 0.5, 0.4, 0.3, 0.2])

    def rows(*kept):
        return boxes[list(kept)], torch.ones(len(kept)), scores[list(kept)]

    four = OPTIONS._replace(top_k=4, max_overlap=0.2)
    middle, both, thrice = rows(1, 3, 4, 5), rows(0, 2, 3, 4), rows(1, 1, 1, 3)
    assert missing_rows(middle, both, four) == missing_rows(both, middle, four) == []
    assert missing_rows(middle, thrice, four) == [2]  # a program that finds an object again and again loses others
    assert missing_rows(middle, rows(1, 3), four) == [2]  # not a full list, so nothing was cut off
    ones = boxes[:4] + 10, torch.ones(4), torch.ones(4)  # a program whose scores are wrong
    assert missing_rows(middle, ones, four, ends_right=False) == [0, 1, 2]


def test_ties_may_come_in_any_order():
    boxes, labels = torch.arange(12.0).reshape(3, 4), torch.tensor([1, 2, 2])
    scores = torch.tensor([0.9, 0.5, 0.5])
    swapped = boxes[[0, 2, 1]], labels, scores
    assert missing_rows((boxes, labels, scores), swapped, OPTIONS) == []
    other = boxes + torch.tensor([0, 0, 1])[:, None], labels, scores
    assert missing_rows((boxes, labels, scores), other, OPTIONS) == [2]
    three = OPTIONS._replace(top_k=3)  # either of them may be the third
    assert missing_rows((boxes, labels, scores), other, three) == []
    overlapping = boxes + torch.tensor([0, 0, 0.1])[:, None], labels, scores  # NMS keeps one of the two
    assert missing_rows((boxes, labels, scores), overlapping, OPTIONS) == []
    assert missing_rows((boxes, labels, scores), overlapping, OPTIONS._replace(max_overlap=0.9)) == [2]
    assert missing_rows((boxes, labels, scores), [t[:0] for t in other], OPTIONS) == [0, 1, 2]
