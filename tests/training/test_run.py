"""Training on small drawn sets, with networks as narrow as they get: what is tested is the machinery, not the mAP."""

import math
import os
import shutil
import signal
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from deep_pictures import add_deep_pictures, png
from PIL import Image
from short_training import NARROW, error_of, run, states_equal
from small_datasets import add_split, cut
from torch.amp import GradScaler

import ssd.training.progress
import ssd.training.run as training
from ssd import load_weights
from ssd.cli import main
from ssd.data import open_dataset
from ssd.data.prior_fit import fit_priors
from ssd.data.shapes import write_shapes
from ssd.evaluation.voc import EvalResult
from ssd.inference.detector import Detector
from ssd.loss import MultiBoxLoss
from ssd.networks import build_network
from ssd.networks.priors import PRESETS, make_priors
from ssd.networks.ssd300 import SSD300
from ssd.runtime.processes import Ranks
from ssd.training.opening import open_run
from ssd.training.progress import MIN_SCALE
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.training.splits import open_sets
from ssd.weights.checkpoint import levels_of, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    ("name", "head_batch_norm", "rate"), [("ssd300", False, 1e-3), ("ssd300", True, 1e-2), ("ssdlite", True, 3e-2)]
)
def test_the_rate_of_finetuning_is_that_of_the_network(shapes, tmp_path, capsys, name, head_batch_norm, rate):
    network = build_network(name, 4, width=0.01, head_batch_norm=head_batch_norm)
    save_checkpoint(tmp_path / "w.pt", network, ["circle", "square", "triangle"])
    settings = Settings((shapes,), "train", "test", weights=str(tmp_path / "w.pt"), epochs=1, batch_size=2)
    train(settings, tmp_path / "run", device="cpu", workers=0)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["settings"]["lr"] == rate
    assert f"lr {rate}" in capsys.readouterr().out


def test_fitted_priors_are_those_of_the_training_pictures(shapes, tmp_path):
    narrow = NARROW | {"priors": "auto", "loss": {"threshold": 0.4}}
    history = run(Settings((shapes,), "train", "test", epochs=2, **narrow), tmp_path / "run")
    dataset = open_dataset([shapes], "train")
    fitted = fit_priors(dataset.objects.columns["boxes"], list(PRESETS.values()), 0.4)
    model, _ = load_weights(tmp_path / "run" / "best.pt", device="cpu")
    assert model.prior_spec == fitted
    assert model.prior_spec not in PRESETS.values()
    assert torch.equal(model.priors_cxcy, make_priors(fitted))
    assert run(None, tmp_path / "run", resume=True) == history


def test_a_detector_keeps_its_priors(shapes, tmp_path, capsys):
    run(Settings((shapes,), "train", "test", epochs=1, **NARROW), tmp_path / "run")
    weights = tmp_path / "run" / "best.pt"
    error = error_of(capsys, "train", shapes, "--out", tmp_path / "next", "--weights", weights, "--priors", "auto")
    assert error == f"ssd train: error: {weights}: a detector keeps its priors; leave out --priors auto"


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


def test_an_error_after_a_signal_is_raised(shapes, tmp_path):
    def fail(step):
        signal.raise_signal(signal.SIGTERM)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run", on_step=fail)


def test_control_characters_in_names_do_not_reach_the_terminal(shapes, tmp_path, capsys):
    settings = Settings((shapes,), "train", "test", epochs=1, **NARROW)
    train(settings, tmp_path / "a\x1b[2Jb", device="cpu", workers=0)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"a\x1b[2Jb" in said
    assert r"\n" not in said


def test_a_device_without_float64_is_refused(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "pick_device", lambda name: torch.device(name))
    with pytest.raises(ValueError, match=r"^device 'mps' cannot be used to train: .* float64.*; use the device cpu$"):
        train(Settings((shapes,)), tmp_path / "run", device="mps")
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_scalars_where_it_is_installed(shapes, tmp_path, monkeypatch):
    written, purged = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert folder == str(tmp_path / "run")
            purged.append(purge_step)

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
    run(None, tmp_path / "run", resume=True)
    assert purged == [1, 4]  # otherwise, steps of a killed run after its last checkpoint would be shown twice


def test_without_tensorboard_nothing_is_said(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where its import fails
    train(Settings((shapes,), "train", "test", epochs=1, **NARROW), tmp_path / "run", device="cpu", workers=0)
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    assert "trained on 6 pictures" in said
    assert "tensorboard" not in said.lower()


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


def test_deterministic_algorithms_are_those_of_the_run_alone(shapes, tmp_path, monkeypatch):
    def mode():
        return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

    modes, histories, step, before = [], [], training.train_step, mode()

    def watched(*arguments):
        modes.append(mode())
        return step(*arguments)

    monkeypatch.setattr(training, "train_step", watched)
    for deterministic in (True, False):
        settings = Settings((shapes,), "train", "test", epochs=1, deterministic=deterministic, **NARROW)
        histories.append(run(settings, tmp_path / str(deterministic)))
        assert mode() == before
    n = len(histories[0]["step"])
    assert modes == [(True, False)] * n + [before] * n
    assert histories[0] == histories[1]  # on a CPU


def test_another_seed_is_another_run(shapes, tmp_path):
    one, two = (run(Settings((shapes,), epochs=1, seed=s, **NARROW), tmp_path / str(s)) for s in (0, 1))
    assert one["loss"] != two["loss"]


def test_a_folder_with_a_run_is_not_overwritten(shapes, tmp_path):
    run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    finished = r"already has a run, which is finished; choose another folder\. To train longer, start a new run: ssd "
    with pytest.raises(ValueError, match=finished):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.json"
    for stopped in (metrics.read_text().replace('"finished": true', '"finished": false'), "", "[]"):
        metrics.write_text(stopped)
        with pytest.raises(ValueError, match=r"has a run\. To continue it: ssd train --out \S+/run --resume\. For"):
            run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    (tmp_path / "run" / "last.pt").unlink()
    best = (tmp_path / "run" / "best.pt").read_bytes()
    with pytest.raises(ValueError, match=r"best\.pt would be replaced"):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.json").write_text("mine")
    with pytest.raises(ValueError, match=r"metrics\.json would be replaced"):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "notes")
    with pytest.raises(ValueError, match=r"metrics\.json: is a file; choose a folder"):
        run(Settings((shapes,), epochs=1, **NARROW), tmp_path / "notes" / "metrics.json")
    assert (tmp_path / "notes" / "metrics.json").read_text() == "mine"
    for folder in ("run", "elsewhere"):
        with pytest.raises(FileNotFoundError, match=r"last\.pt: no such checkpoint"):
            run(None, tmp_path / folder, resume=True)
    assert (tmp_path / "run" / "best.pt").read_bytes() == best
    assert not (tmp_path / "elsewhere").exists()


def test_a_batch_of_all_pictures_and_those_before_the_resume_are_told(shapes, tmp_path, capsys):
    settings = Settings((shapes,), "train", "test", epochs=3, **{**NARROW, "batch_size": 50})

    def stop(step):
        if step.step == 2:
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        train(settings, tmp_path / "run", device="cpu", workers=0, on_step=stop)
    said = capsys.readouterr().out
    assert "3 steps of 7 pictures on cpu" in said
    assert "batch size 50: a batch has all 7 pictures of an epoch" in said
    for line in "trained on 21 pictures (7 since the run was resumed), ", "trained on 21 pictures, all before the run":
        train(None, tmp_path / "run", resume=True, device="cpu", workers=0)
        assert line in capsys.readouterr().out


def test_only_the_first_process_needs_the_folder_to_resume(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings((shapes,), "train", "test", epochs=1, **NARROW)
    run(settings, "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    class Second(Ranks):
        def from_first(self, function):
            with monkeypatch.context() as there:
                there.chdir(tmp_path)
                return function()

    how = {"resume": True, "given": None, "device": torch.device("cpu"), "say": list}
    opened = open_run(None, Path("run"), ranks=Second(1), **how)
    assert opened.state["step"] == 3
    assert states_equal(dict(opened.model.state_dict()), opened.state["model"])
    with pytest.raises(FileNotFoundError, match=r"none/last\.pt: no such checkpoint"):
        open_run(None, Path("none"), ranks=Second(1), **how)


def test_resume_auto_starts_a_run_or_goes_on(shapes, tmp_path, monkeypatch, capsys):
    out, given = tmp_path / "run", {"epochs": 1, **NARROW, "loss": {"neg_pos_ratio": 2.0}}
    with pytest.raises(ValueError, match=r"run/last\.pt does not exist, and a new run needs settings"):
        run(None, out, resume="auto")
    settings = Settings((shapes,), "train", "test", **given)
    history = run(settings, out, resume="auto")
    monkeypatch.setattr(training, "train_step", None)
    monkeypatch.chdir(tmp_path)
    assert run(Settings((os.path.relpath(shapes),), **given), out, resume="auto") == history
    with pytest.raises(ValueError, match=r"run has a run with other settings: seed is 0 in the run, but 7 was") as e:
        run(Settings((shapes,), seed=7, **given), out, resume="auto")
    assert "give the settings of the run, or leave them out; for a new run, choose another folder" in str(e.value)
    assert "longer" not in str(e.value)
    assert str(e.value).count(" was given") == 1
    with pytest.raises(ValueError, match="resume must be True, False or \"auto\", got 'Auto'"):
        run(settings, out, resume="Auto")

    line = ["train", "--out", str(out), "--resume", "auto", "--workers", "0", "--device", "cpu", shapes]
    assert main([*line, "--network", "ssd300", "--width", "0.01", "--neg-pos-ratio", "2"]) == 0
    for flags, says in (
        ([str(tmp_path)], f"data is {shapes} in the run, but {shapes}, {tmp_path} was given"),
        (["--seed", "0", "--batch-size", "8"], "settings: batch_size is 2 in the run, but 8 was given. To continue"),
        (["--epochs", "8"], "epochs is 1 in the run, but 8 was given. To continue it, give the settings of the run"),
        (["--epochs", "8"], "To train longer, start a new run: ssd train DATA --out FOLDER --epochs N"),
        (["--neg-pos-ratio", "1"], "loss.neg_pos_ratio is 2.0 in the run, but 1.0 was given"),
        (["--classes", "a,b"], "classes is circle, square, triangle in the run, but a, b was given"),
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


def test_a_gpu_with_too_little_memory_is_named_with_what_helps(shapes, tmp_path, monkeypatch, capsys):
    def train_step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(training, "train_step", train_step)
    command = ["train", shapes, "--width", 0.1, "--batch-size", 6, "--device", "cpu", "--workers", 0]
    line = error_of(capsys, *command, "--out", tmp_path / "ssdlite", "--network", "ssdlite", "--size", 224)
    assert line == (
        "ssd train: error: cpu has too little free memory for a step with 6 pictures of 224 x 224 pixels; use "
        "--accumulate 2, which runs the batch in smaller parts, or a smaller --batch-size, or a smaller --size, or "
        "another --network"
    )
    # A part of one picture would be too few for batch norm, and this network has one size.
    line = error_of(capsys, *command, "--out", tmp_path / "ssd300", "--network", "ssd300", "--accumulate", 3)
    assert line.endswith("6 pictures of 300 x 300 pixels; use a smaller --batch-size, or another --network")


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


def test_data_without_any_object_is_refused(tmp_path):
    folder = write_shapes(tmp_path / "empty", 4, 0)
    for file in (folder / "Annotations").iterdir():
        text = file.read_text()
        first, last = text.find("<object>"), text.rfind("</object>")
        if first >= 0:
            file.write_text(text[:first] + text[last + len("</object>") :])
    message = (
        r"nothing to learn from: none of 4 pictures has an object\. .*empty has 4 \.xml in Annotations, .* 4 \.jpg"
    )
    for classes in (("thing",), None):
        with pytest.raises(ValueError, match=message):
            run(Settings((str(folder),), "train", classes=classes, **NARROW), tmp_path / "run")
        assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_is_named(tmp_path, workers):
    folder = tmp_path / "broken"
    write_shapes(folder, 4, 0)
    victim = sorted((folder / "JPEGImages").iterdir())[0]
    cut(victim, 0.4)
    with pytest.raises(ValueError, match=victim.name):
        run(Settings((str(folder),), "train", epochs=1, **NARROW), tmp_path / "run", workers=workers)


def test_levels_of_the_training_pictures_are_those_of_everything_after_it(tmp_path, capsys):
    """Of validation and test pictures, of a resumed run, and of detectors from its checkpoints."""
    data, out = tmp_path / "data", tmp_path / "run"
    add_deep_pictures(data, "abc")  # 16 to 316
    add_deep_pictures(data, "de", lowest=1000)
    for split, names in (("train", "abc"), ("val", "d"), ("test", "e")):
        add_split(data, split, *names)
    train(Settings((str(data),), epochs=1, **NARROW), out, device="cpu", workers=0)
    printed = capsys.readouterr().out
    assert printed.count("more than 8 bits per sample: 3; 16 becomes black and 316 white") == 1
    assert printed.count("more than 8 bits per sample: 1; 16 becomes black and 316 white") == 2
    assert load_checkpoint(out / "last.pt")["levels"] == load_checkpoint(out / "best.pt")["levels"] == (16, 316)
    assert open_sets(load_settings(out), (5, 6)).val.levels == (5, 6)
    detector = Detector.load(out / "best.pt", device="cpu")
    array = np.linspace(16, 316, 2400).astype(np.uint16).reshape(40, 60)
    assert detector(Image.fromarray(array)).picture.pixels().max() == 255
    (tmp_path / "a.png").write_bytes(png(array[..., None]))
    assert detector(tmp_path / "a.png").picture.pixels().max() == 255
    assert main(["eval", str(data), "--weights", str(out / "best.pt"), "--device", "cpu", "--workers", "0"]) == 0
    assert "16 becomes black and 316 white" in capsys.readouterr().err
    assert main(["eval", str(data), "--weights", str(out / "best.pt"), "--bits", "12", "--workers", "0"]) == 0
    assert "0 becomes black and 4095 white" in capsys.readouterr().err
    assert main(["convert", str(out / "best.pt"), str(tmp_path / "converted.pt")]) == 0
    assert levels_of(load_checkpoint(tmp_path / "converted.pt")) == (16, 316)


def load_settings(out):
    return Settings.from_dict(load_checkpoint(out / "last.pt")["settings"])


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_lack_their_end_are_counted(shapes, tmp_path, capsys, workers):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for path in (data / "JPEGImages").iterdir():
        cut(path, 0.9)
    settings = Settings((str(data),), "train", held_out=0, epochs=1, **NARROW)
    train(settings, tmp_path / "run", device="cpu", workers=workers)
    # 3 steps of 2 pictures
    assert "pictures that lack their last bytes, and were used: 6, such as" in capsys.readouterr().out


@pytest.fixture
def maps(monkeypatch):
    """Replaces validation: sets the mAPs that the next validations measure."""

    def coming(*values):
        left = iter(values)
        monkeypatch.setattr(
            training, "evaluate", lambda *_, **__: EvalResult(next(left), {}, {}, {}, 0.5, "area", curves={})
        )

    return coming


def test_a_run_without_rise_stops_and_its_report_can_be_repeated(shapes, tmp_path, maps, at_step, capsys):
    """Also after an interruption, at the same step."""
    settings = Settings((shapes,), "train", "test", epochs=9, eval_every=1, patience=2, **NARROW)
    measured = (0.1, 0.3, 0.3, 0.2)
    maps(*measured)
    straight = train(settings, tmp_path / "straight", device="cpu", workers=0)
    says = "stopped after epoch 4 of 9: the mAP has not risen in 2 validations (patience)"
    printed = capsys.readouterr().out
    assert printed.count(says) == 1
    assert "on training pictures" in printed  # the report
    assert straight["eval_step"] == [3, 6, 9, 12]
    assert straight["step"][-1] == 12

    at_step(11, partial(os.kill, os.getpid(), signal.SIGINT))
    maps(*measured)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "resumed")
    assert run(None, tmp_path / "resumed", resume=True) == straight
    assert main(["train", "--out", str(tmp_path / "resumed"), "--resume", "--device", "cpu", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert says in printed
    assert "on training pictures" in printed
    assert load_checkpoint(tmp_path / "resumed" / "last.pt")["step"] == 12


def test_patience_needs_pictures_to_validate_on(shapes, tmp_path):
    settings = Settings((shapes,), "train", held_out=0, epochs=1, patience=3, **NARROW)
    with pytest.raises(
        ValueError, match="patience: 3 was given, but there are no objects to validate on; give val_spl"
    ):
        run(settings, tmp_path / "run")
