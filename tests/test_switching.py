"""The lines of docs/switching.md, run as they stand there, against what they replace, written as loops."""

import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import adversarial as adv
import pytest
import torch
import torch.nn.functional as F
from ops.nms import batched_oracle

import ssd_ext
from ssd.networks.priors import make_priors

DOCUMENT = (Path(__file__).parents[1] / "docs" / "switching.md").read_text()
CLASSES, VARIANCES = 6, (0.1, 0.2)


def lines(mark: str) -> dict:
    """What the block of code under this mark defines."""
    (code,) = re.findall(rf"<!-- {mark} -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert not re.search(r"^(import|from) ssd\b(?!\.structures)", code, re.MULTILINE)  # theirs has that name
    names: dict = {}
    exec(compile(code, mark, "exec"), names)
    return names


@pytest.fixture(scope="module")
def priors():
    return make_priors("caffe_voc")[::7]  # (1248, 4) cxcywh, of all maps


@pytest.fixture
def objects():
    """Boxes and labels in 1..C-1 of three images."""
    g = adv.generator(3)
    boxes = [adv.random_boxes(n, n).clamp(0, 1) for n in (1, 4, 9)]
    return boxes, [torch.randint(1, CLASSES, (len(b),), generator=g) for b in boxes]


def corners(priors):
    return torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)


def encoded(boxes, priors):
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = (centre - priors[:, :2]) / (VARIANCES[0] * priors[:, 2:])
    return torch.cat([offsets, (size / priors[:, 2:]).log() / VARIANCES[1]], 1)


def matched(boxes, labels, priors, threshold):
    """The object of every prior, whatever its overlap, and its class or 0: a prior takes its best object, and the best
    prior of an object takes that object."""
    iou = ssd_ext.box_iou(boxes, corners(priors))
    best, which = iou.max(0)
    for i, prior in enumerate(iou.argmax(1).tolist()):
        best[prior], which[prior] = 2, i
    return which, torch.where(best >= threshold, labels[which], 0)


def loss_in_loops(loc, conf, locations, classes, ratio):
    """Smooth L1 and cross entropy with hard negatives, each a sum divided by the positives of the batch."""
    positive, loc_loss, conf_loss = classes > 0, 0.0, 0.0
    for i in range(len(loc)):
        ce = F.cross_entropy(conf[i], classes[i], reduction="none")
        loc_loss += F.smooth_l1_loss(loc[i][positive[i]], locations[i][positive[i]], reduction="sum")
        hard = ce[~positive[i]].sort(descending=True).values[: math.ceil(ratio * int(positive[i].sum()))]
        conf_loss += ce[positive[i]].sum() + hard.sum()
    return loc_loss / positive.sum(), conf_loss / positive.sum()


def check_losses(run, wanted, predictions):
    """Both losses, and the gradients of their sum."""
    for actual, expected in zip((run, wanted), ("actual", "expected"), strict=True):
        assert all(x.isfinite() for x in actual), expected
    torch.testing.assert_close(run, wanted, rtol=1e-5, atol=0)
    grads = [torch.autograd.grad(sum(losses), predictions) for losses in (run, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)


def predictions(priors, n=3):
    g = adv.generator(1)
    loc, conf = torch.randn(n, len(priors), 4, generator=g), torch.randn(n, len(priors), CLASSES, generator=g)
    conf[..., 0] += 3
    return loc.requires_grad_(), conf.requires_grad_()


def test_loss_of_amdegroot(priors, objects):
    criterion = lines("amdegroot: loss")["MultiBoxLoss"](CLASSES, 0.5, True, 0, True, 3, 0.5, False, False)
    loc, conf = predictions(priors)
    targets = [torch.cat([b, n[:, None] - 1.0], 1) for b, n in zip(*objects, strict=True)]
    found = [matched(b, n, priors, 0.5) for b, n in zip(*objects, strict=True)]
    locations = torch.stack([encoded(b[which], priors) for b, (which, _) in zip(objects[0], found, strict=True)])
    classes = torch.stack([classes for _, classes in found])
    wanted = loss_in_loops(loc, conf, locations, classes, 3)
    check_losses(criterion((loc, conf, priors), targets), wanted, (loc, conf))


def test_loss_of_lufficc(priors, objects):
    transform = lines("lufficc: targets")["SSDTargetTransform"](priors, *VARIANCES, 0.5)
    criterion = lines("lufficc: loss")["MultiBoxLoss"](3)
    loc, conf = predictions(priors)
    locations, classes = [], []
    for boxes, labels in zip(*objects, strict=True):
        which, expected = matched(boxes, labels, priors, 0.5)
        location, label = transform(boxes.numpy(), labels.numpy())
        assert torch.equal(label, expected)
        wanted = encoded(boxes[which], priors)
        torch.testing.assert_close(location[label > 0], wanted[label > 0], rtol=1e-5, atol=1e-5)
        locations.append(wanted)
        classes.append(expected)
    locations, classes = torch.stack(locations), torch.stack(classes)
    wanted = loss_in_loops(loc, conf, locations, classes, 3)
    check_losses(criterion(conf, loc, classes, locations), wanted, (loc, conf))


def decoded(loc, priors):
    centre = priors[:, :2] + loc[:, :2] * VARIANCES[0] * priors[:, 2:]
    size = priors[:, 2:] * (loc[:, 2:] * VARIANCES[1]).exp()
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def test_detection_of_amdegroot(priors):
    loc, conf = (x.detach() for x in predictions(priors))
    loc, conf, suppressed = loc / 10, conf.softmax(2), 0
    output = lines("amdegroot: detection")["Detect"](CLASSES, 0, 20, 0.1, 0.2)(loc, conf.view(-1, CLASSES), priors)
    assert output.shape == (3, CLASSES, 20, 5)
    assert not output[:, 0].any()
    for i in range(3):
        boxes = decoded(loc[i], priors)
        for c in range(1, CLASSES):
            passing = (conf[i, :, c] > 0.1).nonzero()[:, 0]
            best = passing[conf[i, passing, c].argsort(descending=True)[:20]]
            kept = best[batched_oracle(boxes[best], conf[i, best, c], torch.zeros_like(best), 0.2)]
            suppressed += len(best) - len(kept)
            torch.testing.assert_close(output[i, c, : len(kept), 0], conf[i, kept, c], rtol=1e-5, atol=0)
            torch.testing.assert_close(output[i, c, : len(kept), 1:], boxes[kept], rtol=1e-5, atol=1e-6)
            assert not output[i, c, len(kept) :].any()
    assert suppressed > 20


def test_detection_of_lufficc(priors, monkeypatch):
    monkeypatch.setitem(sys.modules, "ssd.structures", ModuleType("ssd.structures"))
    container = ModuleType("ssd.structures.container")
    container.Container = SimpleNamespace  # theirs has attributes of these names
    monkeypatch.setitem(sys.modules, "ssd.structures.container", container)
    limits = SimpleNamespace(CONFIDENCE_THRESHOLD=0.1, NMS_THRESHOLD=0.45, MAX_PER_IMAGE=30)
    model = SimpleNamespace(CENTER_VARIANCE=VARIANCES[0], SIZE_VARIANCE=VARIANCES[1])
    cfg = SimpleNamespace(INPUT=SimpleNamespace(IMAGE_SIZE=300), TEST=limits, MODEL=model)
    loc, conf = (x.detach() for x in predictions(priors))
    scores, boxes = conf.softmax(2), torch.stack([decoded(each, priors) for each in loc])
    results = lines("lufficc: detection")["PostProcessor"](cfg)((conf, loc, priors))
    for i, found in enumerate(results):
        prior, label = (scores[i, :, 1:] > 0.1).nonzero(as_tuple=True)
        score = scores[i, prior, label + 1]
        kept = batched_oracle(boxes[i, prior] * 300, score, label, 0.45)[:30]
        assert len(kept) == 30
        assert torch.equal(found.labels, label[kept] + 1)
        torch.testing.assert_close(found.scores, score[kept], rtol=1e-5, atol=0)
        torch.testing.assert_close(found.boxes, boxes[i, prior[kept]] * 300, rtol=1e-5, atol=1e-3)
        assert (found.img_width, found.img_height) == (300, 300)


@pytest.mark.parametrize("module", ["ssd", "ssd_ext"])
def test_imports_of_the_document_exist(module):
    for names in re.findall(rf"^from {module} import (.+)$", DOCUMENT, re.MULTILINE):
        exec(f"from {module} import {names}", {})
