"""Training runs of seconds, and how their results are compared."""

import os
import signal

import torch

import ssd.training.run as training
from ssd.cli import main
from ssd.training.run import train
from ssd.training.settings import Settings

EPOCHS, STEPS = 3, 9  # of `settings_for`
NARROW = {"network": "ssd300", "width": 0.01, "batch_norm": True, "batch_size": 2, "lr": 1e-3, "warmup": 2}


def run(settings, out, **options):
    return train(settings, out, device="cpu", quiet=True, **{"workers": 0, **options})


def states_equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(states_equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def train_in_a_process(out, settings, save_every, begun=None, last_step=None):
    """A run to be killed; a new process imports this module."""
    torch.set_num_threads(1)  # as all tests here do: sums of several threads round otherwise
    training.LOG_EVERY = 1
    step, calls = training.train_step, []

    def one_step(*args):
        calls.append(1)
        if len(calls) == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    training.train_step = one_step
    if begun:
        begun.set()
    train(settings, out, resume="auto", save_every=save_every, device="cpu", quiet=True, workers=0)


def settings_for(shapes):
    return Settings((str(shapes),), "train", "test", epochs=EPOCHS, eval_every=1, **NARROW)


def error_of(capsys, *arguments):
    """The one line that `ssd` says."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "step/s" not in line]
    assert len(errors) == 1, errors
    return errors[0]
