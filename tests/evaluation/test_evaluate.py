"""Evaluation of a network: its detections reach the metric, its options reach detection."""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from evaluation_inputs import CAT, CLASSES, DOG, all_methods, needs_coco, truth
from own_process import printed_by
from small_datasets import add_picture
from torch.nn.utils.rnn import pad_sequence

import ssd_ext
from ssd import SSD300
from ssd.boxes import cxcy_to_xy
from ssd.data import BoxDataset, open_dataset
from ssd.data.augmentation import EvalTransform
from ssd.data.shapes import write_shapes
from ssd.evaluation import coco as coco_metrics
from ssd.evaluation.coco import CocoResult
from ssd.evaluation.evaluate import EvalResult, detect_all, evaluate
from ssd.inference.prediction import Predict
from ssd.networks.priors import make_priors
from ssd.runtime.processes import Ranks
from ssd_ext import DetectionOptions


class Replay(torch.nn.Module):
    """A network that gives, for a picture filled with the number i, the i-th of the given predictions."""

    def __init__(self, priors_cxcy: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("priors_cxcy", priors_cxcy)
        self.register_buffer("offsets", offsets)
        self.register_buffer("logits", logits)
        self.batch_sizes = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batch_sizes.append(len(images))
        pictures = images[:, 0, 0, 0].long()
        return self.offsets[pictures], self.logits[pictures]


def picture(i: int) -> torch.Tensor:
    return torch.full((3, 4, 4), float(i))


def test_evaluate_of_a_network_that_knows_the_truth(device: torch.device) -> None:
    targets = [
        truth(([0.1, 0.1, 0.4, 0.5], CAT), ([0.5, 0.5, 0.95, 0.9], DOG)),
        truth(),
        truth(([0.0, 0.0, 1.0, 1.0], DOG), ([0.05, 0.7, 0.12, 0.8], DOG)),
        truth(([0.3, 0.2, 0.6, 0.9], CAT), ([0.3, 0.2, 0.6, 0.9], DOG, True)),
        truth(([0.8, 0.8, 0.9, 0.9], CAT)),
    ]
    priors = make_priors()
    offsets, logits = [], []
    for target in targets:
        boxes, labels = target["boxes"].reshape(-1, 4), target["labels"]
        row_splits = torch.tensor([0, len(boxes)], dtype=torch.int32)
        match = ssd_ext.match_priors(boxes, row_splits, cxcy_to_xy(priors))[0].long()
        aims = torch.cat([boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]])])[match]  # -1: any box, for background
        offsets.append(ssd_ext.encode_boxes(aims, priors))
        wanted = torch.cat([labels, torch.tensor([0])])[match]
        logits.append(12.0 * torch.nn.functional.one_hot(wanted, 3))
    model = Replay(priors, torch.stack(offsets), torch.stack(logits)).to(device).train()

    samples = [(picture(i), target) for i, target in enumerate(targets)]
    result = evaluate(model, samples, CLASSES, iou_threshold=0.95, batch_size=2, quiet=True)
    assert result.mAP == 1
    assert result.ap == {"cat": 1, "dog": 1}
    assert result.n_truths == {"cat": 3, "dog": 3}
    assert model.batch_sizes == [2, 2, 1]
    assert model.training  # as before

    # With the truths of other pictures nothing is right.
    samples = [(picture(i), target) for i, target in enumerate(targets[1:] + targets[:1])]
    assert evaluate(model, samples, CLASSES, iou_threshold=0.95, quiet=True).mAP == 0


def three_boxes() -> tuple[Replay, list]:
    """One picture; cats at the left quarter (score 1/2) and, IoU 3/5, right of it (2/5), and far off (3/10)."""
    priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.375, 0.25, 0.5, 0.5], [0.875, 0.875, 0.25, 0.25]])  # (3,4)
    cat = torch.tensor([0.5, 0.4, 0.3])
    logits = torch.stack([1 - cat - 1e-6, cat, torch.full((3,), 1e-6)], 1).log()  # (3,3): softmax gives them back
    boxes = cxcy_to_xy(priors)  # what offsets of zero decode to
    target = {"boxes": boxes, "labels": torch.tensor([CAT, CAT, CAT])}
    return Replay(priors, torch.zeros(1, 3, 4), logits[None]), [(picture(0), target)]


@pytest.mark.parametrize(
    ("options", "n_detections"),
    [
        ({}, 2),  # the second overlaps the first with 3/5, more than 0.45
        ({"max_overlap": 0.65}, 3),
        ({"min_score": 0.35}, 1),
        ({"max_overlap": 0.65, "min_score": 0.35}, 2),
        ({"max_overlap": 0.65, "top_k": 1}, 1),
    ],
)
def test_evaluate_hands_its_options_on(options: dict[str, float], n_detections: int) -> None:
    result = evaluate(*three_boxes(), CLASSES, DetectionOptions(**options), quiet=True)
    assert result.n_detections == {"cat": n_detections, "dog": 0}
    # All of them are right: n of 3 objects are found.
    assert result.ap["cat"] == pytest.approx(n_detections / 3)


def test_evaluate_hands_the_metric_on() -> None:
    result = evaluate(*three_boxes(), CLASSES, iou_threshold=0.7, method="11point", quiet=True)
    assert (result.iou_threshold, result.method) == (0.7, "11point")
    # 2 of 3 objects are found, precision 1: the points 0, .1 .. .6
    assert result.ap["cat"] == pytest.approx(7 / 11)
    with pytest.raises(ValueError, match="got 'voc'"):
        evaluate(*three_boxes(), CLASSES, method="voc", quiet=True)


def test_a_module_without_buffers_is_measured() -> None:
    """Its priors are a plain attribute."""

    class Plain(torch.nn.Module):
        priors_cxcy = torch.tensor([[0.5, 0.5, 0.4, 0.4]])

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(images), 1, 4), torch.tensor([0.0, 9.0]).expand(len(images), 1, 2)

    sample = torch.zeros(3, 8, 8), {"boxes": torch.tensor([[0.3, 0.3, 0.7, 0.7]]), "labels": torch.tensor([1])}
    assert evaluate(Plain(), [sample] * 2, ["a"], workers=0, quiet=True).mAP == 1


def test_modes_are_restored() -> None:
    """Also after an error, and also where only a part is in training mode, as with frozen stages."""
    model, samples = three_boxes()
    model.part = torch.nn.Identity()
    for wrong in ([], [None]):
        model.train().part.eval()
        with pytest.raises(ValueError, match="a sample must be") if wrong else nullcontext():
            evaluate(model, samples + wrong, CLASSES, batch_size=1, workers=0, quiet=True)
        assert model.training
        assert not model.part.training


def test_truths_in_pixels_are_named() -> None:
    """With them no detection would be right, as of a network that has learnt nothing."""
    model, [(image, target)] = three_boxes()
    samples = [(image, target | {"boxes": 300 * target["boxes"]})]
    with pytest.raises(ValueError, match="boxes must be in fractions of the image"):
        evaluate(model, samples, CLASSES, quiet=True)


def test_evaluate_of_an_empty_dataset() -> None:
    model, _ = three_boxes()
    assert math.isnan(evaluate(model, [], CLASSES, quiet=True).mAP)


def test_progress_bar_unless_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    evaluate(*three_boxes(), CLASSES, quiet=True)
    assert terminal.getvalue() == ""
    evaluate(*three_boxes(), CLASSES)
    assert "1/1" in terminal.getvalue()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are wider than high."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "s", 0, 5, size=(250, 100), seed=1)


def partly_right(dataset: BoxDataset, order: Sequence[int]) -> Predict:
    """What finds of the pictures, which come in this order, 82 % of each object."""
    pictures = iter(order)

    def predict(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        truths = [dataset.truths[next(pictures)] for _ in images]
        found = [t["boxes"] / torch.tensor([250.0, 100, 250, 100]) for t in truths]
        for boxes in found:
            boxes[:, 3] -= 0.18 * (boxes[:, 3] - boxes[:, 1])
        boxes, labels = (pad_sequence(rows, batch_first=True) for rows in (found, [t["labels"] for t in truths]))
        return boxes, labels, torch.full(labels.shape, 0.5), torch.tensor([len(rows) for rows in found])

    return predict


@needs_coco
def test_coco_measures_in_pixels_of_the_picture(shapes: Path) -> None:
    dataset = open_dataset(shapes, transform=EvalTransform(300))
    result = evaluate(
        partly_right(dataset, range(5)), dataset, dataset.classes, method="coco", workers=0, quiet=True, batch_size=2
    )
    assert isinstance(result, CocoResult)
    sizes = torch.cat([truth["areas"] for truth in dataset.truths])
    assert 0 < (sizes < 32 * 32).sum() < len(sizes)
    assert sizes.max() < 96 * 96
    assert [result.figures[name] for name in ("AP50", "AP75")] == pytest.approx([1, 1])
    # found at 0.5, 0.55 .. 0.8: seven of ten IoUs
    assert [result.figures[name] for name in ("AP", "APs", "APm")] == pytest.approx([0.7] * 3)
    assert math.isnan(result.figures["APl"])
    assert sum(result.n_truths.values()) == sum(result.n_detections.values()) == len(sizes)


@needs_coco
def test_coco_cuts_detections_at_the_edges(tmp_path: Path) -> None:
    add_picture(tmp_path, "a", [("cat", 1, 1, 40, 30)], size=(40, 30))
    dataset = open_dataset(tmp_path, classes=CLASSES, transform=EvalTransform(300))
    beyond = torch.tensor([[[-1.0, -1, 2, 2]]]), torch.tensor([[CAT]]), torch.tensor([[0.5]]), torch.tensor([1])
    result = evaluate(lambda images: beyond, dataset, CLASSES, method="coco", workers=0, quiet=True)
    assert result.mAP == pytest.approx(1)


def test_coco_is_told_what_it_lacks_before_the_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = three_boxes()
    monkeypatch.setattr(coco_metrics, "find_spec", lambda name: "there")
    with pytest.raises(ValueError, match="method 'coco' measures in pixels: it needs a BoxDataset, got list"):
        evaluate(model, samples, CLASSES, method="coco", quiet=True)
    monkeypatch.setattr(coco_metrics, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs faster-coco-eval: pip install 'ssd-ext\[coco\]'"):
        evaluate(model, samples, CLASSES, method="coco", quiet=True)
    assert model.batch_sizes == []


@all_methods
def test_processes_that_share_the_pictures_return_the_result_of_all(shapes: Path, method: str) -> None:
    dataset = open_dataset(shapes, transform=EvalTransform(300))
    options = {"method": method, "workers": 0, "quiet": True}
    expected = evaluate(partly_right(dataset, range(5)), dataset, dataset.classes, **options)
    barrier, parts = threading.Barrier(2, timeout=60), [None, None]

    class Process(Ranks):
        def to_first(self, value):
            parts[self.rank] = value
            barrier.wait()
            found = [] if self.rank else list(parts)
            barrier.wait()
            return found

        def from_first(self, function):
            self.to_first(None if self.rank else function())
            return parts[0]

    def run(rank: int) -> EvalResult:
        model = partly_right(dataset, range(rank, 5, 2))
        return evaluate(model, dataset, dataset.classes, **options, ranks=Process(rank, 2))

    with ThreadPoolExecutor(2) as threads:
        assert list(map(repr, threads.map(run, range(2)))) == [repr(expected)] * 2
    assert 0 < expected.mAP <= 1


FEW_FILES = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from ssd.evaluation.evaluate import detect_all
truth = {"boxes": torch.rand(3, 4), "labels": torch.tensor([1, 2, 1])}
samples = [(torch.zeros(3, 4, 4, dtype=torch.uint8), truth)] * 300
labels = torch.zeros(1, 1, dtype=torch.int64)
nothing = torch.zeros(1, 1, 4), labels, torch.zeros(1, 1), labels[0]
detections, truths = detect_all(lambda images: nothing, samples, batch_size=1, workers=1, quiet=True)
assert len(detections) == len(truths) == 300
assert all(torch.equal(t["boxes"], truth["boxes"]) for t in truths)
"""


def test_no_files_are_kept_open_for_the_batches_of_workers() -> None:
    printed_by(FEW_FILES)


@all_methods
def test_a_network_of_nan_finds_nothing(shapes: Path, method: str) -> None:
    dataset = open_dataset(shapes, transform=EvalTransform(300))
    model = SSD300(4, width=0.01)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    result = evaluate(model, dataset, dataset.classes, method=method, workers=0, quiet=True)
    assert result.mAP == 0
    assert sum(result.n_detections.values()) == 0


def test_pictures_are_read_for_the_device_of_the_network(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, devices = open_dataset(shapes, transform=EvalTransform(300)), []

    def loader(dataset: object, batch_size: int, workers: int, device: torch.device | None) -> list[object]:
        devices.append(device)
        return []

    monkeypatch.setattr("ssd.evaluation.evaluate.eval_loader", loader)
    monkeypatch.setattr("ssd.evaluation.evaluate.closing", nullcontext)
    on = torch.device("cpu")
    detect_all(SSD300(4, width=0.01), dataset, workers=0, quiet=True)
    detect_all(SSD300(4, width=0.01).forward, dataset, workers=0, quiet=True, device=on)
    assert devices == [on, on]
