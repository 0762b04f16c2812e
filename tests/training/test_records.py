"""curve.csv and metrics.json of a run, and the hooks: each step once, also of a resumed run."""

import csv
import json
import math
from types import SimpleNamespace

import pytest
from short_training import EPOCHS, NARROW, STEPS, run, settings_for

import ssd.training.run as training
from ssd.data.shapes import write_shapes
from ssd.training.records import Step, Validation, add_validation, write_curve
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 7, 3)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """The folder of a run that was not stopped, its history, and what its hooks were called with."""
    out, steps, validations = tmp_path_factory.mktemp("whole") / "run", [], []
    history = run(settings_for(shapes), out, on_step=steps.append, on_eval=validations.append)
    return out, history, steps, validations


def curve_of(out):
    with open(out / "curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_curve_has_each_step_and_each_validation(whole):
    out, history, *_ = whole
    rows = curve_of(out)
    assert list(rows[0]) == ["step", "epoch", "loss", "conf_loss", "loc_loss", "lr", "mAP"]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [int(row["epoch"]) for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [float(row["loss"]) for row in rows] == history["loss"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["conf_loss"]) + float(row["loc_loss"]), rel=1e-6)
        assert 0 < float(row["lr"]) <= NARROW["lr"]
    assert len({row["lr"] for row in rows}) > 1
    assert [float(row["mAP"]) for row in rows if row["mAP"]] == history["mAP"]
    assert [int(row["step"]) for row in rows if row["mAP"]] == history["eval_step"]


def test_the_metrics(whole, shapes):
    out, history, *_ = whole
    numbers = json.loads((out / "metrics.json").read_text())
    assert list(numbers) == [
        *(
            "made_by",
            "date",
            "finished",
            "network",
            "size",
            "metric",
            "mAP",
            "best_mAP",
            "best_epoch",
            "test_mAP",
            "mAP_interval",
        ),
        *("classes", "epochs", "planned_epochs", "steps", "pictures_seen", "seconds", "n_pictures", "data"),
        *("settings", "versions"),
    ]
    assert (numbers["finished"], numbers["network"], numbers["size"]) == (True, "ssd300", 300)
    assert numbers["mAP"] == history["mAP"][-1]
    assert numbers["best_mAP"] == max(history["mAP"]) == load_checkpoint(out / "best.pt")["mAP"]
    assert numbers["best_epoch"] == load_checkpoint(out / "best.pt")["step"] // 3
    assert (numbers["epochs"], numbers["planned_epochs"], numbers["steps"]) == (EPOCHS, EPOCHS, STEPS)
    assert numbers["pictures_seen"] == 2 * STEPS
    assert 0 < numbers["seconds"] < 600
    assert numbers["n_pictures"] == {"train": 7, "val": 3, "test": 0}
    assert numbers["data"]["data"] == [str(shapes)]
    aps = {row["name"]: row["ap"] for row in numbers["classes"]}
    assert set(aps) == {"circle", "square", "triangle"}
    known = [ap for ap in aps.values() if ap is not None]
    assert numbers["mAP"] == pytest.approx(sum(known) / len(known))
    assert Settings.from_dict(numbers["settings"]).lr == NARROW["lr"]


def test_the_report_shows_the_curves(whole):
    page = (whole[0] / "report.html").read_text()
    assert page.count('<polyline class="line part-') == 5  # the loss and its parts, mAP, the learning rate


def test_hooks_get_what_the_files_have(whole):
    _, history, steps, validations = whole
    assert [step.loss for step in steps] == history["loss"]
    assert [(step.step, step.epoch, step.lr, step.conf_loss) for step in steps] == list(
        zip(range(1, STEPS + 1), [1, 1, 1, 2, 2, 2, 3, 3, 3], history["lr"], history["conf_loss"], strict=True)
    )
    assert [(v.step, v.epoch, v.mAP) for v in validations] == [(3, 1, history["mAP"][0]), *[
        (3 * (i + 1), i + 1, history["mAP"][i]) for i in (1, 2)
    ]]  # fmt: skip
    assert validations[0].best
    assert set(validations[0].ap) == {"circle", "square", "triangle"}
    assert isinstance(steps[0], Step)
    assert isinstance(validations[0], Validation)


@pytest.mark.parametrize(("hook", "at"), [("on_step", 2), ("on_step", STEPS), ("on_eval", 3), ("on_eval", STEPS)])
def test_an_error_of_a_hook_stops_the_run_which_can_be_resumed(whole, shapes, tmp_path, monkeypatch, hook, at):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    out, steps = tmp_path / "run", []

    def fail(value):
        if value.step == at:
            raise RuntimeError("the hook's own")

    with pytest.raises(RuntimeError, match="the hook's own"):
        run(settings_for(shapes), out, **{hook: fail})
    assert load_checkpoint(out / "last.pt")["step"] == at
    assert not (out / "report.html").exists()
    assert [int(row["step"]) for row in curve_of(out)] == list(range(1, at + 1))
    assert not json.loads((out / "metrics.json").read_text())["finished"]
    history = run(None, out, resume=True, on_step=steps.append)
    assert history == whole[1]
    assert [step.step for step in steps] == list(range(at + 1, STEPS + 1))
    assert (out / "curve.csv").read_bytes() == (whole[0] / "curve.csv").read_bytes()
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (out, whole[0])]
    for each in numbers:
        assert each.pop("seconds") > 0
        assert each.pop("date")
    assert numbers[0] == numbers[1]


def test_a_class_without_objects_is_in_no_history():
    history = {"eval_step": [], "mAP": []}
    for step in (3, 6):
        add_validation(history, step, SimpleNamespace(mAP=0.5, ap={"dog": step / 10, "cat": math.nan}))
    assert history == {"eval_step": [3, 6], "mAP": [0.5, 0.5], "AP/dog": [0.3, 0.6]}


def test_a_validation_behind_a_joined_step_has_its_own_row(tmp_path):
    """After many steps, the losses of several steps are one mean."""
    columns = {name: [2.0, 4.0] for name in ("loss", "conf_loss", "loc_loss", "lr")}
    write_curve({"step": [2, 4], "eval_step": [3, 4], "mAP": [0.5, math.nan], **columns}, 3, tmp_path / "curve.csv")
    rows = curve_of(tmp_path)
    assert [(row["step"], row["epoch"], row["loss"], row["mAP"]) for row in rows] == [
        ("2", "1", "2.0", ""),
        ("3", "1", "", "0.5"),
        ("4", "2", "4.0", "nan"),
    ]
