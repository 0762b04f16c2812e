"""Training on small drawn sets, with networks as narrow as they get: what is tested is the machinery, not the mAP."""

import math
import os
import signal
import subprocess
import sys
import types
from functools import partial
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
from short_training import NARROW, run, states_equal
from torch.amp import GradScaler
from tqdm import tqdm

import ssd.training.progress
import ssd.training.run as training
from ssd import load_weights
from ssd.cli import main
from ssd.data import AUGMENTATIONS, open_dataset
from ssd.data.colour import to_input
from ssd.data.loader import train_loader
from ssd.data.shapes import write_shapes
from ssd.loss import MultiBoxLoss
from ssd.networks.priors import make_priors
from ssd.networks.ssd300 import SSD300
from ssd.runtime.processes import ALONE
from ssd.training.optimizer import lr_factor, make_optimizer
from ssd.training.progress import MIN_SCALE, Meter
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.training.splits import open_sets
from ssd.training.step import UNSCALED
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from ssd_ext import LossOptions


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, 7, 3)
    return str(folder)


@pytest.mark.parametrize(("head_batch_norm", "rate"), [(False, 1e-3), (True, 1e-2)])
def test_the_rate_of_finetuning_is_that_of_the_network(shapes, tmp_path, capsys, head_batch_norm, rate):
    network = SSD300(4, width=0.01, batch_norm=True, head_batch_norm=head_batch_norm)
    save_checkpoint(tmp_path / "w.pt", network, ["circle", "square", "triangle"])
    settings = Settings((shapes,), "train", "test", weights=str(tmp_path / "w.pt"), epochs=1, batch_size=2)
    train(settings, tmp_path / "run", device="cpu", workers=0)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["settings"]["lr"] == rate
    assert f"lr {rate}" in capsys.readouterr().out


def test_leaves_checkpoints_history_and_a_curve(shapes, tmp_path):
    history = run(Settings((shapes,), "train", "test", epochs=2, eval_every=1, **NARROW), tmp_path / "run")
    assert history["step"] == [1, 2, 3, 4, 5, 6]  # 7 pictures are 3 whole batches of 2
    assert all(math.isfinite(x) for x in history["loss"])
    assert history["eval_step"] == [3, 6]
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"last.pt", "best.pt", "curve.png"}
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last["classes"] == ["circle", "square", "triangle"]
    assert last["settings"]["lr"] == 1e-3
    assert last["step"] == 6
    model, classes = load_weights(tmp_path / "run" / "best.pt", device="cpu")
    assert classes == ("circle", "square", "triangle")
    assert not model.training


FP16 = {"fp16": True, "clip_grad": 5.0, "epochs": 1}


@pytest.mark.parametrize(
    ("number", "stop_after", "more"),  # in an epoch, at its end
    [(signal.SIGINT, 2, {}), (signal.SIGTERM, 3, {}), (signal.SIGINT, 1, FP16)],
)
def test_resume_after_a_signal_is_exact(shapes, tmp_path, monkeypatch, number, stop_after, more):
    monkeypatch.setattr(ssd.training.progress, "KEPT", 4)
    settings = Settings((shapes,), "train", "test", **{"epochs": 2, "eval_every": 1, **NARROW, **more})
    straight = run(settings, tmp_path / "straight")
    assert len(straight["loss"]) <= 4

    step, calls, before = training.train_step, [], signal.getsignal(number)

    def interrupted_step(*args):
        calls.append(1)
        if len(calls) == stop_after:
            os.kill(os.getpid(), number)
        return step(*args)

    monkeypatch.setattr(training, "train_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "resumed")
    assert load_checkpoint(tmp_path / "resumed" / "last.pt")["step"] == stop_after
    monkeypatch.setattr(training, "train_step", step)
    resumed = run(None, tmp_path / "resumed", resume=True, workers=2)

    assert resumed == straight  # losses, and mAP at the end of both epochs
    ends = [load_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "resumed")]
    assert states_equal(ends[0]["model"], ends[1]["model"])
    assert states_equal(ends[0]["optimizer"], ends[1]["optimizer"])
    assert ends[0]["scaler"] == ends[1]["scaler"]
    assert bool(ends[0]["scaler"]) == settings.fp16
    assert signal.getsignal(number) is before


def test_tensorboard_gets_the_scalars_where_it_is_installed(shapes, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "run")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            written.append(("closed", 0))

        def add_scalar(self, tag, value, step):
            written.append((tag, step))

    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    run(Settings((shapes,), "train", "test", epochs=1, **NARROW), tmp_path / "run")
    assert [step for tag, step in written if tag == "loss"] == [1, 2, 3]
    assert written[-1] == ("closed", 0)
    assert {tag for tag, step in written if step == 3} >= {"mAP", "AP/circle", "AP/square", "AP/triangle"}


def test_a_run_takes_over_priors_and_input_of_a_detector(shapes, tmp_path, monkeypatch):
    config = {"width": 0.01, "batch_norm": True, "priors": "caffe_voc", "input_std": (1, 1, 1)}
    save_checkpoint(tmp_path / "other.pt", SSD300(21, **config), [f"class {i}" for i in range(20)])
    settings = Settings((shapes,), "train", "test", epochs=1, weights=str(tmp_path / "other.pt"), **NARROW)
    criteria = []
    monkeypatch.setattr(
        training, "MultiBoxLoss", lambda *args, **kw: criteria.append(MultiBoxLoss(*args, **kw)) or criteria[0]
    )
    run(settings, tmp_path / "run")
    assert torch.equal(criteria[0].priors_cxcy, make_priors("caffe_voc"))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["config"].items() >= config.items()


def test_another_seed_is_another_run(shapes, tmp_path):
    one, two = (run(Settings((shapes,), epochs=1, seed=s, **NARROW), tmp_path / str(s)) for s in (0, 1))
    assert one["loss"] != two["loss"]


def test_a_folder_with_a_run_is_not_overwritten(shapes, tmp_path):
    run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run"):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    (tmp_path / "run" / "last.pt").unlink()
    best = (tmp_path / "run" / "best.pt").read_bytes()
    with pytest.raises(ValueError, match=r"best\.pt would be replaced"):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    for folder in ("run", "elsewhere"):
        with pytest.raises(FileNotFoundError, match="no checkpoint to resume"):
            run(None, tmp_path / folder, resume=True)
    assert (tmp_path / "run" / "best.pt").read_bytes() == best
    assert not (tmp_path / "elsewhere").exists()


def test_resume_auto_starts_a_run_or_goes_on(shapes, tmp_path, monkeypatch, capsys):
    out, given = tmp_path / "run", {"epochs": 1, **NARROW, "loss": {"neg_pos_ratio": 2.0}}
    with pytest.raises(ValueError, match=r"run/last\.pt is not there to resume, and a new run needs settings"):
        run(None, out, resume="auto")
    settings = Settings((shapes,), "train", "test", **given)
    history = run(settings, out, resume="auto")
    monkeypatch.setattr(training, "train_step", None)
    monkeypatch.chdir(tmp_path)
    assert run(Settings((os.path.relpath(shapes),), **given), out, resume="auto") == history
    with pytest.raises(ValueError, match=r"run holds a run with other settings: seed is 0 in the run, and 7 was") as e:
        run(Settings((shapes,), seed=7, **given), out, resume="auto")
    assert "give the settings of the run, or leave them out; for a new run, choose another folder" in str(e.value)
    assert str(e.value).count(" was asked for") == 1
    with pytest.raises(ValueError, match="resume must be True, False or \"auto\", got 'Auto'"):
        run(settings, out, resume="Auto")

    line = ["train", "--out", str(out), "--resume", "auto", "--workers", "0", "--device", "cpu", shapes]
    assert main([*line, "--width", "0.01", "--neg-pos-ratio", "2"]) == 0
    for flags, says in (
        ([str(tmp_path)], f"data is {shapes} in the run, and {shapes}, {tmp_path} was asked for"),
        (["--seed", "0", "--batch-size", "8"], "settings: batch_size is 2 in the run, and 8 was asked for. To go on"),
        (["--neg-pos-ratio", "1"], "loss.neg_pos_ratio is 2.0 in the run, and 1.0 was asked for"),
        (["--classes", "a,b"], "classes is circle, square, triangle in the run, and a, b was asked for"),
    ):
        assert main([*line, *flags]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("minutes", [-1.0, math.nan])
def test_the_time_between_checkpoints_is_checked(tmp_path, minutes):
    with pytest.raises(ValueError, match=f"save_every must be >= 0, got {minutes}"):
        run(Settings(("x",)), tmp_path / "run", save_every=minutes)


def test_one_run_at_a_time_in_a_folder(shapes, tmp_path):
    """Also where the other run was killed, which leaves its lock file but not its lock."""
    code = """
import sys, time
from ssd.runtime.files import locked
with locked(sys.argv[1]):
    print(flush=True)
    time.sleep(99)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"{tmp_path}: another run is writing there"):
            run(Settings((shapes,), epochs=1, **NARROW), tmp_path)
        other.kill()
    assert run(Settings((shapes,), epochs=1, **NARROW), tmp_path)["step"]


def test_settings_of_older_checkpoints(shapes):
    """They had the options of the loss beside the others."""
    settings = Settings((shapes,), epochs=7, loss=LossOptions(loc_loss="smooth_l1", min_negatives=3))
    saved = settings.as_dict()
    assert Settings.from_dict(saved) == settings
    del saved["loss"]
    assert (
        Settings.from_dict(saved | {"loc_loss": "smooth_l1", "matching": "per_prior", "min_negatives": 3}) == settings
    )


def test_runs_of_older_versions_keep_torchvisions_augmentation(shapes):
    saved = Settings((shapes,), augment="ssd").as_dict()
    assert Settings.from_dict(saved).augment == "ssd"
    del saved["augment"]
    assert Settings.from_dict(saved).augment == "v2"
    choices, _ = get_args(get_type_hints(Settings)["augment"])  # or None
    assert set(AUGMENTATIONS) == set(get_args(choices))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_network_sees_the_samples_in_their_colours(shapes, augment):
    data = open_dataset(shapes, "train", transform=AUGMENTATIONS[augment]())
    (batch,) = train_loader(data, 4, seed=0, steps=range(1))
    model, seen = SSD300(4, width=0.01), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    settings = Settings((shapes,), augment=augment)
    criterion, optimizer = MultiBoxLoss(model.priors_cxcy), make_optimizer(model, settings)
    training.train_step(model, criterion, optimizer, batch, settings, 1.0, torch.device("cpu"))
    assert torch.equal(seen[0], to_input(batch.images, batch.colours))
    assert (batch.colours is None) == (augment == "v2")
    if augment == "ssd":
        assert not torch.equal(seen[0], to_input(batch.images))


@pytest.fixture
def step(shapes):
    """Takes one step of a small network without batch normalisation; its loss, and how far the weights went."""
    (batch,) = train_loader(open_dataset(shapes, "train", transform=AUGMENTATIONS["ssd"]()), 5, seed=0, steps=range(1))

    def take(scaler=UNSCALED, **settings):
        torch.manual_seed(0)
        model = SSD300(4, width=0.02)
        settings = Settings((shapes,), lr=1e-3, momentum=0, weight_decay=0, **settings)
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


def test_an_infinite_loss_in_float16_is_no_error_while_the_scale_falls():
    history, scaler = {"step": [], "loss": []}, GradScaler("cpu", init_scale=MIN_SCALE)
    meter = Meter(history, tqdm(disable=True), None, ALONE, scaler)
    meter.add(1, torch.tensor(math.inf), 2)
    meter.flush()
    assert history == {"step": [1], "loss": [math.inf]}
    scaler.load_state_dict(scaler.state_dict() | {"scale": MIN_SCALE / 2})
    meter.add(2, torch.tensor(7.0), 2)
    with pytest.raises(FloatingPointError, match="inf at step 2"):
        meter.flush()


def test_an_old_history_is_thinned_by_means(monkeypatch):
    """Evenly over the run, and however many losses come at once."""
    monkeypatch.setattr(ssd.training.progress, "KEPT", 8)
    losses = [float(i) for i in range(1, 1001)]
    losses[100], losses[101], losses[999] = math.inf, math.nan, math.inf
    histories = []
    for at_once in (1, 10, 13, 1000):
        histories.append(history := {"step": [], "loss": []})
        for start in range(0, 1000, at_once):
            ssd.training.progress.remember(
                history, range(1, 1001)[start : start + at_once], losses[start : start + at_once]
            )
            assert len(history["loss"]) == len(history["step"]) <= 8
    assert all(history == histories[0] for history in histories)
    assert history["step"] == [256, 512, 768, 999, 1000]
    assert history["loss"][-1] == math.inf
    for loss, (start, end) in zip(history["loss"][:-1], pairwise([0, *history["step"]]), strict=False):
        finite = [loss for loss in losses[start:end] if math.isfinite(loss)]
        assert loss == pytest.approx(sum(finite) / len(finite), rel=0.01)  # a mean of means, where some are not finite
    history = {"step": [*range(1, 101)], "loss": [2.0] * 100}  # of a run of an older version
    ssd.training.progress.remember(history, [101], [5.0])
    assert history == {"step": [32, 64, 96, 100, 101], "loss": [2, 2, 2, 2, 5]}


def test_one_of_bf16_and_fp16():
    with pytest.raises(ValueError, match="one of bf16 and fp16"):
        Settings(("x",), bf16=True, fp16=True)


def test_a_loss_that_explodes_in_float16_is_named_once_the_scale_cannot_help(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "GradScaler", partial(GradScaler, init_scale=2 * MIN_SCALE))
    with pytest.raises(FloatingPointError, match=r"became nan at step 2: try a lower learning rate"):
        run(Settings((shapes,), epochs=1, fp16=True, **{**NARROW, "lr": 1e30}), tmp_path / "run")


def test_a_loss_that_explodes_is_named_and_nothing_saved_over(shapes, tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step \d+: try a lower learning rate"):
        run(Settings((shapes,), epochs=9, **{**NARROW, "lr": 1e30, "batch_norm": False}), tmp_path / "run")
    if (tmp_path / "run" / "last.pt").exists():
        state = load_checkpoint(tmp_path / "run" / "last.pt")
        assert all(math.isfinite(x) for x in state["history"]["loss"])


def test_splits_are_found_and_pictures_without_lists_held_out(shapes, tmp_path):
    sets = open_sets(Settings((shapes,), "train", held_out=0.3))  # beside it there is a test list, and none for val
    assert (len(sets.train), len(sets.val), len(sets.test)) == (5, 2, 3)
    assert sets.names == {"split": "train", "val_split": None, "test_split": "test"}
    assert sets.classes == ("circle", "square", "triangle")
    assert sets.notes == []
    assert open_sets(Settings((shapes,), held_out=0)).val is None
    bare = tmp_path / "bare"
    write_shapes(bare, 20, 0)
    for file in (bare / "ImageSets" / "Main").iterdir():
        file.unlink()
    train_set, val_set, test_set, *_ = open_sets(Settings((str(bare),)))
    assert (len(train_set), len(val_set), test_set) == (18, 2, None)
    assert not set(train_set.indices) & set(val_set.indices)
    with pytest.raises(FileNotFoundError, match=r"there are: .*test.*train"):
        open_sets(Settings((shapes,), split="trainval"))


def test_which_lists_a_run_takes(tmp_path):
    write_shapes(tmp_path, 6, 2)
    lists = tmp_path / "ImageSets" / "Main"
    text = (lists / "train.txt").read_text().splitlines(keepends=True)

    def names(**settings):
        return tuple(open_sets(Settings((str(tmp_path),), **settings)).names.values())

    (lists / "val.txt").write_text("".join(text[:2]))
    assert names() == ("train", "val", "test")
    assert names(test_split="val", val_split="test") == ("train", "test", "val")
    (lists / "trainval.txt").write_text("".join(text))
    assert names() == ("trainval", None, "test")  # of which a part is held out
    assert names(split="train") == ("train", "val", "test")
    (lists / "test.txt").write_text("no_such_picture\n")
    sets = open_sets(Settings((str(tmp_path),)))
    assert sets.test is None
    assert "test will not be measured" in sets.notes[0]
    assert "no_such_picture" in sets.notes[0]
    with pytest.raises(FileNotFoundError, match="no_such_picture"):
        names(test_split="test")


@pytest.mark.parametrize(
    ("lists", "settings", "expected"),
    [
        ("train2017 val2017", {}, ("train2017", "val2017", None)),
        ("train2017 val2017", {"split": "train2017"}, ("train2017", "val2017", None)),
        ("train2017 val2017", {"split": "val2017"}, ("val2017", None, None)),
        ("training validation testing", {}, ("training", "validation", "testing")),
        ("train dev test-2", {}, ("train", "dev", "test-2")),
        ("train valid validation", {}, ("train", "valid", None)),
        ("train train2017 val2017", {}, ("train", None, None)),
        ("trainval_a train_a val_a test_a test_b", {}, ("trainval_a", None, "test_a")),
        ("train14 train17 val14 val17", {"split": "train17"}, ("train17", "val17", None)),
        ("train14 train17 val14", {"split": "train17"}, ("train17", None, None)),  # val14 may be a part of it
        ("train14 train17 val14", {}, r"to train on, with --split: there are train14, train17, val14"),
        ("train val_a val_b", {}, r"to validate train on, with --val-split: there are val_a, val_b"),
        ("train_test test", {}, r"to train on, with --split: there are test, train_test"),  # of VOC's class "train"
        ("trained value", {}, r"to train on, with --split: there are trained, value"),
    ],
)
def test_splits_are_known_by_their_kind(tmp_path, lists, settings, expected):
    write_shapes(tmp_path, 2, 0)
    folder = tmp_path / "ImageSets" / "Main"
    text = (folder / "train.txt").read_text()
    for file in folder.iterdir():
        file.unlink()
    for name in lists.split():
        (folder / f"{name}.txt").write_text(text)
    settings = Settings((str(tmp_path),), **settings)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            open_sets(settings)
    else:
        assert tuple(open_sets(settings).names.values()) == expected


def test_images_without_any_object_train(tmp_path):
    folder = tmp_path / "empty"
    write_shapes(folder, 4, 0)
    for file in (folder / "Annotations").iterdir():
        text = file.read_text()
        first, last = text.find("<object>"), text.rfind("</object>")
        if first >= 0:
            file.write_text(text[:first] + text[last + len("</object>") :])
    settings = Settings((str(folder),), "train", classes=("thing",), held_out=0, epochs=1, **NARROW)
    assert run(settings, tmp_path / "run")["loss"] == [0.0, 0.0]
    settings = Settings(
        (str(folder),), "train", classes=("thing",), held_out=0, epochs=1, loss=LossOptions(min_negatives=3), **NARROW
    )
    assert min(run(settings, tmp_path / "run2")["loss"]) > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_is_named(tmp_path, workers):
    folder = tmp_path / "broken"
    write_shapes(folder, 4, 0)
    victim = sorted((folder / "JPEGImages").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=victim.name):
        run(Settings((str(folder),), "train", epochs=1, **NARROW), tmp_path / "run", workers=workers)


def test_learning_rate_schedules():
    assert lr_factor(0, 1000, "step", 99) == pytest.approx(0.01)
    assert lr_factor(99, 1000, "step", 99) == 1
    assert lr_factor(0, 1000, "step", 500) == pytest.approx(1 / 101)  # at most a tenth of the run
    assert [lr_factor(s, 1200, "step", 0) for s in (799, 800, 999, 1000)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert lr_factor(500, 1000, "cosine", 0) == pytest.approx(0.5)
    assert lr_factor(0, 1000, "onecycle", 0) == pytest.approx(0.04)
    assert lr_factor(300, 1000, "onecycle", 0) == 1
    assert 0 < lr_factor(999, 1000, "onecycle", 0) < 1e-4


def test_biases_learn_at_twice_the_rate():
    model = SSD300(3, width=0.01)
    settings = Settings(("x",))
    groups = make_optimizer(model, settings).param_groups
    assert [g["lr_scale"] for g in groups] == [2, 1]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert all(p.dim() == 1 for p in groups[0]["params"])
    assert (groups[1]["momentum"], groups[1]["weight_decay"]) == (0.9, 5e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "linear"}, {"epochs": 0}, {"lr": -1.0}, {"batch_size": 0}, {"warmup": -1}, {"width": math.nan}],
)
def test_bad_settings_name_themselves(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be .*{next(iter(wrong.values()))}"):
        Settings(("x",), **wrong)
