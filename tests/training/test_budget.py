"""Runs of so many minutes, by a clock that stands still between the steps: no test here depends on the real time."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
from short_training import NARROW, error_of, run, states_equal

import ssd.training.budget as budgets
import ssd.training.progress
import ssd.training.run as training
from ssd.evaluation.voc import EvalResult
from ssd.training.budget import Budget, Work
from ssd.training.optimizer import lr_factor
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3  # of an epoch: 7 pictures in batches of 2
CHECKPOINT, VALIDATION = 2.0, 1.0


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(budgets, "clock", lambda: clock.now)
    return clock


@pytest.fixture
def slow(clock, monkeypatch):
    """Steps, checkpoints and validations that take time by this clock; records the factors on the learning rate."""
    step, save = training.train_step, training._Run.save
    slow = SimpleNamespace(seconds=1.0, first=50.0, factors=[], stop_at=None)

    def one_step(model, criterion, optimizer, batch, settings, factor, *more):
        clock.now += slow.seconds if slow.factors else slow.first
        slow.factors.append(factor)
        if len(slow.factors) == slow.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(model, criterion, optimizer, batch, settings, factor, *more)

    def slow_save(self, path, **extra):
        clock.now += CHECKPOINT
        save(self, path, **extra)

    def evaluate(*_, **__):
        clock.now += VALIDATION
        return EvalResult(0.5, {}, {}, {}, 0.5, "area", curves={})

    monkeypatch.setattr(ssd.training.progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(training, "train_step", one_step)
    monkeypatch.setattr(training._Run, "save", slow_save)
    monkeypatch.setattr(training, "plot_curves", lambda *_: None)
    monkeypatch.setattr(training, "evaluate", evaluate)
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(budgets, "SKIPPED", 1)
    monkeypatch.setattr(budgets, "MEASURED", 3)
    monkeypatch.setattr(budgets, "SHARE", 0.0)
    return slow


def settings_for(shapes, minutes, **more):
    return Settings((shapes,), "train", "test", minutes=minutes, **NARROW | {"schedule": "onecycle"} | more)


def test_epochs_fit_into_the_rest_of_the_time(clock):
    budget = Budget(10)
    clock.now += 30
    assert not budget.measure(9, 99.0)
    assert not budget.measure(10, 100.0)  # the first ones are left out
    assert not budget.measure(20, 120.0)
    assert not budget.measure(40, 109.9)  # more steps than needed, but too short
    assert budget.measure(40, 130.0)  # 1 s each
    with budget.checkpoint():
        clock.now += 3
    # Of 600 s, 567 are left. Epochs take 50 + 3 s, without the 40 steps; validations 1 + 3 s, and the report 2 s.
    work = Work(steps=50, batch=8, validated=8, reported=16, eval_every=1)
    assert budget.choose(work, 40)[0] == 10
    assert budget.choose(work._replace(validated=0, reported=0), 40)[0] == 11
    assert budget.choose(work._replace(eval_every=0), 40)[0] == 10
    assert budget.choose(work._replace(reported=8 * 40), 40)[0] == 9
    epochs, line = budget.choose(work, 90)  # in the second epoch
    assert epochs == 11
    assert line == "minutes 10: 11 epochs; a step takes 1 s, and the whole run about 9.48 minutes"
    clock.now += 600
    epochs, line = budget.choose(work, 40)
    assert epochs == 1
    assert line.startswith("minutes 10: 1 epoch, although this takes longer; a step takes 1 s")


def test_the_schedule_is_that_of_the_chosen_epochs(shapes, tmp_path, slow, clock, capsys):
    started = clock.now
    history = train(settings_for(shapes, 3), tmp_path / "run", device="cpu", workers=0)
    saved = load_checkpoint(tmp_path / "run" / "last.pt")["settings"]
    epochs = saved["epochs"]
    total, known = epochs * STEPS, 1 + 3  # the first step, and those that were measured
    assert saved["minutes"] == 3
    assert len(slow.factors) == total == history["step"][-1]
    assert slow.factors[:known] == pytest.approx([0.04] * known)
    assert slow.factors[known:] == [lr_factor(step, total, "onecycle", 0) for step in range(known, total)]
    assert 150 < clock.now - started <= 180
    assert history["eval_step"] == [STEPS * epoch for epoch in range(2, epochs + 1)]  # in the first, nothing is known
    printed = capsys.readouterr().out
    assert printed.count(f"minutes 3: {epochs} epochs; a step takes 1 s") == 1
    assert "minutes 3\n" in printed  # in the line with the settings, which cannot know the epochs yet


@pytest.mark.parametrize("stop_at", [3, 9])  # before the number of epochs is chosen, and after
def test_a_stopped_run_keeps_its_epochs(shapes, tmp_path, slow, stop_at):
    slow.first = 1.0
    straight = run(settings_for(shapes, 1), tmp_path / "straight")
    slow.factors, slow.stop_at = [], stop_at
    with pytest.raises(KeyboardInterrupt):
        run(settings_for(shapes, 1), tmp_path / "resumed", save_every=0)
    stopped = load_checkpoint(tmp_path / "resumed" / "last.pt")
    assert (stopped["settings"]["epochs"] is None) == (stop_at == 3)
    if stop_at == 9:
        slow.seconds = 10.0  # has no effect any more
        resumed = run(settings_for(shapes, 1), tmp_path / "resumed", resume="auto")
        assert resumed == straight
        ends = [load_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "resumed")]
        assert states_equal(*(end["model"] for end in ends))
    else:  # measures again
        run(None, tmp_path / "resumed", resume=True)
        epochs = load_checkpoint(tmp_path / "resumed" / "last.pt")["settings"]["epochs"]
        assert len(slow.factors) == epochs * STEPS > 2 * STEPS


def test_a_run_without_time_ends_after_the_epoch_that_it_measured(shapes, tmp_path, slow, capsys):
    history = train(settings_for(shapes, 0.1), tmp_path / "run", device="cpu", workers=0)
    assert history["step"][-1] == history["eval_step"][-1] == 2 * STEPS  # the measurement ended in the second one
    assert "minutes 0.1: 2 epochs, although this takes longer;" in capsys.readouterr().out


def test_the_workers_of_a_run_end_with_it(shapes, tmp_path, slow, monkeypatch):
    """They read ahead without an end while the number of epochs is not known."""
    before, alive, close = set(multiprocessing.active_children()), set(), training._Run.close
    monkeypatch.setattr(
        training._Run, "close", lambda run: alive.update(multiprocessing.active_children()) or close(run)
    )
    run(settings_for(shapes, 1.5), tmp_path / "run", workers=1)
    assert alive <= before


def test_minutes_or_epochs(shapes, tmp_path, capsys):
    both = error_of(capsys, "train", shapes, "--out", tmp_path / "run", "--minutes", 5, "--epochs", 7)
    assert both == "ssd train: error: give epochs 7 or minutes 5, but not both"
