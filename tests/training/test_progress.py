"""The losses of a run: which are an error, and which are kept."""

import math
from itertools import pairwise

import pytest
import torch
from torch.amp import GradScaler
from tqdm import tqdm

import ssd.training.progress
from ssd.runtime.processes import ALONE
from ssd.training.progress import COLUMNS, MIN_SCALE, Meter, completed, validations_without_rise


def test_an_infinite_loss_in_float16_is_no_error_while_the_scale_falls():
    history = {name: [] for name in ("step", *COLUMNS)}
    scaler = GradScaler("cpu", init_scale=MIN_SCALE)
    meter = Meter(history, tqdm(disable=True), None, ALONE, scaler)
    meter.add(1, torch.tensor([math.inf, 2.0, math.inf]), 0.1, 2)
    meter.flush()
    assert history == {"step": [1], "loss": [math.inf], "conf_loss": [2], "loc_loss": [math.inf], "lr": [0.1]}
    scaler.load_state_dict(scaler.state_dict() | {"scale": MIN_SCALE / 2})
    meter.add(2, torch.tensor([7.0, 3, 4]), 0.1, 2)
    with pytest.raises(FloatingPointError, match="inf at step 2"):
        meter.flush()


def test_an_old_history_is_thinned_by_means(monkeypatch):
    """Evenly over the run, and however many losses come at once."""
    monkeypatch.setattr(ssd.training.progress, "KEPT", 8)
    losses = [float(i) for i in range(1, 1001)]
    losses[100], losses[101], losses[999] = math.inf, math.nan, math.inf
    rates = [step / 1000 for step in range(1, 1001)]
    histories = []
    for at_once in (1, 10, 13, 1000):
        histories.append(history := {"step": [], "loss": [], "lr": []})
        for start in range(0, 1000, at_once):
            some = slice(start, start + at_once)
            columns = {"loss": losses[some], "lr": rates[some]}
            ssd.training.progress.remember(history, range(1, 1001)[some], columns)
            assert len(history["loss"]) == len(history["step"]) <= 8
    assert all(history == histories[0] for history in histories)
    assert history["step"] == [256, 512, 768, 999, 1000]
    assert history["loss"][-1] == math.inf
    assert history["lr"] == pytest.approx([0.1285, 0.3845, 0.6405, 0.884, 1.0])  # means
    for loss, (start, end) in zip(history["loss"][:-1], pairwise([0, *history["step"]]), strict=False):
        finite = [loss for loss in losses[start:end] if math.isfinite(loss)]
        assert loss == pytest.approx(sum(finite) / len(finite), rel=0.01)  # a mean of means, where some are not finite
    history = {"step": [*range(1, 101)], "loss": [2.0] * 100}  # of a run of an older version
    ssd.training.progress.remember(history, [101], {"loss": [5.0]})
    assert history == {"step": [32, 64, 96, 100, 101], "loss": [2, 2, 2, 2, 5]}


def test_a_history_of_an_older_version_gets_all_columns():
    history = completed({"step": [1, 2], "loss": [3.0, 4.0], "mAP": []})
    assert (history["loss"], history["mAP"]) == ([3, 4], [])
    assert all(len(history[name]) == 2 for name in COLUMNS)
    assert math.isnan(history["lr"][0])


@pytest.mark.parametrize(
    ("maps", "stale"),
    [([], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.2, 0.2], 1), ([0.1, 0.3, 0.2, 0.3, math.nan], 3), ([math.nan, 0.0], 0)],
)
def test_validations_that_do_not_rise_are_counted(maps, stale):
    assert validations_without_rise(maps) == stale
