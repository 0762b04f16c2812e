"""One step of training: in parts, in float16, with its colours."""

import pytest
import torch
from torch.amp import GradScaler

import ssd.training.run as training
from ssd.data import AUGMENTATIONS, open_dataset
from ssd.data.colour import to_input
from ssd.data.loader import train_loader
from ssd.loss import MultiBoxLoss
from ssd.networks.ssd300 import SSD300
from ssd.training.optimizer import make_optimizer
from ssd.training.settings import Settings
from ssd.training.step import UNSCALED


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_network_sees_the_samples_in_their_colours(shapes, augment):
    data = open_dataset(shapes, "train", transform=AUGMENTATIONS[augment](300))
    (batch,) = train_loader(data, 4, seed=0, steps=range(1))
    model, seen = SSD300(4, width=0.01), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    settings = Settings((shapes,), network="ssd300", augment=augment)
    criterion, optimizer = MultiBoxLoss(model.priors_cxcy), make_optimizer(model, settings)
    training.train_step(model, criterion, optimizer, batch, settings, 1.0, torch.device("cpu"))
    assert torch.equal(seen[0], to_input(batch.images, batch.colours))
    assert (batch.colours is None) == (augment == "v2")
    if augment == "ssd":
        assert not torch.equal(seen[0], to_input(batch.images))


@pytest.fixture
def step(shapes):
    """Takes one step of a small network without batch normalisation; its loss, and how far the weights went."""
    data = open_dataset(shapes, "train", transform=AUGMENTATIONS["ssd"](300))
    (batch,) = train_loader(data, 5, seed=0, steps=range(1))

    def take(scaler=UNSCALED, **settings):
        torch.manual_seed(0)
        model = SSD300(4, width=0.02)
        settings = Settings((shapes,), network="ssd300", lr=1e-3, momentum=0, weight_decay=0, **settings)
        criterion, optimizer = MultiBoxLoss(model.priors_cxcy), make_optimizer(model, settings)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        loss = training.train_step(model, criterion, optimizer, batch, settings, 1.0, torch.device("cpu"), scaler)
        return loss, torch.cat([p.detach().flatten() for p in model.parameters()]) - before

    return take


@pytest.mark.parametrize("parts", [2, 5])
def test_a_batch_in_parts_takes_the_step_of_the_whole(step, parts):
    (loss, change), (expected_loss, expected) = step(accumulate=parts, bf16=False), step(bf16=False)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_float16_clips_the_gradient_and_not_its_scaled_one(step):
    change = step(GradScaler("cpu", init_scale=2.0), fp16=True, clip_grad=0.5)[1]
    expected = step(bf16=False, clip_grad=0.5)[1]
    assert float((change - expected).norm()) < 0.1 * float(expected.norm())  # 11 bits, through 23 layers


def test_float16_leaves_out_a_step_that_overflows(step):
    scaler = GradScaler("cpu", init_scale=2.0**40)
    loss, change = step(scaler, fp16=True)
    assert loss.isfinite()
    assert not change.any()
    assert scaler.get_scale() == 2.0**39
