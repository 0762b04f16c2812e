"""A batch for the loss, and a process that takes its share of it: a new process imports this module."""

import os

import torch
import torch.distributed as dist

from ssd.loss import MultiBoxLoss

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


def one_process(rank, world, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    priors, locs, scores, boxes, labels = example(4)
    mine = slice(2 * rank, 2 * rank + 2)
    loss = MultiBoxLoss(priors, normalize="global")(locs[mine], scores[mine], boxes[mine], labels[mine])
    loss.backward()
    torch.save((loss.detach(), locs.grad, scores.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
