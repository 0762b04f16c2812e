"""The tutorial's calling code with our imports, against its semantics written out image by image and class by class."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssd import SSD300, MultiBoxLoss
from ssd.boxes import cxcy_to_gcxgcy, cxcy_to_xy, find_jaccard_overlap, gcxgcy_to_cxcy, xy_to_cxcy

N_CLASSES = 5


def loops_loss(priors_cxcy, predicted_locs, predicted_scores, boxes, labels, threshold=0.5, ratio=3, alpha=1.0):
    """Loss and gradients as the tutorial computes them, in float64 after the matching."""
    priors_xy = cxcy_to_xy(priors_cxcy)
    locs, scores = (x.detach().double().requires_grad_() for x in (predicted_locs, predicted_scores))
    true_locs, true_classes = [], []
    for image_boxes, image_labels in zip(boxes, labels, strict=True):
        overlap = find_jaccard_overlap(image_boxes, priors_xy)  # (n, P)
        overlap_of_prior, object_of_prior = overlap.max(dim=0)
        for i in range(len(image_boxes)):
            prior = overlap[i].argmax()
            object_of_prior[prior] = i
            overlap_of_prior[prior] = 1.0
        classes = image_labels[object_of_prior]
        classes[overlap_of_prior < threshold] = 0
        true_classes.append(classes)
        target = cxcy_to_gcxgcy(xy_to_cxcy(image_boxes.double()[object_of_prior]), priors_cxcy.double())
        true_locs.append(target)
    true_locs, true_classes = torch.stack(true_locs), torch.stack(true_classes)
    positive = true_classes != 0
    loc_loss = (locs[positive] - true_locs[positive]).abs().mean()
    losses = F.cross_entropy(scores.flatten(0, 1), true_classes.flatten(), reduction="none").view(positive.shape)
    total = losses[positive].sum()
    for image in range(len(boxes)):
        k = math.ceil(ratio * positive[image].sum())
        total = total + losses[image][~positive[image]].sort(descending=True).values[:k].sum()
    loss = total / positive.sum() + alpha * loc_loss
    return loss.detach(), *torch.autograd.grad(loss, (locs, scores))


def loops_detect(priors_cxcy, predicted_locs, predicted_scores, min_score, max_overlap, top_k):
    """(box, label, score) lists of each image, best first, as the tutorial finds them."""
    found = []
    for locs, scores in zip(predicted_locs, F.softmax(predicted_scores.double(), dim=2), strict=True):
        decoded = cxcy_to_xy(gcxgcy_to_cxcy(locs, priors_cxcy))
        image = []
        for c in range(1, scores.shape[1]):
            candidates = (scores[:, c] > min_score).nonzero().squeeze(1)
            order = candidates[scores[candidates, c].argsort(descending=True)]
            suppressed = torch.zeros(len(order), dtype=torch.bool)
            overlap = find_jaccard_overlap(decoded[order], decoded[order])
            for i in range(len(order)):
                if not suppressed[i]:
                    image.append((float(scores[order[i], c]), c, decoded[order[i]]))
                    later = torch.arange(len(order)) > i
                    suppressed |= later & (overlap[i] > max_overlap)
        image.sort(key=lambda row: -row[0])
        found.append(image[:top_k])
    return found


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return SSD300(n_classes=N_CLASSES, width=0.05)


def batch(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for i in range(n):
        corner = torch.rand(2 * i + 1, 2, generator=g) * 0.6
        boxes.append(torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(len(corner), 2, generator=g)], dim=1))
        labels.append(torch.randint(1, N_CLASSES, (len(corner),), generator=g))
    return torch.randn(n, 3, 300, 300, generator=g), boxes, labels


def test_training_code_of_the_tutorial(model):
    criterion = MultiBoxLoss(priors_cxcy=model.priors_cxcy).to("cpu")
    images, boxes, labels = batch()

    predicted_locs, predicted_scores = model(images)  # (N, 8732, 4), (N, 8732, n_classes)
    predicted_locs.retain_grad()
    predicted_scores.retain_grad()
    loss = criterion(predicted_locs, predicted_scores, boxes, labels)  # scalar
    loss.backward()

    wanted, grad_locs, grad_scores = loops_loss(model.priors_cxcy, predicted_locs, predicted_scores, boxes, labels)
    torch.testing.assert_close(loss.detach().double(), wanted, rtol=1e-5, atol=0)
    for ours, theirs in ((predicted_locs.grad, grad_locs), (predicted_scores.grad, grad_scores)):
        assert theirs.abs().max() > 0
        # single probabilities are rounded to float32: absolute 1e-7 of values up to 1 / n_pos
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("threshold", "ratio", "alpha"), [(0.5, 3, 1.0), (0.35, 1, 0.25), (0.7, 10, 2.0)])
def test_constructor_arguments_in_the_tutorials_order(model, threshold, ratio, alpha):
    criterion = MultiBoxLoss(model.priors_cxcy, threshold, ratio, alpha)
    g = torch.Generator().manual_seed(5)
    _, boxes, labels = batch(seed=7)
    locs, scores = torch.randn(3, 8732, 4, generator=g), 3 * torch.randn(3, 8732, N_CLASSES, generator=g)
    wanted, *_ = loops_loss(model.priors_cxcy, locs, scores, boxes, labels, threshold, ratio, alpha)
    torch.testing.assert_close(criterion(locs, scores, boxes, labels).double(), wanted, rtol=1e-5, atol=0)


def test_attributes_and_state_dict(model):
    criterion = MultiBoxLoss(model.priors_cxcy)
    assert (criterion.threshold, criterion.neg_pos_ratio, criterion.alpha) == (0.5, 3, 1.0)
    assert torch.equal(criterion.priors_cxcy, model.priors_cxcy)
    assert criterion.state_dict() == {}


def test_detection_code_of_the_tutorial(model):
    g = torch.Generator().manual_seed(2)
    predicted_locs = torch.randn(3, 8732, 4, generator=g)
    predicted_scores = torch.randn(3, 8732, N_CLASSES, generator=g)
    predicted_scores[:, :, 0] += 7.5
    predicted_scores[2, :, 0] += 90  # nothing to find

    det_boxes, det_labels, det_scores = model.detect_objects(
        predicted_locs, predicted_scores, min_score=0.01, max_overlap=0.45, top_k=50
    )

    wanted = loops_detect(model.priors_cxcy, predicted_locs, predicted_scores, 0.01, 0.45, 50)
    assert len(wanted[0]) == 50
    for boxes, labels, scores, rows in zip(det_boxes[:2], det_labels, det_scores, wanted, strict=False):
        assert (boxes.dtype, labels.dtype, scores.dtype) == (torch.float32, torch.int64, torch.float32)
        assert labels.tolist() == [label for _, label, _ in rows]
        torch.testing.assert_close(scores.double(), torch.tensor([s for s, _, _ in rows]).double(), rtol=1e-5, atol=0)
        torch.testing.assert_close(boxes, torch.stack([box for _, _, box in rows]), rtol=1e-5, atol=1e-6)
    assert det_boxes[2].tolist() == [[0, 0, 1, 1]]
    assert det_labels[2].tolist() == [0]
    assert det_scores[2].tolist() == [0]
