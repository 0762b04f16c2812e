"""Drawn inputs of every op: odd sizes, dtypes, strides and numbers, in whatever combination.

The same few at each run; `make fuzz`, or SSD_FUZZ_EXAMPLES=10000, tries so many others of each test.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import adversarial as adv
import box_kinds
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import as_tuple, check, same_bits
from cuda_on_cpu import build
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from ops import OPS, Undecided, multibox_loss, postprocess_detections

import ssd_ext
from ssd_ext import DetectionOptions, LossOptions
from ssd_ext._boxes import compute_dtype
from ssd_ext._op import plain

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
floats, seeds = st.sampled_from(FLOATS), st.integers(0, 2**31)
two_floats = st.one_of(st.tuples(*[st.sampled_from(FLOATS[:3])] * 2), st.just((torch.float64,) * 2))
sizes = st.one_of(st.integers(0, 9), st.sampled_from([31, 32, 33, 64, 65, 127, 255, 256, 257]))
thresholds = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -1.0]), st.floats(0, 1), st.sampled_from(adv.ODD_VALUES)
)
variances = st.sampled_from([0.1, 0.2, 1.0, 1e-30, 3e38])
counts = st.lists(st.integers(0, 12), max_size=5).map(tuple)


@st.composite
def laid_out(draw, tensor):
    """The tensor, or a view of some of its numbers, with strides that an op has to follow."""
    layout = draw(st.sampled_from(["as it is", "sliced", "offset", "transposed", "expanded", "overlapping"]))
    if layout == "sliced":
        return adv.sliced(tensor)
    if layout == "offset":  # starts in the middle of a 16-byte unit
        return F.pad(tensor.flatten(), (1, 0))[1:].view(tensor.shape)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand_as(tensor)
    if layout == "overlapping" and tensor.dim() == 2 and tensor.numel():
        return tensor.flatten().as_strided(tensor.shape, (1, 1))
    return tensor


@st.composite
def boxes(draw, shape, dtype=None):
    """(*shape, 4), of which some are no boxes."""
    n = torch.Size(shape).numel()
    makers = adv.grid_boxes, adv.random_boxes, adv.hostile_boxes, lambda n, seed: adv.hostile_values((n, 4), seed)
    made = draw(st.sampled_from(makers))(n, draw(seeds)).view(*shape, 4)
    return draw(laid_out(made.to(draw(floats) if dtype is None else dtype)))


@st.composite
def values(draw, shape, dtypes=floats):
    made = (
        adv.hostile_values(shape, draw(seeds))
        if draw(st.booleans())
        else torch.rand(shape, generator=adv.generator(draw(seeds)))
    )
    return draw(laid_out(made.to(draw(dtypes))))


@st.composite
def scored(draw):
    n = draw(sizes)
    return draw(boxes((n,))), draw(values((n,)))


@st.composite
def coding(draw):
    images = draw(st.sampled_from([(), (1,), (3,), (2, 2), (0,)]))
    n, dtype = draw(sizes), draw(floats)
    return draw(boxes((*images, n), dtype)), draw(boxes((n,), dtype)), draw(variances), draw(variances)


@st.composite
def matching(draw):
    of, n, dtype = draw(counts), draw(sizes), draw(floats)
    mode = draw(st.sampled_from(["per_prior", "bipartite"]))
    return draw(boxes((sum(of),), dtype)), adv.pack(of), draw(boxes((n,), dtype)), draw(st.floats(0, 1)), mode


@st.composite
def mining(draw):
    shape = draw(st.integers(0, 4)), draw(sizes)
    positive = torch.rand(shape, generator=adv.generator(draw(seeds))) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    ratio = draw(st.one_of(st.sampled_from([0.0, 3.0, 1e300]), st.floats(0, 100)))
    return draw(values(shape)), draw(laid_out(positive)), ratio, draw(st.sampled_from([0, 1, 7, 2**40]))


@st.composite
def loss(draw):
    kind = draw(st.sampled_from(["random", "hostile", "tied"]))
    tensors = multibox_loss.inputs(draw(counts), draw(sizes), draw(st.sampled_from([2, 3, 21, 33])), draw(seeds), kind)
    pred_offsets, logits = (x.to(dtype) for x, dtype in zip(tensors[:2], draw(two_floats), strict=True))
    dtype = compute_dtype(pred_offsets, logits)
    tensors = [pred_offsets, logits, *(x.to(dtype) if x.is_floating_point() else x for x in tensors[2:])]
    if draw(st.booleans()):
        tensors = list(map(adv.sliced, tensors))
    loc_loss, matched = draw(st.sampled_from(["l1", "smooth_l1"])), draw(st.sampled_from(["per_prior", "bipartite"]))
    return *tensors, *LossOptions(
        draw(st.floats(0, 1)), draw(st.floats(0, 9)), loc_loss, matched, draw(st.integers(0, 9))
    )


@st.composite
def detection(draw):
    kind = draw(st.sampled_from(["exact", "tied", "random", "hostile"]))
    n_images, n_priors, n_classes = draw(st.integers(0, 3)), draw(sizes), draw(st.sampled_from([1, 2, 3, 21]))
    tensors = postprocess_detections.inputs(n_images, n_priors, n_classes, draw(seeds), kind)
    tensors = [draw(laid_out(x.to(draw(floats)))) for x in tensors]
    pre_nms_top_k = draw(st.sampled_from([None, None, 0, 1, 5, 400]))
    options = DetectionOptions(draw(thresholds), draw(thresholds), draw(st.sampled_from([0, 1, 5, 200])), pre_nms_top_k)
    options = options._replace(
        score=draw(st.sampled_from(["softmax", "sigmoid"])),
        clip=draw(st.booleans()),
        max_log_scale=draw(st.sampled_from([None, None, 0.4, -0.1, adv.INF, 1e300])),
    )
    return Undecided((*tensors, *options))


ARGUMENTS = {
    "box_iou": st.tuples(sizes, sizes, floats).flatmap(lambda x: st.tuples(*(boxes((n,), x[2]) for n in x[:2]))),
    "encode_boxes": coding(),
    "decode_boxes": st.tuples(coding(), st.sampled_from([None, 0.5, -0.1, adv.INF])).map(lambda x: (*x[0], x[1])),
    "match_priors": matching(),
    "select_hard_negatives": mining(),
    "nms": st.tuples(scored(), thresholds).map(lambda x: (*x[0], x[1])),
    "batched_nms": st.tuples(scored(), st.sampled_from([1, 3, 2**40]), seeds, thresholds).map(
        lambda x: (*x[0], torch.randint(-x[1], x[1], x[0][1].shape, generator=adv.generator(x[2])), x[3])
    ),
    "multibox_loss": loss(),
    "postprocess_detections": detection(),
}
compiled = pytest.mark.skipif(ssd_ext._load.missing["cpu"] is not None, reason="no compiled CPU kernels")


def kernels():
    """The C++ kernels and, where there is a compiler, the sources of the CUDA kernels."""
    return {"C++": torch.ops.ssd_ext} | ({"CUDA": build.load()} if build.compiler() else {})


def test_every_op_is_drawn():
    assert {*ARGUMENTS, "multibox_loss_backward"} == OPS.keys()  # the backward: below


@compiled
@pytest.mark.parametrize("op", ARGUMENTS)
def test_all_kernels_agree(op):
    """And change none of their inputs."""

    @fuzz
    @given(ARGUMENTS[op])
    def agree(arguments):
        before = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
        check(op, arguments, kernels())
        assert all(same_bits(x, y) for x, y in zip(arguments, before, strict=True) if isinstance(x, torch.Tensor))

    agree()


@compiled
@fuzz
@given(
    st.lists(st.sampled_from(list(box_kinds.KINDS)), min_size=1, max_size=3),
    st.integers(300, 1200),
    st.sampled_from([1, 2, 30]),
    seeds,
    st.sampled_from([np.float32, np.float64]),
    box_kinds.thresholds,
)
def test_nms_of_so_many_boxes_that_the_kernel_indexes_them(kinds, n, n_groups, seed, dtype, threshold):
    made = torch.from_numpy(box_kinds.drawn(kinds, n, seed, dtype))
    scores = torch.rand(len(made), generator=adv.generator(seed)).round(decimals=3)  # some are equal
    idxs = torch.randint(n_groups, scores.shape, generator=adv.generator(seed))
    assert torch.equal(torch.ops.ssd_ext.nms(made, scores, threshold), plain.nms(made, scores, threshold))
    found = torch.ops.ssd_ext.batched_nms(made, scores, idxs, threshold)
    assert torch.equal(found, plain.batched_nms(made, scores, idxs, threshold))


@compiled
@fuzz
@given(loss(), st.sampled_from([(1.0, 1.0), (-3e-3, 64.0), (0.0, adv.INF)]))
def test_all_backward_kernels_agree(arguments, grads):
    _, _, n_pos, match, selected = torch.ops.ssd_ext.multibox_loss(*arguments)
    grads = torch.tensor(grads, dtype=arguments[2].dtype)
    check("multibox_loss_backward", (*grads, *arguments[:6], match, selected, n_pos, *arguments[6:]), kernels())


@pytest.mark.parametrize("op", ARGUMENTS)
def test_how_it_is_called_does_not_matter(op):
    """In a thread beside others, in inference mode, of tensors that require a gradient: the same bits."""

    @fuzz
    @given(ARGUMENTS[op])
    def same(arguments):
        function = getattr(torch.ops.ssd_ext, op)
        expected = function(*arguments)
        with torch.inference_mode():
            assert same_bits(function(*arguments), expected)
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(lambda _: function(*arguments), range(3)):
                assert same_bits(found, expected)
        needs = OPS[op].differentiable
        leaves = [
            x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in arguments
        ]
        found = function(*leaves)
        assert same_bits([x.detach() for x in as_tuple(found)], as_tuple(expected))
        assert any(x.requires_grad for x in as_tuple(found)) == bool(needs)

    same()


@fuzz
@given(scored(), st.floats(0, 1))
def test_nms_keeps_the_best_and_no_more(arguments, threshold):
    """What is kept is sorted and does not overlap; what is not, a better one overlaps."""
    boxes, scores = arguments
    kept = ssd_ext.nms(boxes, scores, threshold)
    order = sorted(range(len(scores)), key=lambda i: (not scores[i].isnan(), -float(scores[i].nan_to_num(0)), i))
    place = {index: rank for rank, index in enumerate(order)}
    ranks = [place[i] for i in kept.tolist()]
    assert ranks == sorted(set(ranks))
    overlap = ssd_ext.box_iou(boxes, boxes).double() > threshold
    assert not overlap[kept][:, kept].triu(1).any()
    for i in set(range(len(scores))) - set(kept.tolist()):
        assert any(overlap[k, i] for k in kept.tolist() if place[k] < place[i])
    assert torch.equal(ssd_ext.nms(boxes[kept], scores[kept], threshold), torch.arange(len(kept)))


@fuzz
@given(ARGUMENTS["batched_nms"])
def test_batched_nms_is_nms_of_each_group(arguments):
    boxes, scores, idxs, threshold = arguments
    kept = torch.zeros(len(scores), dtype=torch.bool)
    for group in idxs.unique():
        (members,) = (idxs == group).nonzero(as_tuple=True)
        kept[members[ssd_ext.nms(boxes[members], scores[members], threshold)]] = True
    assert sorted(ssd_ext.batched_nms(*arguments).tolist()) == kept.nonzero()[:, 0].tolist()


@fuzz
@given(detection(), st.randoms(use_true_random=False))
def test_images_are_detected_in_one_by_one(arguments, random):
    """In any order."""
    offsets, logits, priors, *options = arguments
    order = random.sample(range(len(logits)), len(logits))
    options = DetectionOptions(*options)
    together = ssd_ext.postprocess_detections(offsets[order], logits[order], priors, options)
    for row, i in enumerate(order):
        alone = ssd_ext.postprocess_detections(offsets[i : i + 1], logits[i : i + 1], priors, options)
        assert same_bits(alone, [x[row : row + 1] for x in together])


@fuzz
@given(matching())
def test_images_are_matched_one_by_one(arguments):
    boxes, row_splits, priors, *options = arguments
    together = ssd_ext.match_priors(*arguments)
    for image, (begin, end) in enumerate(zip(row_splits[:-1].tolist(), row_splits[1:].tolist(), strict=True)):
        alone = ssd_ext.match_priors(boxes[begin:end], adv.pack((end - begin,)), priors, *options)
        assert torch.equal(alone[0], together[image])
        assert (together[image] < end - begin).all()


@fuzz
@given(mining())
def test_hard_negatives_are_the_hardest_of_each_image(arguments):
    losses, positive, ratio, least = arguments
    selected = ssd_ext.select_hard_negatives(*arguments)
    assert not (selected & positive).any()
    for image in range(len(losses)):
        alone = ssd_ext.select_hard_negatives(losses[image : image + 1], positive[image : image + 1], ratio, least)
        assert torch.equal(alone[0], selected[image])
        rest = losses[image][~selected[image] & ~positive[image]].double().nan_to_num(adv.INF, adv.INF, -adv.INF)
        chosen = losses[image][selected[image]].double().nan_to_num(adv.INF, adv.INF, -adv.INF)
        assert not len(rest) or not len(chosen) or rest.max() <= chosen.min()


@fuzz
@given(sizes, seeds, st.sampled_from([0.1, 0.3, 1.0]), st.sampled_from([0.2, 1.0]))
def test_decoding_inverts_encoding(n, seed, center_variance, size_variance):
    boxes, priors = adv.random_boxes(n, seed).double(), adv.to_cxcywh(adv.random_boxes(n, seed + 1)).double()
    offsets = ssd_ext.encode_boxes(boxes, priors, center_variance, size_variance)
    found = ssd_ext.decode_boxes(offsets, priors, center_variance, size_variance)
    torch.testing.assert_close(found, boxes, rtol=1e-11, atol=1e-11)


any_tensor = st.builds(
    lambda shape, dtype, seed: (adv.hostile_values(tuple(shape), seed) * 5).nan_to_num().to(dtype),
    st.lists(st.sampled_from([0, 1, 2, 4, 5]), max_size=4),
    st.sampled_from([*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]),
    seeds,
)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_tensors_are_taken_or_refused_by_name(name):
    sample = OPS[name].sample()
    n = sum(isinstance(x, torch.Tensor) for x in sample)

    @fuzz
    @given(st.lists(any_tensor, min_size=n, max_size=n))
    def refused(tensors):
        with contextlib.suppress(ValueError):
            getattr(ssd_ext, name)(*tensors, *sample[n:])

    refused()
