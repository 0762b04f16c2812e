import math
from functools import partial

import adversarial as adv
import pytest
import torch
from torch.testing import assert_close

import ssd_ext
from ops.postprocess_detections import inputs as predictions
from ops.postprocess_detections import oracle, padded
from ssd_ext import DetectionOptions
from ssd_ext.ops import postprocess_detections as module
from ssd_ext.ops.postprocess_detections import postprocess_detections_plain

IMPLEMENTATIONS = pytest.mark.parametrize(
    "postprocess", [postprocess_detections_plain, ssd_ext.postprocess_detections], ids=["plain", "public"]
)
# exp of PyTorch and of the kernels differ by a few units in the last place of float32 (2^-24)
CLOSE = {"rtol": 2e-6, "atol": 1e-6}


def compare(actual, expected):
    """Which ones, in which order, and the padding: equal; what exp was used for: close."""
    assert [x.dtype for x in actual] == [torch.float32, torch.int64, torch.float32, torch.int32]
    boxes, labels, scores, counts = (x.cpu() for x in actual)
    assert torch.equal(counts, expected[3])
    assert torch.equal(labels, expected[1])
    assert_close(scores, expected[2], **CLOSE)
    assert_close(boxes, expected[0], **CLOSE, equal_nan=True)
    padding = torch.arange(labels.shape[1]) >= counts[:, None]
    assert not boxes[padding].any()
    assert not scores[padding].any()
    assert not labels[padding].any()


def check(postprocess, inputs, *limits, device):
    options = DetectionOptions(*limits)
    expected = oracle(*inputs, *options)
    inputs = [x.to(device) for x in inputs]
    compare(postprocess(*inputs, options), expected)
    compare(postprocess(*map(adv.sliced, inputs), options), expected)
    return expected


# Scores 1, 1/2, 1/3 ..., boxes on a 1/4 grid: ties between priors, between classes and between IoUs.
exact = partial(predictions, kind="exact")
# One class for each prior, scores apart from each other, random boxes.
separated = partial(predictions, kind="separated")


@IMPLEMENTATIONS
@pytest.mark.parametrize("n_priors", adv.SIZES)
@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_equals_the_oracle(postprocess, n_priors, n_classes, device):
    for seed, make in enumerate((exact, separated) if n_classes > 1 else (exact,)):
        for top_k in (0, 1, 10, 500):
            inputs = make(3, n_priors, n_classes, seed)
            check(postprocess, inputs, 0.15, 0.4, top_k, device=device)


@IMPLEMENTATIONS
@pytest.mark.parametrize("make", [exact, separated])
def test_more_candidates_than_a_band(postprocess, make, device):
    inputs = make(2, 400, 5)
    for top_k in (20, 300):
        check(postprocess, inputs, 0.01, 0.3, top_k, device=device)


@IMPLEMENTATIONS
@pytest.mark.parametrize("make", [exact, separated])
@pytest.mark.parametrize("pre_nms_top_k", [0, 1, 7, 64, 1000])
def test_pre_nms_top_k(postprocess, make, pre_nms_top_k, device):
    inputs = make(2, 64, 4)
    expected = check(postprocess, inputs, 0.15, 0.4, 100, pre_nms_top_k, device=device)
    assert (expected[3] <= 3 * pre_nms_top_k).all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("logits", ["untrained", "trained"])
def test_all_priors_of_ssd300(postprocess, logits, device):
    """Against NMS of each class and a sort; untrained: all 174,640 candidates pass, with equal scores."""
    n_priors, n_classes, top_k = adv.N_PRIORS, 21, 200
    inputs = [x.to(device) for x in separated(2, n_priors, n_classes)]
    if logits == "untrained":
        inputs[1].fill_(0.125)
    boxes = ssd_ext.decode_boxes(inputs[0], inputs[2])
    scores = inputs[1].softmax(dim=-1)
    found = []
    for b, s in zip(boxes, scores, strict=True):
        pairs = []
        for label in range(1, n_classes):
            passing = (s[:, label] > 0.01).nonzero()[:, 0]
            kept = passing[ssd_ext.nms(b[passing], s[passing, label], 0.45)]
            pairs += [(-float(s[p, label]), label, p) for p in kept.tolist()]
            if logits == "untrained" and len(pairs) >= top_k:
                break  # equal scores: every other class comes later
        found.append([(p, label) for _, label, p in sorted(pairs)[:top_k]])
    expected = padded(found, boxes.cpu(), scores.cpu(), top_k)
    compare(postprocess(*inputs, DetectionOptions(0.01, 0.45, top_k)), expected)


@pytest.mark.parametrize("band", [1, 3, 50])
def test_where_bands_and_sub_batches_end_does_not_matter(band, monkeypatch, device):
    cases = [make(5, 65, 4, seed) for make in (exact, separated) for seed in range(3)]
    expected = [postprocess_detections_plain(*inputs, DetectionOptions(0.1, 0.3, 40)) for inputs in cases]
    monkeypatch.setattr(module, "NMS_BAND", band)
    monkeypatch.setattr(module, "SCORES_BYTES", 2 * 65 * 4 * 4)
    for inputs, before in zip(cases, expected, strict=True):
        assert_close(postprocess_detections_plain(*inputs, DetectionOptions(0.1, 0.3, 40)), before, rtol=0, atol=0)


@IMPLEMENTATIONS
def test_order_and_ties(postprocess, device):
    """Score descending, class ascending, prior ascending; all boxes apart."""
    priors = adv.to_cxcywh(torch.tensor([[i, 0.0, i + 0.5, 1.0] for i in range(4)])).to(device)
    off = -adv.INF
    logits = torch.tensor([[[0, 0, 0.0], [off, off, 0], [off, 0, 0], [off, 0, off]]], device=device)
    pred_offsets, options = torch.zeros(1, 4, 4, device=device), DetectionOptions(0.1, 0.5, 10)
    boxes, labels, scores, counts = postprocess(pred_offsets, logits, priors, options)
    assert labels[0].tolist() == [1, 2, 1, 2, 1, 2, 0, 0, 0, 0]
    assert boxes[0, :, 0].tolist() == [3, 1, 2, 2, 0, 0, 0, 0, 0, 0]
    third = torch.tensor(1 / 3).item()
    assert_close(scores[0].tolist(), [1.0, 1.0, 0.5, 0.5, third, third, 0.0, 0.0, 0.0, 0.0])
    assert counts.tolist() == [6]


@IMPLEMENTATIONS
def test_both_limits_are_exclusive(postprocess, device):
    priors = adv.to_cxcywh(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]])).to(device)  # IoU 0.5
    pred_offsets, logits = torch.zeros(1, 2, 4, device=device), torch.zeros(1, 2, 2, device=device)  # score 0.5
    assert postprocess(pred_offsets, logits, priors, DetectionOptions(0.5, 0.5, 10))[3].tolist() == [0]
    assert postprocess(pred_offsets, logits, priors, DetectionOptions(0.499, 0.5, 10))[3].tolist() == [2]
    assert postprocess(pred_offsets, logits, priors, DetectionOptions(0.499, 0.499, 10))[3].tolist() == [1]


@IMPLEMENTATIONS
def test_scores_are_compared_in_float32_and_overlaps_with_a_double(postprocess, device):
    # 1/3 in float32 is above 1/3 in float64.
    priors = adv.to_cxcywh(torch.tensor([[0.0, 0.0, 6.0, 1.0], [0.0, 0.0, 2.0, 1.0]])).to(device)
    pred_offsets, logits = torch.zeros(1, 2, 4, device=device), torch.zeros(1, 2, 3, device=device)
    assert postprocess(pred_offsets, logits, priors, DetectionOptions(1 / 3, 1 / 3, 10))[3].tolist() == [0]
    assert postprocess(pred_offsets, logits, priors, DetectionOptions(0.3, 1 / 3, 10))[3].tolist() == [2]
    assert postprocess(pred_offsets, logits, priors, DetectionOptions(0.3, 0.33333336, 10))[3].tolist() == [4]


@IMPLEMENTATIONS
def test_sigmoid_scores_each_class_by_itself(postprocess, device):
    logits = torch.tensor([[[adv.INF, 0.0, adv.NAN], [adv.NAN, -1.0, 3.0], [0.0, adv.INF, -adv.INF]]], device=device)
    priors = torch.tensor([[i, 0.0, 0.1, 0.1] for i in range(3)], device=device)
    options = DetectionOptions(0.3, score="sigmoid")
    _, labels, scores, counts = postprocess(torch.zeros(1, 3, 4, device=device), logits, priors, options)
    assert counts.tolist() == [3]  # a sigmoid of -1 is 0.27; background decides nothing, a NaN only over itself
    assert labels[0, :3].tolist() == [1, 2, 1]
    torch.testing.assert_close(scores[0, :3].cpu(), torch.tensor([adv.INF, 3.0, 0.0]).sigmoid())


@IMPLEMENTATIONS
def test_boxes_are_cut_at_the_image_before_nms(postprocess, device):
    # Of equal centres: beyond the image they differ, in it they are the same.
    priors = adv.to_cxcywh(torch.tensor([[-3.0, 0.0, 0.5, 0.5], [-0.5, 0.0, 0.5, 0.5], [2.0, 2.0, 3.0, 3.0]])).to(
        device
    )
    logits = torch.tensor([[[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]]], device=device)
    options = DetectionOptions(0.1, 0.5, 10)
    assert postprocess(torch.zeros(1, 3, 4, device=device), logits, priors, options)[3].tolist() == [3]
    boxes, *_, counts = postprocess(torch.zeros(1, 3, 4, device=device), logits, priors, options._replace(clip=True))
    assert counts.tolist() == [2]  # one outside has no area, and stays, as torchvision has it
    assert boxes[0, :2].tolist() == [[0, 0, 0.5, 0.5], [1, 1, 1, 1]]
    assert not boxes.cpu().signbit().any()


@IMPLEMENTATIONS
def test_the_scale_of_a_box_can_be_limited(postprocess, device):
    pred_offsets = torch.tensor([[[0.0, 0.0, 100.0, -5.0]]], device=device)
    arguments = pred_offsets, torch.zeros(1, 1, 2, device=device), torch.tensor([[0.5, 0.5, 0.1, 0.1]], device=device)
    boxes, *_ = postprocess(*arguments, DetectionOptions(top_k=1, max_log_scale=math.log(4)))
    width, height = (boxes[0, 0, 2:] - boxes[0, 0, :2]).tolist()
    assert (width, height) == pytest.approx((0.4, 0.1 / math.e))


@IMPLEMENTATIONS
def test_integer_priors(postprocess, device):
    offsets, logits = (torch.randn(1, 6, n, generator=adv.generator(n)).to(device) for n in (4, 3))
    priors = torch.arange(1, 25, device=device).view(6, 4)
    expected = postprocess(offsets, logits, priors.float(), DetectionOptions())
    for ours, wanted in zip(postprocess(offsets, logits, priors, DetectionOptions()), expected, strict=True):
        assert torch.equal(ours, wanted)


@IMPLEMENTATIONS
def test_classes_do_not_suppress_each_other(postprocess, device):
    priors = adv.to_cxcywh(torch.tensor([[0.0, 0.0, 1.0, 1.0]])).expand(6, 4).to(device)
    zeros = torch.zeros(1, 6, 4, device=device)  # offsets, and logits of four classes
    boxes, labels, _, counts = postprocess(zeros, zeros, priors, DetectionOptions(0.1, 0.5, 10))
    assert counts.tolist() == [3]
    assert labels[0, :4].tolist() == [1, 2, 3, 0]
    assert boxes[0, :4].tolist() == [[0, 0, 1, 1]] * 3 + [[0, 0, 0, 0]]


@IMPLEMENTATIONS
def test_a_negative_min_score_lets_no_background_in(postprocess, device):
    for min_score in (-0.5, -2.0):
        expected = check(postprocess, exact(2, 33, 3), min_score, 0.4, 200, device=device)
        assert (expected[3] < 200).all()
        check(postprocess, exact(2, 33, 3), min_score, 0.4, 200, 20, device=device)
        check(postprocess, exact(2, 33, 3), min_score, -0.5, 200, device=device)  # all but the best of a class go


@IMPLEMENTATIONS
def test_nothing_found(postprocess, device):
    outputs = postprocess(*(x.to(device) for x in separated(3, 33, 5)), DetectionOptions(0.99, 0.4, 7))
    assert outputs[0].shape == (3, 7, 4)
    assert not any(x.any() for x in outputs)


@IMPLEMENTATIONS
def test_one_empty_image_among_others(postprocess, device):
    inputs = exact(4, 33, 3)
    inputs[1][1:3] = torch.tensor([0.0, -adv.INF, -adv.INF])
    counts = check(postprocess, inputs, 0.01, 0.4, 20, device=device)[3]
    assert (counts > 0).tolist() == [True, False, False, True]


@IMPLEMENTATIONS
@pytest.mark.parametrize(("n_images", "n_priors", "n_classes"), [(0, 33, 5), (3, 0, 5), (3, 33, 1), (0, 0, 1)])
def test_empty_inputs(postprocess, n_images, n_priors, n_classes, device):
    logits = torch.zeros(n_images, n_priors, n_classes)
    inputs = torch.zeros(n_images, n_priors, 4), logits, torch.ones(n_priors, 4)
    boxes, labels, scores, counts = postprocess(*(x.to(device) for x in inputs), DetectionOptions(0.01, 0.45, 9))
    assert (boxes.shape, labels.shape, scores.shape) == ((n_images, 9, 4), (n_images, 9), (n_images, 9))
    assert counts.tolist() == [0] * n_images


@IMPLEMENTATIONS
def test_best_candidates_at_regular_places(postprocess, device):
    """A sample of every 61st candidate has all the best ones and says little about the others."""
    n = 20_000
    best = torch.arange(n) % 61 == 0
    scores = torch.linspace(0.05, 0.2, n)
    scores[best] += 0.7
    logits = torch.stack([torch.zeros(n), torch.logit(scores.double()).float()], dim=1)[None]
    points = torch.zeros(n, 4)  # overlap nothing
    found = postprocess(
        torch.zeros(1, n, 4, device=device), logits.to(device), points.to(device), DetectionOptions(0.01, 0.5, 1000)
    )
    expected = scores.sort(descending=True).values[:1000]
    assert_close(found[2][0].cpu(), expected, **CLOSE)


@IMPLEMENTATIONS
def test_a_batch_is_its_images(postprocess, device):
    """Many images are shared out to threads, of few the rows are."""
    inputs = [x.to(device) for x in exact(17, 700, 5)]
    whole = postprocess(*inputs, DetectionOptions(0.15, 0.4, 30))
    for i in range(17):
        image = slice(i, i + 1)
        alone = postprocess(inputs[0][image], inputs[1][image], inputs[2], DetectionOptions(0.15, 0.4, 30))
        assert all(torch.equal(a, b[image]) for a, b in zip(alone, whole, strict=True))


@IMPLEMENTATIONS
@pytest.mark.parametrize("value", [adv.NAN, adv.INF, -adv.INF])
def test_not_finite_logits(postprocess, value, device):
    """A row with a NaN or +inf has no scores; -inf is a probability of 0; a row of -inf has none."""
    for make, min_score in ((separated, 0.05), (exact, -1.0)):
        inputs = make(2, 33, 4)
        inputs[1][0, 3, 0] = value
        inputs[1][0, 7, 2] = value
        inputs[1][1, 5] = value
        check(postprocess, inputs, min_score, 0.4, 200, device=device)
        check(postprocess, inputs, min_score, 0.4, 200, 2, device=device)
    inputs[1].fill_(value)
    assert check(postprocess, inputs, -1.0, 0.4, 10, device=device)[3].tolist() == [0, 0]


@IMPLEMENTATIONS
def test_not_finite_boxes_suppress_nothing(postprocess, device):
    inputs = separated(1, 65, 2)
    values = torch.tensor([adv.NAN, adv.INF, -adv.INF, 1e30, 1000.0])
    for i in range(20):
        inputs[0][0, 3 * i, i % 4] = values[i // 4]
    expected = check(postprocess, inputs, 0.01, 0.3, 100, device=device)
    assert not expected[0].isfinite().all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(postprocess, dtype, device):
    """All are computed in float32; what only float64 tells apart is a tie."""
    pred_offsets, logits, priors = exact(2, 65, 4)
    little = torch.rand(2, 65, 4, generator=adv.generator(0)).double() * 1e-12
    logits = torch.where(logits == 0, little, logits)
    inputs = [x.to(device, dtype) for x in (pred_offsets, logits, priors)]
    inputs[1] = inputs[1] + 0.75 if dtype == torch.float64 else inputs[1]
    options = DetectionOptions(0.1, 0.3, 40)
    found = postprocess(*inputs, options)
    assert_close(found, postprocess(*(x.float() for x in inputs), options), rtol=0, atol=0)
    compare(found, oracle(*(x.cpu() for x in inputs), *options))


@IMPLEMENTATIONS
def test_variances(postprocess, device):
    priors = torch.tensor([[0.5, 0.5, 0.25, 0.5]], device=device)
    pred_offsets = torch.tensor([[[0.5, 0.25, 0.0, 1.0]]], device=device)
    logits = torch.tensor([[[-adv.INF, 0.0]]], device=device)
    boxes, *_ = postprocess(pred_offsets, logits, priors, DetectionOptions(0.1, 0.5, 1, None, 1.0, 0.6931471805599453))
    assert_close(boxes[0, 0].tolist(), [0.5, 0.125, 0.75, 1.125])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pred_offsets", {"pred_offsets": torch.zeros(2, 9, 5)}),
        ("pred_logits", {"pred_logits": torch.zeros(2, 9)}),
        ("priors", {"priors_cxcywh": torch.zeros(8, 4)}),
        ("top_k", {"options": DetectionOptions(top_k=-1)}),
        ("pre_nms_top_k", {"options": DetectionOptions(pre_nms_top_k=-1)}),
        ("score must be one of softmax, sigmoid", {"options": DetectionOptions(score="logit")}),
        ("variances", {"options": DetectionOptions(size_variance=-0.2)}),
    ],
)
def test_bad_input_is_named(name, change):
    predictions = {"pred_offsets": torch.zeros(2, 9, 4), "pred_logits": torch.zeros(2, 9, 3)}
    good = {**predictions, "priors_cxcywh": torch.ones(9, 4)}
    with pytest.raises(ValueError, match=name):
        ssd_ext.postprocess_detections(**{**good, **change})
