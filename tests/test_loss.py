"""What MultiBoxLoss adds to ssd_ext.multibox_loss: lists, packed batches, errors, options, several processes."""

import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssd.loss import MultiBoxLoss, pack_targets

P, C = 40, 4


def example(n=3, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    centre, size = 0.2 + 0.6 * torch.rand(P, 2, generator=g), 0.1 + 0.3 * torch.rand(P, 2, generator=g)
    priors = torch.cat([centre, size], dim=1)
    locs = torch.randn(n, P, 4, generator=g).to(dtype).requires_grad_()
    scores = torch.randn(n, P, C, generator=g).to(dtype).requires_grad_()
    boxes = []
    for i in range(n):
        corner = torch.rand(i, 2, generator=g) * 0.5  # the first image is empty
        boxes.append(torch.cat([corner, corner + 0.3], dim=1))
    labels = [torch.randint(1, C, (len(b),), generator=g) for b in boxes]
    return priors, locs, scores, boxes, labels


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


def test_no_object_in_the_batch():
    priors, locs, scores, *_ = example()
    nothing = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3
    loss = MultiBoxLoss(priors)(locs, scores, *nothing)
    loss.backward()
    assert loss.item() == 0
    assert not locs.grad.any()
    assert not scores.grad.any()
    assert MultiBoxLoss(priors, min_negatives=1)(locs, scores, *nothing) > 0


def test_zero_area_box_changes_nothing():
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    wanted = criterion(locs, scores, boxes, labels)
    boxes[0], labels[0] = torch.tensor([[0.5, 0.5, 0.5, 0.7], [math.nan, 0, 1, 1]]), torch.tensor([1, 2])
    got = criterion(locs, scores, boxes, labels)
    assert torch.equal(got, wanted)


def test_nan_logits_give_a_nan_loss_and_no_crash():
    priors, locs, scores, boxes, labels = example()
    with torch.no_grad():
        scores[1, 5] = math.nan
    assert MultiBoxLoss(priors)(locs, scores, boxes, labels).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    priors, locs, scores, boxes, labels = example(dtype=dtype)
    loss = MultiBoxLoss(priors)(locs, scores, boxes, labels)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert scores.grad.dtype == locs.grad.dtype == dtype
    wanted = MultiBoxLoss(priors)(locs.detach().float(), scores.detach().float(), boxes, labels)
    torch.testing.assert_close(loss.detach().float(), wanted, rtol=1e-5, atol=0)


def test_under_autocast():
    priors, *batch = example()
    criterion = MultiBoxLoss(priors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(*batch), criterion(*batch))
    assert torch.equal(criterion(*batch), criterion(*batch))


def test_wrong_input_is_named():
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    with pytest.raises(ValueError, match=r"labels must be in 1\.\.3 .* got 4"):
        criterion(locs, scores, boxes, [*labels[:2], torch.tensor([1, 4])])
    with pytest.raises(ValueError, match=r"labels must be in 1\.\.3 .* got 0"):
        criterion(locs, scores, boxes, [*labels[:2], torch.tensor([0, 2])])
    with pytest.raises(ValueError, match=r"boxes has 2 images, labels has 3"):
        criterion(locs, scores, boxes[:2], labels)
    with pytest.raises(ValueError, match=r"boxes\[1\] must be .* got \(1, 4\) and \(2,\)"):
        criterion(locs, scores, boxes, [labels[0], torch.tensor([1, 2]), labels[2]])
    with pytest.raises(ValueError, match=r"row_splits must be \(3,\) int32"):
        criterion(locs[:2], scores[:2], boxes, labels)
    with pytest.raises(ValueError, match="40 priors, priors_cxcywh has 10"):
        MultiBoxLoss(priors[:10])(locs, scores, boxes, labels)
    with pytest.raises(ValueError, match=r"pred_offsets must be \(3, 40, 4\)"):
        criterion(locs[:, :9], scores, boxes, labels)
    with pytest.raises(ValueError, match="pred_logits is on meta, pred_offsets is on cpu"):
        criterion(locs, scores.to("meta"), torch.cat(boxes), torch.cat(labels), torch.zeros(4, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"LossOptions.* unexpected keyword argument 'los_loss'"):
        MultiBoxLoss(priors, los_loss="l1")
    with pytest.raises(ValueError, match="normalize must be 'batch' or 'global', got 'all'"):
        MultiBoxLoss(priors, normalize="all")
    with pytest.raises(ValueError, match="loc_loss must be one of l1, smooth_l1, got 'l2'"):
        MultiBoxLoss(priors, loc_loss="l2")(locs, scores, boxes, labels)


def test_empty_batch():
    priors, *_ = example()
    assert MultiBoxLoss(priors)(torch.zeros(0, P, 4), torch.zeros(0, P, C), [], []).item() == 0


def _one_process(rank, world, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    priors, locs, scores, boxes, labels = example(4)
    mine = slice(2 * rank, 2 * rank + 2)
    loss = MultiBoxLoss(priors, normalize="global")(locs[mine], scores[mine], boxes[mine], labels[mine])
    loss.backward()
    torch.save((loss.detach(), locs.grad, scores.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_global_normalisation_over_two_processes(tmp_path):
    """The mean over processes, which is what DistributedDataParallel takes, equals the joined batch."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_one_process, (2, port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    priors, locs, scores, boxes, labels = example(4)
    joined = MultiBoxLoss(priors)(locs, scores, boxes, labels)
    joined.backward()
    for wanted, both in zip((joined.detach(), locs.grad, scores.grad), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close((both[0] + both[1]) / 2, wanted, rtol=1e-5, atol=1e-8)
