"""Sizes that only a GPU can take: more than 2^31 numbers, and more boxes, priors and objects than SSD has.

The CUDA sources on the CPU go through the same tests with small sizes: that shows that the tests are right.
"""

from itertools import pairwise

import adversarial as adv
import pytest
import torch
from compare import as_tuple, differences, needs_gpu, same_view
from cuda_on_cpu import build
from ops import multibox_loss, postprocess_detections

from ssd_ext import DetectionOptions, LossOptions

MEMORY = 32e9  # bytes that the largest tests take
LOSS, DETECTION = LossOptions(), DetectionOptions()


@pytest.fixture(params=["cuda_on_cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request):
    """Where the tensors are; of large size on "cuda" only."""
    if request.param == "cuda":
        if torch.cuda.mem_get_info()[1] < MEMORY:
            pytest.skip(f"the GPU has less than {MEMORY / 1e9:.0f} GB")
        yield "cuda"
        torch.cuda.empty_cache()
    else:
        if build.compiler() is None:
            pytest.skip("no C++ compiler")
        yield "cpu"


def large(device, sizes, small):
    return sizes if device == "cuda" else small


def kernels(device):
    return torch.ops.ssd_ext if device == "cuda" else build.load()


def check_against_cpu(op, arguments, device):
    moved = [same_view(x, device) if isinstance(x, torch.Tensor) else x for x in arguments]
    results = as_tuple(getattr(kernels(device), op)(*moved))
    expected = as_tuple(getattr(torch.ops.ssd_ext, op)(*arguments))
    assert not differences(tuple(x.cpu() for x in results), expected)
    return expected


def predictions(n_images, n_priors, n_classes, dtype, device):
    """pred_offsets, pred_logits and priors_cxcywh; image by image, as no copy of all would fit."""
    g = torch.Generator(device).manual_seed(0)
    pred_offsets = torch.empty(n_images, n_priors, 4, dtype=dtype, device=device)
    logits = torch.empty(n_images, n_priors, n_classes, dtype=dtype, device=device)
    for image in (*pred_offsets, *logits):
        image.normal_(generator=g)
    return pred_offsets, logits, adv.to_cxcywh(adv.random_boxes(n_priors)).to(device)


def test_loss_of_more_than_2_31_logits(device):
    """Every image has the matches, negatives and gradients that it has alone, and the losses add up."""
    ops = kernels(device)
    n_images, n_priors, n_classes = large(device, (256, 120_000, 91), (5, 300, 7))
    pred_offsets, logits, priors = predictions(n_images, n_priors, n_classes, torch.bfloat16, device)
    each = 8  # objects of an image
    boxes = adv.random_boxes(each * n_images, 1).to(device)
    labels = torch.randint(1, n_classes, (len(boxes),), generator=adv.generator(1)).to(device)

    def inputs(first, last):
        rows = slice(first * each, last * each)
        row_splits = adv.pack((each,) * (last - first)).to(device)
        return pred_offsets[first:last], logits[first:last], boxes[rows], labels[rows], row_splits, priors

    conf, loc, n_pos, match, selected = ops.multibox_loss(*inputs(0, n_images), *LOSS)
    one = torch.ones_like(conf)
    results = match, selected, n_pos
    grads = ops.multibox_loss_backward(one, one, *inputs(0, n_images), *results, *LOSS)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for i in range(n_images):
        own = inputs(i, i + 1)
        own_conf, own_loc, own_pos, own_match, own_selected = ops.multibox_loss(*own, *LOSS)
        assert torch.equal(own_match[0], match[i])
        assert torch.equal(own_selected[0], selected[i])
        sums += torch.stack([own_conf.double() * own_pos, own_loc.double() * own_pos, own_pos.double()])
        if i in (0, n_images // 2, n_images - 1):
            assert own_selected.any()
            own_grads = ops.multibox_loss_backward(one, one, *own, own_match, own_selected, n_pos, *LOSS)
            for whole, alone in zip(grads, own_grads, strict=True):
                assert alone.any()
                assert torch.equal(whole[i], alone[0])
    assert int(sums[2]) == int(n_pos)
    # Each image's loss is rounded to float32, and that of the batch too.
    torch.testing.assert_close(torch.stack([conf, loc]).double(), sums[:2] / sums[2], rtol=2**-22, atol=0)


def test_detection_in_more_than_2_31_logits(device):
    ops = kernels(device)
    n_images, *sizes = large(device, (256, 120_000, 91), (5, 300, 7))
    pred_offsets, logits, priors = predictions(n_images, *sizes, torch.bfloat16, device)
    logits[..., 0] += 6  # of all candidates few are left
    found = ops.postprocess_detections(pred_offsets, logits, priors, *DETECTION)
    assert found[3].min() > 0
    for i in range(n_images):
        alone = ops.postprocess_detections(pred_offsets[i : i + 1], logits[i : i + 1], priors, *DETECTION)
        for whole, own in zip(found, alone, strict=True):
            assert torch.equal(whole[i], own[0])


@pytest.mark.parametrize("spread", [1.0, 0.1])  # of the logits: a hundred thousand or all are candidates
def test_detection_of_a_batch_is_that_of_its_parts(device, spread):
    ops = kernels(device)
    n_images, *sizes = large(device, (256, 8732, 81), (5, 100, 5))
    pred_offsets, logits, priors = predictions(n_images, *sizes, torch.float32, device)
    logits *= spread
    found = ops.postprocess_detections(pred_offsets, logits, priors, *DETECTION)
    assert found[3].min() > 0
    cuts = [0, 1, n_images // 3, n_images]
    for first, last in pairwise(cuts):
        part = slice(first, last)
        of_part = ops.postprocess_detections(pred_offsets[part], logits[part], priors, *DETECTION)
        for whole, own in zip(found, of_part, strict=True):
            assert torch.equal(whole[part], own)


@pytest.mark.parametrize("odd", [0, 1])  # a row of the output begins at any place of a 16-byte unit
def test_more_than_2_31_pairs_of_boxes(device, odd):
    ops = kernels(device)
    n, m = large(device, (50_000, 44_000), (50, 44))
    boxes1, boxes2 = adv.random_boxes(n).to(device), adv.random_boxes(m + odd, 1).to(device)
    iou = ops.box_iou(boxes1, boxes2)
    step = n // 10
    for first in range(0, n, step):
        rows = ops.box_iou(boxes1[first : first + step], boxes2)
        assert rows.any()
        assert torch.equal(iou[first : first + step], rows)


@pytest.mark.parametrize("groups", [1, 20])
def test_nms_of_400_000_boxes(device, groups):
    n, places = large(device, (400_000, 3), (2000, 2))
    g = adv.generator(0)
    boxes = adv.random_boxes(n) + torch.randint(places, (n, 2), generator=g).repeat(1, 2)
    scores = torch.rand(n, generator=g)
    if groups == 1:
        (kept,) = check_against_cpu("nms", (boxes, scores, 0.5), device)
    else:
        idxs = torch.randint(groups, (n,), generator=g)
        (kept,) = check_against_cpu("batched_nms", (boxes, scores, idxs, 0.5), device)
    assert n // 100 < len(kept) < n


@pytest.mark.parametrize("matching", ["per_prior", "bipartite"])
@pytest.mark.parametrize("what", ["priors", "objects"])
def test_40_000_priors_and_1000_objects(device, what, matching):
    if what == "priors":
        counts, n_priors = (5, 30), large(device, 40_000, 600)
    else:
        counts, n_priors = large(device, (1000, 3, 500), (150, 3, 70)), large(device, adv.N_PRIORS, 300)
    inputs = multibox_loss.inputs(counts, n_priors, 21, 1)
    options = LossOptions(loc_loss="smooth_l1", matching=matching)
    _, _, n_pos, match, selected = check_against_cpu("multibox_loss", (*inputs, *options), device)
    assert len(match[0].unique()) > counts[0] // 2
    results = match, selected, n_pos, *options
    check_against_cpu("multibox_loss_backward", (torch.tensor(1.0), torch.tensor(2.0), *inputs, *results), device)
    predictions = postprocess_detections.inputs(2, n_priors, 21, 1, "random")
    *_, counts = check_against_cpu("postprocess_detections", (*predictions, *DETECTION), device)
    assert counts.min() > 0
