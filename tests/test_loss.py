"""What MultiBoxLoss adds to ssd_ext.multibox_loss: lists, packed batches, errors, options, several processes."""

import copy
import math
import socket

import pytest
import torch
import torch.multiprocessing as mp
from loss_example import C, P, example, one_process
from torch import nn
from torchvision import tv_tensors

from ssd.loss import MultiBoxLoss, pack_targets


def test_packed_batch_gives_the_same(device):
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    packed = pack_targets(boxes, labels, torch.device("cpu"))
    assert packed[2].tolist() == [0, 0, 1, 3]
    assert torch.equal(criterion(locs, scores, *packed), criterion(locs, scores, boxes, labels))


def test_parts_and_alpha():
    priors, *batch = example()
    conf, loc = MultiBoxLoss(priors, parts=True)(*batch)
    assert torch.equal(MultiBoxLoss(priors, alpha=0.5)(*batch), conf + 0.5 * loc)


@pytest.mark.parametrize("option", [{"loc_loss": "smooth_l1"}, {"matching": "bipartite"}, {"min_negatives": 30}])
def test_options_reach_the_op(option):
    priors, locs, scores, boxes, labels = example()
    boxes[2][1] = boxes[2][0]  # both objects want the same prior, and bipartite matching gives the second another
    batch = locs, scores, boxes, labels
    assert MultiBoxLoss(priors, **option)(*batch) != MultiBoxLoss(priors)(*batch)


@pytest.mark.parametrize("options", [{}, {"matching": "bipartite", "threshold": 0.3}, {"min_negatives": 30}])
def test_losses_of_parts_add_up_to_that_of_the_batch(options):
    priors, locs, scores, boxes, labels = example(4)
    criterion = MultiBoxLoss(priors, **options)
    divisor = criterion.divisor(*pack_targets(boxes, labels, locs.device)[::2])
    assert torch.equal(divisor, criterion.divisor(boxes))
    parts = [slice(0, 1), slice(1, 4)]  # the first has no object
    loss = sum(criterion(locs[i], scores[i], boxes[i], labels[i], divisor=divisor) for i in parts)
    gradients = torch.autograd.grad(loss, (locs, scores))
    whole = criterion(locs, scores, boxes, labels)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradients, torch.autograd.grad(whole, (locs, scores)))


@pytest.mark.parametrize("n", [0, 3])
def test_no_object_in_the_batch(n):
    priors, *_ = example()
    nothing = [torch.zeros(0, 4)] * n, [torch.zeros(0, dtype=torch.int64)] * n
    assert MultiBoxLoss(priors)(torch.zeros(n, P, 4), torch.zeros(n, P, C), *nothing).item() == 0


def test_wrong_input_is_named():
    """Of tensors, ops/test_multibox_loss.py has more."""
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    with pytest.raises(ValueError, match=r"labels must be in 1\.\.3 .* got 4"):
        criterion(locs, scores, boxes, [*labels[:2], torch.tensor([1, 4])])
    with pytest.raises(ValueError, match=r"boxes has 2 images, labels has 3"):
        criterion(locs, scores, boxes[:2], labels)
    with pytest.raises(ValueError, match=r"boxes\[1\] must be .* got \(1, 4\) and \(2,\)"):
        criterion(locs, scores, boxes, [labels[0], torch.tensor([1, 2]), labels[2]])
    with pytest.raises(ValueError, match=r"predicted_scores has 2 images, boxes has 3"):
        criterion(locs[:2], scores[:2], boxes, labels)
    with pytest.raises(ValueError, match=r"labels\[1\] must be int64, got \(1,\) float32"):
        criterion(locs, scores, boxes, [labels[0], labels[1].float(), labels[2]])
    with pytest.raises(ValueError, match="pred_logits is on meta, pred_offsets is on cpu"):
        criterion(locs, scores.to("meta"), torch.cat(boxes), torch.cat(labels), torch.zeros(4, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"no option los_loss, n; there are threshold, .*loc_loss, .*alpha"):
        MultiBoxLoss(priors, los_loss="l1", n=4)
    nan = float("nan")
    options = ({"loc_loss": "l2"}, {"threshold": 7}, {"neg_pos_ratio": nan}, {"min_negatives": -1})
    for wrong in (*options, {"alpha": -1}, {"alpha": nan}, {"min_negatives": None}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must .*{next(iter(wrong.values()))}"):
            MultiBoxLoss(priors, **wrong)
    with pytest.raises(ValueError, match="normalize must be 'batch' or 'global', got 'all'"):
        MultiBoxLoss(priors, normalize="all")


def test_what_is_no_tensor_is_named():
    priors, locs, scores, boxes, labels = example()
    with pytest.raises(TypeError, match=r"priors_cxcy must be a tensor \(P, 4\), got list"):
        MultiBoxLoss(priors.tolist())
    criterion = MultiBoxLoss(priors)
    with pytest.raises(TypeError, match=r"boxes\[0\] must be a tensor \(n, 4\) and .*, got ndarray and Tensor"):
        criterion(locs, scores, [each.numpy() for each in boxes], labels)
    with pytest.raises(TypeError, match=r"and labels\[1\] a tensor \(n,\), got Tensor and list"):
        criterion(locs, scores, boxes, [labels[0], labels[1].tolist(), labels[2]])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_jit_script_is_refused():
    with pytest.raises(TypeError, match=r"torch\.jit\.script does not take MultiBoxLoss: use torch\.compile"):
        torch.jit.script(MultiBoxLoss(example()[0]))


def test_what_is_printed():
    priors, *_ = example()
    assert repr(MultiBoxLoss(priors)) == f"MultiBoxLoss({len(priors)} priors)"
    chosen = MultiBoxLoss(priors, 0.4, alpha=2, loc_loss="smooth_l1", matching="per_prior", parts=True)
    expected = f"{len(priors)} priors, threshold=0.4, loc_loss='smooth_l1', alpha=2, parts=True"
    assert repr(chosen) == f"MultiBoxLoss({expected})"


def test_boxes_in_pixels_are_refused_unless_the_priors_are_in_pixels_too():
    priors, locs, scores, boxes, labels = example()
    with pytest.raises(ValueError, match=r"boxes must be in fractions .* got [\d.]+: divide x by its width"):
        MultiBoxLoss(priors)(locs, scores, [each * 300 for each in boxes], labels)
    in_pixels = MultiBoxLoss(priors * 256)(locs, scores, [each * 256 for each in boxes], labels)
    assert torch.equal(in_pixels, MultiBoxLoss(priors)(locs, scores, boxes, labels))
    odd = [torch.full_like(each, torch.inf) for each in boxes]  # such an object matches nothing
    assert MultiBoxLoss(priors)(locs, scores, odd, labels) == 0


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.3, 0.6), (0.5, 0.5, 0.6, 0.3), (0.1, math.nan, 0.5, 0.5)])
def test_inverted_boxes_and_nan_are_named(box):
    """As boxes in another format than xyxy often are."""
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    boxes[1] = torch.tensor([box, *boxes[1][1:].tolist()])
    row = len(boxes[0])
    with pytest.raises(ValueError, match=rf"boxes must be xyxy .*, got \[.*\] for object {row} of the batch"):
        criterion(locs, scores, boxes, labels)
    boxes[1][0] = torch.tensor([0.5, 0.5, 0.5, 0.6])  # no area, as objects at the edge of a crop may have
    assert criterion(locs, scores, boxes, labels).isfinite()


def test_bounding_boxes_of_torchvision_must_be_xyxy():
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    expected = criterion(locs, scores, boxes, labels)
    made = [tv_tensors.BoundingBoxes(b, format="XYXY", canvas_size=(1, 1)) for b in boxes]
    assert torch.equal(criterion(locs, scores, made, labels), expected)
    made[1] = tv_tensors.BoundingBoxes(boxes[1], format="CXCYWH", canvas_size=(1, 1))
    with pytest.raises(ValueError, match=r"boxes\[1\] must be xyxy, got the format CXCYWH: convert with convert_bound"):
        criterion(locs, scores, made, labels)


def test_the_priors_keep_their_values():
    """They are a buffer that is not in the state dict. half() would shift them by up to half a pixel."""
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    expected = criterion(locs, scores, boxes, labels)
    for narrow in (torch.float16, torch.bfloat16):
        assert torch.equal(nn.Sequential(copy.deepcopy(criterion)).to(narrow)[0].priors_cxcy, priors)
    assert copy.deepcopy(criterion).double().priors_cxcy.dtype == torch.float64
    again = copy.deepcopy(criterion).to("meta").to_empty(device="cpu")
    assert torch.equal(again.priors_cxcy, priors)
    assert torch.equal(again(locs, scores, boxes, labels), expected)
    bare = MultiBoxLoss(priors.to("meta"))
    with pytest.raises(RuntimeError, match="the priors of MultiBoxLoss have no values"):
        bare.to_empty(device="cpu")


def test_global_normalisation_over_two_processes(tmp_path):
    """The mean over processes, which is what DistributedDataParallel takes, equals the joined batch."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(one_process, (2, port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    priors, locs, scores, boxes, labels = example(4)
    joined = MultiBoxLoss(priors)(locs, scores, boxes, labels)
    joined.backward()
    for wanted, both in zip((joined.detach(), locs.grad, scores.grad), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close((both[0] + both[1]) / 2, wanted, rtol=1e-5, atol=1e-8)
