"""Network, loss and optimiser on a real GPU: in one graph, and without waiting for it."""

import copy

import pytest
import torch
from compare import needs_gpu
from cuda_graphs import captured
from torch.amp import GradScaler

pytest.importorskip("torchvision")
from ssd.data.colour import colour_matrix
from ssd.data.loader import Batch, collate
from ssd.inference.prediction import predict_padded
from ssd.loss import MultiBoxLoss
from ssd.networks.ssd300 import SSD300
from ssd.training.optimizer import make_optimizer
from ssd.training.run import Settings, train_step

pytestmark = needs_gpu


@pytest.fixture
def training():
    """A small network on the GPU, its loss, and packed targets of two pictures; the last box is padding."""
    torch.manual_seed(0)
    model = SSD300(3, width=0.125).cuda()
    images = torch.randn(2, 3, 300, 300, device="cuda")
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.8], [0, 0, 1, 1]], device="cuda")
    targets = boxes, torch.tensor([1, 2, 1], device="cuda"), torch.tensor([0, 1, 2], dtype=torch.int32, device="cuda")
    return model, MultiBoxLoss(model.priors_cxcy), images, targets


def test_network_loss_and_gradients_in_one_graph(training, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # whose roundings change the choice of negatives
    model, criterion, images, targets = training

    def step():
        loss = criterion(*model(images), *targets)
        return loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))

    graph, outputs = captured(step)
    boxes, labels, row_splits = targets
    for seed, rows in enumerate(([0, 2, 3], [0, 0, 1], [0, 0, 0], [0, 3, 3])):
        torch.manual_seed(seed)
        images.normal_()
        boxes.copy_(torch.tensor([[0.2, 0.3, 0.6, 0.5], [0.5, 0.5, 0.9, 0.7], [0.1, 0, 0.3, 0.4]]).roll(seed, 0))
        labels.copy_(torch.tensor([2, 1, 2]).roll(seed))
        row_splits.copy_(torch.tensor(rows, dtype=torch.int32))
        graph.replay()
        torch.testing.assert_close(outputs, step(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("more", [{"fp16": True, "clip_grad": 0.5}, {"accumulate": 2, "clip_grad": 0.5}])
def test_a_step_in_float16_and_one_in_parts_are_that_of_float32(training, monkeypatch, more):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, criterion, _, (boxes, labels, _) = training
    image = torch.randint(256, (3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = collate([(image, {"boxes": boxes[i, None].cpu(), "labels": labels[i, None].cpu()}) for i in (0, 1)])
    before, changes = copy.deepcopy(model.state_dict()), []
    for chosen in (more, {"clip_grad": 0.5}):
        model.load_state_dict(before)
        settings = Settings(("",), network="ssd300", bf16=False, momentum=0, weight_decay=0, lr=1e-3, **chosen)
        scaler = GradScaler("cuda", init_scale=2.0, enabled=settings.fp16)
        optimizer = make_optimizer(model, settings)
        train_step(model, criterion, optimizer, batch, settings, 1.0, model.priors_cxcy.device, scaler)
        changes.append(torch.cat([(p - before[name]).flatten() for name, p in model.named_parameters()]).detach())
    assert float((changes[0] - changes[1]).norm()) < 0.1 * float(changes[1].norm())  # 11 bits, through 23 layers


def test_training_and_evaluation_do_not_wait_for_the_gpu(training):
    model, criterion, _, (boxes, labels, _) = training
    settings = Settings(data=("",), network="ssd300")
    optimizer = make_optimizer(model, settings)
    image, colour = torch.zeros(3, 300, 300, dtype=torch.uint8), colour_matrix(brightness=0.1)
    objects = zip(boxes[:2, None].cpu(), labels[:2, None].cpu(), strict=True)
    samples = [(image, {"boxes": b, "labels": n, "colour": colour}) for b, n in objects]
    batch = Batch(*(None if column is None else column.pin_memory() for column in collate(samples)))

    def both():
        model.train()
        train_step(model, criterion, optimizer, batch, settings, 1.0, torch.device("cuda"))
        predict_padded(model, batch.images)

    both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
