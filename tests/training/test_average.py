"""The average of the weights: its values, and runs that validate and keep it."""

import os
import signal
from copy import deepcopy
from functools import partial

import pytest
import torch
from short_training import NARROW, run, states_equal

import ssd.training.run as training
from ssd import load_weights
from ssd.networks.ssd300 import SSD300
from ssd.runtime.device import place
from ssd.training.average import Average
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_average_is_exponential_and_warms_up():
    model = SSD300(2, width=0.01, batch_norm=True)
    average = Average(model, 0.5)
    model.load_state_dict(deepcopy(model.state_dict()))  # as a resumed run does, and
    place(model, torch.device("cpu"))  # which keeps the parameters
    weight, mean = model.base.conv1_1.weight, model.base.bn1_1.running_mean
    expected = [weight.detach().clone(), mean.clone()]
    for step in range(1, 13):
        with torch.no_grad():
            weight += step
            mean += step * step
            model.base.bn1_1.num_batches_tracked += 1
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))  # 2 / 11, 3 / 12 ... 9 / 18, and then 0.5
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, (weight, mean), strict=True)]
    torch.testing.assert_close(average.model.base.conv1_1.weight, expected[0])
    torch.testing.assert_close(average.model.base.bn1_1.running_mean, expected[1])
    assert average.model.base.bn1_1.num_batches_tracked == 12
    assert torch.equal(average.model.base.conv5_1.weight, model.base.conv5_1.weight)  # it did not change
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def settings_for(shapes, **more):
    return Settings((shapes,), "train", "test", epochs=2, eval_every=1, **NARROW, **more)


def test_a_run_keeps_the_average_and_is_resumed_from_the_trained_weights(shapes, tmp_path, at_step, monkeypatch):
    validated, evaluate = [], training.evaluate

    def recorded(model, *args, **options):
        validated.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(model, *args, **options)

    monkeypatch.setattr(training, "evaluate", recorded)
    settings = settings_for(shapes, ema=0.8)
    straight = run(settings, tmp_path / "straight")
    last = load_checkpoint(tmp_path / "straight" / "last.pt")
    plain = run(settings_for(shapes), tmp_path / "plain")
    trained = load_checkpoint(tmp_path / "plain" / "last.pt")
    assert straight["loss"] == plain["loss"]
    assert states_equal(last["trained"], trained["model"])
    assert states_equal(last["model"], validated[1])
    assert not torch.equal(last["model"]["base.conv1_1.weight"], last["trained"]["base.conv1_1.weight"])
    assert not torch.equal(last["model"]["base.bn1_1.running_var"], last["trained"]["base.bn1_1.running_var"])
    assert "trained" not in trained
    best = load_checkpoint(tmp_path / "straight" / "best.pt")
    assert any(states_equal(best["model"], model) for model in validated[:2])
    assert "trained" not in best
    model, _ = load_weights(tmp_path / "straight" / "last.pt", device="cpu")
    assert states_equal(dict(model.state_dict()), last["model"])

    at_step(5, partial(os.kill, os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "resumed")
    assert run(None, tmp_path / "resumed", resume=True) == straight
    resumed = load_checkpoint(tmp_path / "resumed" / "last.pt")
    for name in ("model", "trained", "optimizer"):
        assert states_equal(resumed[name], last[name]), name
