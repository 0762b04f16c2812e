"""What MultiBoxLoss adds to ssd_ext.multibox_loss: lists, packed batches, errors, options, several processes."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssd.loss import MultiBoxLoss, pack_targets

P, C = 40, 4


def example(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    centre, size = 0.2 + 0.6 * torch.rand(P, 2, generator=g), 0.1 + 0.3 * torch.rand(P, 2, generator=g)
    priors = torch.cat([centre, size], dim=1)
    locs = torch.randn(n, P, 4, generator=g).requires_grad_()
    scores = torch.randn(n, P, C, generator=g).requires_grad_()
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


@pytest.mark.parametrize("options", [{}, {"matching": "bipartite", "threshold": 0.3}, {"min_negatives": 30}])
def test_losses_of_parts_add_up_to_that_of_the_batch(options):
    priors, locs, scores, boxes, labels = example(4)
    criterion = MultiBoxLoss(priors, **options)
    divisor = criterion.divisor(*pack_targets(boxes, labels, locs.device)[::2])
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
    """Of tensors, test_multibox_loss.py has more."""
    priors, locs, scores, boxes, labels = example()
    criterion = MultiBoxLoss(priors)
    with pytest.raises(ValueError, match=r"labels must be in 1\.\.3 .* got 4"):
        criterion(locs, scores, boxes, [*labels[:2], torch.tensor([1, 4])])
    with pytest.raises(ValueError, match=r"boxes has 2 images, labels has 3"):
        criterion(locs, scores, boxes[:2], labels)
    with pytest.raises(ValueError, match=r"boxes\[1\] must be .* got \(1, 4\) and \(2,\)"):
        criterion(locs, scores, boxes, [labels[0], torch.tensor([1, 2]), labels[2]])
    with pytest.raises(ValueError, match=r"row_splits must be \(3,\) int32"):
        criterion(locs[:2], scores[:2], boxes, labels)
    with pytest.raises(ValueError, match="pred_logits is on meta, pred_offsets is on cpu"):
        criterion(locs, scores.to("meta"), torch.cat(boxes), torch.cat(labels), torch.zeros(4, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"LossOptions.* unexpected keyword argument 'los_loss'"):
        MultiBoxLoss(priors, los_loss="l1")
    with pytest.raises(ValueError, match="normalize must be 'batch' or 'global', got 'all'"):
        MultiBoxLoss(priors, normalize="all")


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
